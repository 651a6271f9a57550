"""The simulated engine: one prompt after another, prefixes remembered while there is room."""

from __future__ import annotations

import pytest

from gateway.simulate.replica import PrefixCache, Replica


def test_a_prefix_ends_where_something_else_begins() -> None:
    cache = PrefixCache(1000)
    cache.use([(1, 100), (2, 50), (3, 25)])
    assert cache.cached([(1, 100), (2, 50), (3, 25), (4, 1)]) == 175
    assert cache.cached([(1, 100), (9, 50), (3, 25)]) == 100
    assert cache.cached([(2, 50)]) == 50  # ids name text after text: the same id has the same beginning
    assert cache.cached([(9, 50), (1, 100)]) == 0


def test_what_was_not_used_for_longest_is_forgotten_first() -> None:
    cache = PrefixCache(300)
    for segment in (1, 2, 3):
        cache.use([(segment, 100)])
    cache.use([(1, 100)])
    cache.use([(4, 100)])
    assert [cache.cached([(segment, 100)]) for segment in (1, 2, 3, 4)] == [100, 0, 100, 100]


def test_of_one_prompt_the_end_is_forgotten_before_the_beginning() -> None:
    cache = PrefixCache(300)
    cache.use([(1, 100), (2, 100), (3, 100)])
    cache.use([(4, 100)])
    assert cache.cached([(1, 100), (2, 100), (3, 100)]) == 200


def test_using_a_prompt_again_takes_no_more_room() -> None:
    cache = PrefixCache(300)
    for _ in range(10):
        cache.use([(1, 100), (2, 200)])
    assert cache.cached([(1, 100), (2, 200)]) == 300


def test_a_prompt_larger_than_the_cache_leaves_its_beginning() -> None:
    cache = PrefixCache(250)
    cache.use([(1, 100), (2, 100), (3, 100)])
    assert cache.cached([(1, 100), (2, 100), (3, 100)]) == 200


def test_prompts_are_read_one_after_another() -> None:
    replica = Replica("a", 1.0, 1000.0, 10_000)
    assert replica.take([(1, 500)], 500, 0.0) == (0.5, 0)
    assert replica.take([(2, 500)], 500, 0.1) == (1.0, 0)
    assert replica.take([(3, 500)], 500, 2.0) == (2.5, 0)


def test_only_what_is_not_cached_is_read_and_always_something() -> None:
    replica = Replica("a", 1.0, 1000.0, 10_000)
    replica.take([(1, 400)], 400, 0.0)
    assert replica.take([(1, 400), (2, 100)], 500, 1.0) == (pytest.approx(1.1), 400)
    assert replica.take([(1, 400), (2, 100)], 500, 2.0) == (pytest.approx(2.001), 499)


def test_a_target_of_twice_the_weight_reads_twice_as_fast() -> None:
    assert Replica("a", 2.0, 1000.0, 10_000).take([(1, 500)], 500, 0.0) == (0.25, 0)
