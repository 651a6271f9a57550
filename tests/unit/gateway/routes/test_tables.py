"""The tables of `home-cost`: fixed memory, the oldest goes first, and shares that fade by calls, not by time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from random import Random
from types import BuiltinFunctionType, FunctionType, ModuleType

import pytest
from harness.routing import Gateway, Replica, key

from gateway.routes.load import Share
from gateway.routes.policies.api import Prompt
from gateway.routes.policies.registry import load
from gateway.routes.policies.tables import Exceptions, Groups

MEGABYTE = 1_000_000
SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType)


def size(*things: object) -> int:
    """Bytes of everything that can be reached from there."""
    seen, left, total = set[int](), list(things), 0
    while left:
        thing = left.pop()
        if id(thing) not in seen and not isinstance(thing, SHARED):
            seen.add(id(thing))
            total += sys.getsizeof(thing)
            left += gc.get_referents(thing)
    return total


def hashes(count: int, seed: int = 0) -> Sequence[int]:
    chance = Random(seed)
    return [chance.getrandbits(64) or 1 for _ in range(count)]


@pytest.mark.timeout(180)  # 10 s where nothing else runs
def test_memory_is_flat_over_a_million_distinct_prompts() -> None:
    replicas = [Replica(f"t{n}", kv_tokens=100_000) for n in range(3)]
    policy, usable, chance = load("home-cost")([each.name for each in replicas], 0), range(3), Random(2)
    sizes = []
    for n in range(1_000_000):
        hashed = chance.getrandbits(64) or 1
        prompt = Prompt(3000, hashed, hashed if n % 8 == 0 else None, 2000, n % 4 == 0)
        score = policy.pick(policy.score(prompt, replicas, usable if n % 16 else [n % 3], n * 0.01))
        if n % 16 == 0:
            Share(replicas[score.index].load, 3000 - score.cached).end()
        policy.placed(prompt, score, replicas)  # type: ignore[attr-defined]
        if n in (200_000, 999_999):
            sizes.append(size(policy))
    assert sizes[1] <= sizes[0] * 1.02
    assert sizes[1] < 2 * MEGABYTE


@pytest.mark.parametrize("targets", [1, 8, 256, 4096])
def test_full_tables_are_below_a_megabyte(targets: int) -> None:
    groups, exceptions = Groups(targets), Exceptions()
    for n, hashed in enumerate(hashes(100_000)):
        groups.sent(hashed, n % targets, n)
        exceptions.put(hashed, n % targets, n, n)
    assert size(groups, exceptions) < MEGABYTE


def test_an_idle_route_takes_next_to_nothing() -> None:
    assert size(load("home-cost")([f"t{n}" for n in range(8)], 0)) < 20_000


def test_the_oldest_of_a_bucket_is_replaced() -> None:
    """Each of four ways is used before any is taken over; among the last 4096 conversations nearly none is lost."""
    exceptions, put = Exceptions(), hashes(60_000)
    for n, hashed in enumerate(put):
        exceptions.put(hashed, 1, n, n)
    kept = [hashed in exceptions for hashed in put]
    assert sum(kept) > 16384 * 0.95
    assert sum(kept[-4096:]) > 4096 * 0.97
    assert sum(kept[:20_000]) < 100, "only where a bucket has hardly been asked for since"
    assert exceptions.get(put[-1]) == (1, 59_999, 59_999)
    assert exceptions.get(put[0]) is None


def test_what_is_used_is_not_old() -> None:
    groups, busy = Groups(2), key("busy")
    for hashed in hashes(50_000):
        groups.sent(hashed, 0, 1)
        groups.sent(busy, 1, 2)
        assert groups.find(busy) >= 0


def test_a_replaced_group_leaves_nothing_to_its_successor() -> None:
    groups = Groups(3)
    for hashed in hashes(20_000):
        known, before = groups.sent(hashed, 1, 500)
        assert not known and before < -(10**12)
        stamps = groups.stamps(groups.find(hashed))
        assert stamps[1] == 500 and max(stamps[0], stamps[2]) < -(10**12)


def test_a_group_does_not_inherit_the_share_of_the_one_it_replaced() -> None:
    """Four more keys of one bucket push out a group that had nearly all calls."""
    groups, bucket = Groups(1), [5 + 4096 * n for n in range(1, 6)]
    for _ in range(100):
        groups.sent(bucket[0], 0, 0)
    for hashed in bucket[1:]:
        groups.sent(hashed, 0, 0)
    assert groups.find(bucket[0]) < 0
    assert [groups.share(groups.find(hashed)) < 0.02 for hashed in bucket[1:]] == [True] * 4


def test_a_share_has_a_half_life_of_512_grouped_calls() -> None:
    groups, one, other = Groups(1), key(1), key(2)
    for _ in range(20_000):
        groups.sent(one, 0, 0)
    assert groups.share(groups.find(one)) == pytest.approx(1)
    for _ in range(512):
        groups.sent(other, 0, 0)
    assert groups.share(groups.find(one)) == pytest.approx(0.5, abs=1e-3)
    assert groups.share(groups.find(other)) == pytest.approx(0.5, abs=1e-3)


def test_shares_go_on_smoothly_for_ever() -> None:
    """However large the weights of late calls become."""
    groups, one, other = Groups(1), key(1), key(2)
    for n in range(400_000):
        groups.sent(one if n % 4 else other, 0, 0)
        if n > 4000 and n % 50 == 0:
            assert groups.share(groups.find(one)) == pytest.approx(0.75, abs=0.01)


def test_what_others_did_is_no_call_of_ours() -> None:
    groups, one, other = Groups(2), key(1), key(2)
    groups.sent(one, 0, 5)
    for _ in range(100):
        groups.heard(other, 1, 7)
    assert groups.share(groups.find(one)) == 1
    assert groups.share(groups.find(other)) == 0
    assert groups.stamps(groups.find(other))[1] == 7


@pytest.mark.parametrize(("known", "kept"), [(100, True), (4000, False)])
def test_a_table_for_more_targets_takes_over_all_or_nothing(known: int, kept: bool) -> None:
    """A new table must be in force at once, and what is forgotten is only an expectation."""
    old, new, put = Groups(8), Groups(64), hashes(known)
    for n, hashed in enumerate(put):
        old.sent(hashed, 3, n)
    before = [hashed for hashed in put if old.find(hashed) >= 0]
    new.inherit(old, [(3, 60)])
    assert [hashed for hashed in put if new.find(hashed) >= 0] == (before if kept else [])
    for hashed in before if kept else ():
        stamps = new.stamps(new.find(hashed))
        assert stamps[60] == put.index(hashed) and stamps.count(stamps[0]) == 63
    new.sent(put[0], 5, 9)
    assert new.stamps(new.find(put[0]))[5] == 9


def test_the_ring_holds_the_newest_32() -> None:
    asked = Gateway(load("home-cost"), [Replica("a"), Replica("b")])
    for n in range(100):
        asked.serve(Prompt(2000, key(n), key("g", n), 1500), usable=[n % 2])
    notes = asked.policy.notes()  # type: ignore[attr-defined]
    assert len(notes) == 32
    assert notes[-1].key in (key(99), key("g", 99))
    assert key(0) not in [note.key for note in notes]
