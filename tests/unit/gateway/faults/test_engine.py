"""The engine in time: batches, chunks, a cache of blocks with room, and a queue, by figures worked out by hand."""

from __future__ import annotations

import asyncio
from random import Random

import pytest
from harness.virtual_time import run
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.faults.engine import BLOCK, Engine, PrefixCache, Shape, TimedEngine, Work, blocks

PLAIN = Shape(kv_tokens=10_000, rate=1000.0, step=0.0, write=0.0, batch=1000, calls=4)


def nothing(_: Work) -> None:
    """For calls that nobody waits for."""


def test_segments_are_cut_into_blocks() -> None:
    cut = list(blocks([(7, 2 * BLOCK + 1), (8, 5)]))
    assert [size for _, size in cut] == [BLOCK, BLOCK, 1, 5]
    assert len({name for name, _ in cut}) == 4


def test_a_prefix_ends_where_something_else_begins() -> None:
    cache = PrefixCache(1000)
    cache.take([(1, 100), (2, 50), (3, 25)], 0)
    assert cache.cached([(1, 100), (2, 50), (3, 25), (4, 1)]) == 175
    assert cache.cached([(1, 100), (9, 50), (3, 25)]) == 100
    assert cache.cached([(9, 50), (1, 100)]) == 0


def used(cache: PrefixCache, *segments: tuple[int, int], answer: int = 0) -> int | None:
    """A call that has ended; how much of it was cached."""
    cached = cache.take(segments, answer)
    if cached is not None:
        cache.free(segments, answer)
    return cached


def test_what_was_not_used_for_longest_is_forgotten_first() -> None:
    cache = PrefixCache(300)
    for segment in (1, 2, 3, 1, 4):
        used(cache, (segment, 100))
    assert [cache.cached([(segment, 100)]) for segment in (1, 2, 3, 4)] == [100, 0, 100, 100]


def test_of_one_prompt_the_end_is_forgotten_before_the_beginning() -> None:
    cache = PrefixCache(300)
    used(cache, (1, 100), (2, 100), (3, 100))
    used(cache, (4, 100))
    assert cache.cached([(1, 100), (2, 100), (3, 100)]) == 200


def test_answers_take_room_too_and_go_first() -> None:
    cache = PrefixCache(300)
    used(cache, (1, 100), answer=100)
    used(cache, (2, 100))
    assert cache.cached([(1, 100)]) == 100
    used(cache, (3, 100))
    assert [cache.cached([(segment, 100)]) for segment in (1, 2, 3)] == [100, 100, 100], "the answer has gone"


def test_calls_that_run_keep_their_blocks_and_share_those_of_one_prefix() -> None:
    cache = PrefixCache(400)
    shared = (1, 200)
    assert cache.take([shared, (2, 50)], 50) == 0
    assert cache.take([shared, (3, 50)], 50) == 200
    assert cache.kept_tokens == 400
    assert cache.take([(4, 1)], 0) is None, "there is no room while they run"
    cache.free([shared, (2, 50)], 50)
    assert cache.kept_tokens == 300
    assert cache.take([(4, 100)], 0) == 0


def test_a_prompt_larger_than_the_cache_is_read_alone_and_leaves_its_beginning() -> None:
    cache = PrefixCache(250)
    assert used(cache, (1, 100), (2, 100), (3, 100)) == 0
    assert cache.cached([(1, 100), (2, 100), (3, 100)]) == 200


@given(st.integers(0, 2**32))
@settings(max_examples=60)
def test_a_cache_never_holds_more_than_its_room_and_forgets_nothing_that_runs(seed: int) -> None:
    chance, cache, running = Random(seed), PrefixCache(1000), []
    for _ in range(200):
        if running and chance.random() < 0.5:
            cache.free(*running.pop(chance.randrange(len(running))))
        else:
            group = chance.randrange(6)
            prompt = [(group * 10 + part, 20 + 30 * part) for part in range(chance.randint(1, 4))]
            answer = chance.randrange(50)
            if cache.take(prompt, answer) is not None:
                running.append((prompt, answer))
        distinct = {segment: size for prompt, _ in running for segment, size in prompt}
        assert cache.kept_tokens == sum(distinct.values()) + sum(answer for _, answer in running) <= 1000
        assert cache.kept_tokens + cache._idle_tokens <= 1000
        assert all(cache.cached(prompt) == sum(size for _, size in prompt) for prompt, _ in running)


def first_tokens(shape: Shape, *calls: tuple[float, list[tuple[int, int]], int]) -> list[tuple[float, float, int]]:
    """For calls that come when, with which prompt and answer: first token, end, and cached tokens."""

    async def play() -> list[tuple[float, float, int]]:
        loop, engine = asyncio.get_running_loop(), TimedEngine(shape)
        found: dict[int, list[float]] = {}
        made = []
        for number, (at, segments, answer) in enumerate(calls):
            work = Work(segments, answer, lambda _, n=number: found.setdefault(n, []).append(loop.time()))  # type: ignore[misc]
            made.append(work)
            loop.call_at(at, engine.add, work)
        await asyncio.sleep(1000)
        return [(found[n][0], found[n][-1], work.cached or 0) for n, work in enumerate(made)]

    return run(play())


