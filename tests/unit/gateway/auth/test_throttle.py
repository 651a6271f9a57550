"""Wrong keys: so many from one source and no more, without ever keeping a good key out."""

from __future__ import annotations

import asyncio

import pytest
from harness.clock import FixedClock
from harness.keyrings import HERE, Parts, turns

from gateway.auth import Throttle, mint, parse, token
from gateway.auth.throttle import FAILURES, WINDOW_SECONDS
from gateway.core.errors import StoreUnavailable, Throttled

EACH = WINDOW_SECONDS / FAILURES
"""Seconds after which one more failure is allowed."""
GARBAGE = "tl_garbage"


def wrong_secret(held: str) -> str:
    return token(parse(held)[0], "w" * 43)


@pytest.mark.parametrize("kind", ["garbage", "unknown", "wrong secret"])
async def test_so_many_wrong_keys_and_no_more(parts: Parts, kind: str) -> None:
    _, held = await parts.registrar.create("n")
    made = {"garbage": lambda: GARBAGE, "unknown": lambda: mint()[1], "wrong secret": lambda: wrong_secret(held)}[kind]
    assert [await parts.says(made()) for _ in range(FAILURES + 3)] == [401] * FAILURES + [429] * 3
    assert len(parts.records.asked) == (0 if kind == "garbage" else FAILURES), "the rest was not looked up"
    assert parts.refused == 3
    with pytest.raises(Throttled) as caught:
        await parts.authenticate(made())
    assert caught.value.retry_after == pytest.approx(EACH)
    parts.clock.advance(EACH - 0.01)
    assert await parts.says(made()) == 429
    parts.clock.advance(0.02)
    assert [await parts.says(made()), await parts.says(made())] == [401, 429], "as the answer had promised"


async def test_a_quiet_minute_makes_it_whole(parts: Parts) -> None:
    for _ in range(2):
        assert [await parts.says(GARBAGE) for _ in range(FAILURES + 1)] == [401] * FAILURES + [429]
        parts.clock.advance(WINDOW_SECONDS)


async def test_a_good_key_in_memory_passes_and_one_that_is_not_waits(parts: Parts) -> None:
    (record, held), (_, other) = await parts.registrar.create("n"), await parts.registrar.create("m")
    assert await parts.says(held) == 200
    for _ in range(FAILURES):
        await parts.says(GARBAGE)
    assert [await parts.says(held), await parts.says(other), await parts.says(wrong_secret(held))] == [200, 429, 429]
    parts.clock.advance(61)  # no longer fresh: it is looked up all the same
    for _ in range(FAILURES):
        await parts.says(GARBAGE)
    asked = len(parts.records.asked)
    assert await parts.says(held) == 200
    assert len(parts.records.asked) > asked
    assert await parts.says(other, "192.0.2.2") == 200, "it is the source that waits, not the key"
    assert await parts.says(other) == 200, "and now it is in memory"
    parts.records.tell(f"key:{record.id}")
    assert await parts.says(held) == 429, "dropped from memory, it is like any other"


async def test_failures_against_a_key_do_not_lock_it(parts: Parts) -> None:
    _, held = await parts.registrar.create("n")
    for _ in range(FAILURES * 2):
        await parts.says(wrong_secret(held), "203.0.113.66")
    assert await parts.says(held) == 200


async def test_holders_of_ended_keys_do_not_use_up_the_failures_of_their_neighbours(parts: Parts) -> None:
    """A forgotten job with an expired key guesses nothing, and is answered from memory."""
    _, expired = await parts.registrar.create("n", lifetime=1)
    _, other = await parts.registrar.create("m")
    parts.clock.advance(2)
    assert [await parts.says(expired) for _ in range(FAILURES * 2)] == [401] * FAILURES * 2
    assert {await parts.says("") for _ in range(FAILURES * 2)} == {401}, "without a key, nothing was tried"
    assert await parts.says(other) == 200


async def test_a_secret_that_memory_vouched_for_and_the_store_does_not_is_a_failure(parts: Parts) -> None:
    record, old = await parts.registrar.create("n")
    assert await parts.says(old) == 200
    for _ in range(FAILURES - 1):
        await parts.says(GARBAGE)
    await parts.registrar.rotate(record.id, 0)
    await parts.registrar.rotate(record.id, 0)
    assert not await parts.enters(old, fresh=True)
    assert await parts.says(GARBAGE) == 429


