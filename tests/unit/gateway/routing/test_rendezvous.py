"""Homes: the same everywhere, even, by weight, and only a target's own keys move when it comes or goes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from harness.routing import key
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.rendezvous import Rendezvous

KEYS = [key("rendezvous", n) for n in range(20_000)]
NAMES = st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=12, unique=True)


def homes(names: Sequence[str], weights: Sequence[float] | None = None, keys: Sequence[int] = KEYS) -> list[str]:
    ring, usable = Rendezvous(names), range(len(names))
    return [names[ring.order(each, usable, weights)[0]] for each in keys]


def named(count: int) -> list[str]:
    return [f"target-{n}" for n in range(count)]


@pytest.mark.parametrize("count", [2, 3, 8, 31])
def test_homes_are_even(count: int) -> None:
    found = Counter(homes(named(count)))
    mean = len(KEYS) / count
    assert len(found) == count
    assert max(abs(each - mean) for each in found.values()) < 5 * mean**0.5, "more than five sigma from even"


def test_second_homes_are_even_too() -> None:
    """Where a key goes when its home is gone is spread over all others, whatever its home was."""
    names = named(8)
    ring = Rendezvous(names)
    seconds: dict[int, Counter[int]] = {n: Counter() for n in range(8)}
    for each in KEYS:
        first, second = ring.order(each, range(8))[:2]
        seconds[first][second] += 1
    for found in seconds.values():
        mean = found.total() / 7
        assert len(found) == 7
        assert max(abs(each - mean) for each in found.values()) < 5 * mean**0.5


def test_homes_follow_weights() -> None:
    names, weights = named(4), [0.5, 1.0, 2.0, 4.5]
    found = Counter(homes(names, weights))
    for name, weight in zip(names, weights, strict=True):
        due = len(KEYS) * weight / sum(weights)
        assert abs(found[name] - due) < 5 * due**0.5


@given(NAMES, st.data())
def test_only_the_keys_of_a_target_that_leaves_move(names: list[str], data: st.DataObject) -> None:
    gone = data.draw(st.integers(0, len(names) - 1))
    keys = KEYS[:300]
    rest = [name for n, name in enumerate(names) if n != gone]
    for before, after in zip(homes(names, keys=keys), homes(rest, keys=keys), strict=True):
        assert after == before or before == names[gone]


@pytest.mark.parametrize("weight", [0.25, 1.0, 3.0])
def test_a_target_that_joins_takes_its_part_and_no_more(weight: float) -> None:
    names = named(8)
    before, after = homes(names), homes([*names, "new"], [1.0] * 8 + [weight])
    moved = [to for was, to in zip(before, after, strict=True) if to != was]
    assert set(moved) == {"new"}
    due = len(KEYS) * weight / (8 + weight)
    assert abs(len(moved) - due) < 5 * due**0.5


def test_a_weight_that_rises_only_draws_keys_to_its_target() -> None:
    """Slow start: each step brings a young target more keys and takes none from it."""
    names = named(5)
    found = [set[int]() for _ in range(4)]
    for step, weight in enumerate([0.02, 0.3, 0.7, 1.0]):
        for n, home in enumerate(homes(names, [weight, 1, 1, 1, 1], KEYS[:5000])):
            if home == names[0]:
                found[step].add(n)
    assert found[0] < found[1] < found[2] < found[3]
    assert len(found[0]) < 5000 * 0.02 / 4.02 * 2


@given(NAMES, st.data(), st.booleans())
def test_an_order_is_of_the_usable_ones_and_others_change_nothing_in_it(
    names: list[str], data: st.DataObject, heavy: bool
) -> None:
    weights = [1.0 + n % 3 for n in range(len(names))] if heavy else None
    usable = sorted(data.draw(st.sets(st.integers(0, len(names) - 1), min_size=1)))
    ring = Rendezvous(names)
    for each in KEYS[:50]:
        whole = ring.order(each, range(len(names)), weights)
        assert sorted(whole) == list(range(len(names)))
        assert ring.order(each, usable, weights) == [index for index in whole if index in usable]


@given(NAMES, st.randoms())
def test_the_order_in_the_table_hardly_matters(names: list[str], random: Random) -> None:
    """Only where two draws are equal, which of two names has one chance in some hundred thousand."""
    shuffled = list(names)
    random.shuffle(shuffled)
    pairs = zip(homes(names, keys=KEYS[:500]), homes(shuffled, keys=KEYS[:500]), strict=True)
    assert sum(one != other for one, other in pairs) <= 2


@given(st.lists(st.floats(1e-9, 1e3), min_size=2, max_size=9), st.integers(0, 2**64 - 1))
def test_whatever_the_weights_each_place_has_its_place(weights: list[float], drawn: int) -> None:
    ring = Rendezvous(named(len(weights)))
    assert sorted(ring.order(drawn, range(len(weights)), weights)) == list(range(len(weights)))
    assert all(0 < draw < float("inf") for draw in ring.draws(drawn, weights))


def test_equal_weights_need_not_be_given() -> None:
    assert homes(named(9), keys=KEYS[:2000]) == homes(named(9), [2.5] * 9, keys=KEYS[:2000])


def test_both_halves_of_a_key_count() -> None:
    names = named(8)
    low, high = homes(names, keys=list(range(1, 2001))), homes(names, keys=[n << 32 for n in range(1, 2001)])
    for found in (Counter(low), Counter(high)):
        assert len(found) == 8 and max(found.values()) < 2000 / 8 * 1.35


def test_similar_keys_have_homes_of_their_own() -> None:
    """Keys with one bit between them agree no more often than chance has it."""
    names = named(8)
    for bit in (0, 7, 31, 32, 50, 63):
        pairs = zip(homes(names, keys=KEYS[:4000]), homes(names, keys=[k ^ 1 << bit for k in KEYS[:4000]]), strict=True)
        same = sum(one == other for one, other in pairs)
        assert abs(same - 500) < 5 * 500**0.5


def test_of_many_targets_all_are_used() -> None:
    names = named(4096)
    ring = Rendezvous(names)
    assert sorted(ring.order(KEYS[0], range(4096))) == list(range(4096))
    found = Counter(ring.order(each, range(4096))[0] * 8 // 4096 for each in KEYS[:800])
    assert max(abs(each - 100) for each in found.values()) < 50, "no part of the list is preferred"


PROGRAM = """
import sys
from gateway.routing.rendezvous import Rendezvous
ring = Rendezvous([f"target-{n}" for n in range(9)])
for each in map(int, sys.stdin.read().split()):
    print(ring.order(each, range(9)), ring.order(each, range(9), [1.0 + n for n in range(9)]))
"""


def test_two_processes_draw_alike() -> None:
    keys = " ".join(map(str, KEYS[:200]))
    said = set()
    for seed in ("0", "1", "4242"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=keys,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        said.add(done.stdout)
    assert len(said) == 1
    assert len(said.pop().splitlines()) == 200