def test_a_prompt_is_read_and_then_an_answer_written_a_token_a_step() -> None:
    shape = Shape(kv_tokens=10_000, rate=1000.0, step=0.01, write=0.001, batch=1000)
    ((first, last, cached),) = first_tokens(shape, (1.0, [(1, 500)], 11))
    assert first == pytest.approx(1.0 + 0.5 + 0.01)
    assert last == pytest.approx(first + 10 * 0.011)
    assert cached == 0


def test_a_long_prompt_is_read_in_chunks_between_which_others_go_on() -> None:
    long, short = first_tokens(PLAIN, (0.0, [(1, 2500)], 1), (0.5, [(2, 100)], 1))
    assert long[0] == short[0] == pytest.approx(2.6), "the short one is read in what is left of the last chunk"
    alone, other = first_tokens(PLAIN, (0.0, [(1, 500)], 1), (0.1, [(2, 100)], 1))
    assert (alone[0], other[0]) == (pytest.approx(0.5), pytest.approx(0.6)), "it comes into the next step"


def test_answers_that_are_written_come_before_prompts_that_are_read() -> None:
    writing, reading = first_tokens(PLAIN, (0.0, [(1, 100)], 3), (0.05, [(2, 3996)], 1))
    assert writing[:2] == (pytest.approx(0.1), pytest.approx(0.1 + 2 * 0.999))
    assert reading[0] == pytest.approx(0.1 + 3.996)


def test_only_what_is_not_cached_is_read_and_always_something() -> None:
    calls = first_tokens(PLAIN, (0.0, [(1, 400)], 1), (2.0, [(1, 400), (2, 100)], 1), (4.0, [(1, 400), (2, 100)], 1))
    assert [cached for _, _, cached in calls] == [0, 400, 499]
    assert [first for first, _, _ in calls] == pytest.approx([0.4, 2.1, 4.001])


def test_two_that_come_together_share_the_prefix_that_both_bring() -> None:
    one, other = first_tokens(PLAIN, (0.0, [(1, 400), (2, 50)], 1), (0.0, [(1, 400), (3, 50)], 1))
    assert one[0] == other[0] == pytest.approx(0.5)
    assert (one[2], other[2]) == (0, 400)


def test_more_calls_than_run_at_a_time_wait() -> None:
    calls = [(0.0, [(number, 10)], 101) for number in range(1, 6)]
    found = first_tokens(Shape(kv_tokens=10_000, rate=1000.0, step=0.01, write=0.0, batch=1000, calls=4), *calls)
    assert [first < 1.0 for first, _, _ in found] == [True] * 4 + [False]
    assert found[4][0] == pytest.approx(found[0][1] + 0.02)


def test_calls_for_which_the_cache_has_no_room_wait() -> None:
    found = first_tokens(PLAIN, (0.0, [(1, 9000)], 1), (0.1, [(2, 2000)], 1), (0.2, [(3, 10)], 1))
    assert [round(first, 2) for first, _, _ in found] == [9.0, 11.0, 11.01], "in the order in which they came"


def test_a_client_that_leaves_frees_what_it_had() -> None:
    engine = Engine(PLAIN)
    waiting, reading, writing = (Work([(number, 3000)], 50, nothing) for number in (1, 2, 3))
    for work in (writing, reading, waiting):
        engine.add(work)
    for _ in range(4):
        assert engine.begin() is not None
        engine.end()
    assert (writing.read, reading.cached, waiting.cached) == (True, 0, None)
    assert (engine.running, len(engine.waiting)) == (2, 1)
    for work in (writing, reading, waiting):
        engine.abort(work)
        engine.abort(work)
    assert (engine.running, len(engine.waiting), engine.cache.kept_tokens) == (0, 0, 0)
    assert engine.begin() is None
    assert engine.cache.cached(writing.segments) == 3000


def test_a_stream_hears_of_every_token() -> None:
    engine = Engine(PLAIN)
    said: list[int] = []
    work = Work([(1, 10)], 5, lambda work: said.append(work.said), streams=True)
    engine.add(work)
    while engine.begin() is not None:
        engine.end()
    assert said == [1, 2, 3, 4, 5]
    assert (engine.queried, engine.hit, engine.written, engine.steps) == (10, 0, 5, 5)


@given(st.integers(0, 2**32))
@settings(max_examples=30)
def test_every_call_is_answered_and_all_counts_return_to_nothing(seed: int) -> None:
    chance = Random(seed)
    engine = Engine(Shape(kv_tokens=2000, rate=1.0, step=0.0, write=0.0, batch=chance.choice([1, 7, 500]), calls=3))
    made = [
        Work([(chance.randrange(4), 300), (100 + n, chance.randint(1, 200))], chance.randint(0, 9), nothing)
        for n in range(30)
    ]
    left = list(made)
    while left or engine.waiting or engine.running:
        while left and chance.random() < 0.5:
            engine.add(left.pop())
        if engine.begin() is not None:
            engine.end()
    assert all(work.ended and work.read and work.left == 0 for work in made)
    assert engine.cache.kept_tokens == 0 and engine.queried == sum(work.tokens for work in made)