async def test_an_unknown_source_is_not_throttled(parts: Parts) -> None:
    assert {await parts.says(GARBAGE, None) for _ in range(FAILURES * 2)} == {401}
    assert {await parts.says(mint()[1], None) for _ in range(FAILURES * 2)} == {401}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::1", "0:0:0:0:0:0:0:1", True),
    ],
)
async def test_what_one_source_is(parts: Parts, one: str, other: str, same: bool) -> None:
    for _ in range(FAILURES):
        await parts.says(GARBAGE, one)
    assert await parts.says(GARBAGE, other) == (429 if same else 401)


async def test_guessing_at_once_finds_out_no_more(parts: Parts) -> None:
    await parts.records.shut()
    guesses = [asyncio.ensure_future(parts.says(mint()[1])) for _ in range(500)]
    await turns(50)
    assert len(parts.records.asked) == FAILURES
    parts.records.gate.set()
    answers = await asyncio.gather(*guesses)
    assert (answers.count(401), answers.count(429)) == (FAILURES, 500 - FAILURES)
    assert len(parts.records.asked) == FAILURES


async def test_many_good_keys_at_once_behind_one_address_all_get_in(parts: Parts) -> None:
    tokens = [(await parts.registrar.create("n"))[1] for _ in range(FAILURES * 5)]
    for _ in range(FAILURES - 3):
        await parts.says(GARBAGE)
    assert set(await asyncio.gather(*(parts.says(held) for held in tokens))) == {200}
    assert [await parts.says(GARBAGE) for _ in range(4)] == [401] * 3 + [429], "they cost no failure"


async def test_look_ups_that_fail_for_want_of_the_store_are_no_failures(parts: Parts) -> None:
    parts.records.down = True
    for _ in range(FAILURES * 2):
        with pytest.raises(StoreUnavailable):
            await parts.authenticate(mint()[1])
    parts.records.down = False
    assert await parts.says(mint()[1]) == 401


async def test_clients_that_leave_while_they_wait_hold_nobody_up(parts: Parts) -> None:
    await parts.records.shut()
    held = (await parts.registrar.create("n"))[1]
    guesses = [asyncio.ensure_future(parts.says(mint()[1])) for _ in range(FAILURES + 5)]
    last = asyncio.ensure_future(parts.says(held))
    await turns(50)
    for guess in guesses:  # those who are looked up, and those who wait
        guess.cancel()
    await turns(50)
    parts.records.gate.set()
    async with asyncio.timeout(30):
        assert await last == 200
    assert await parts.says(GARBAGE) == 401


async def test_one_whose_turn_came_as_it_left_passes_the_turn_on() -> None:
    throttle = Throttle(FixedClock(), failures=1)
    first = await throttle.enter(HERE)
    leaving, staying = (asyncio.ensure_future(throttle.enter(HERE)) for _ in range(2))
    await turns()
    throttle.leave(first, failed=False)
    leaving.cancel()
    async with asyncio.timeout(30):
        throttle.leave(await staying, failed=False)
    assert leaving.cancelled()


async def test_those_who_wait_are_refused_when_those_before_them_failed() -> None:
    throttle = Throttle(FixedClock(), failures=1)
    first = await throttle.enter(HERE)
    waiting = [asyncio.ensure_future(throttle.enter(HERE)) for _ in range(3)]
    await turns()
    throttle.leave(first, failed=True)
    async with asyncio.timeout(30):
        refused = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(error) for error in refused] == [Throttled] * 3


async def test_the_table_of_sources_is_bounded_and_forgets_the_idle_first() -> None:
    clock = FixedClock()
    throttle = Throttle(clock, failures=2, most=4)
    for _ in range(2):
        throttle.failed("10.0.0.1")
    clock.advance(1)
    for number in range(2, 40):
        throttle.failed(f"10.0.0.{number}")
        with pytest.raises(Throttled):  # in use, it is not forgotten
            throttle.failed("10.0.0.1")
        assert len(throttle._sources) <= 4
    clock.advance(120)
    for number in range(50, 60):
        throttle.failed(f"10.0.0.{number}")
        clock.advance(120)
    assert len(throttle._sources) <= 2, "idle ones make room before it is needed"
