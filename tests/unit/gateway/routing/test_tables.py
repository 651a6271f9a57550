"""The tables of `home-cost`: fixed memory, the oldest goes first, and shares that fade by calls, not by time."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from random import Random
from types import BuiltinFunctionType, FunctionType, ModuleType

import pytest
from harness.routing import Gateway, Replica, key

from gateway.routing.policies.api import Prompt
from gateway.routing.policies.registry import load
from gateway.routing.policies.tables import NEVER, Exceptions, Groups
from gateway.targets.load import Share

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


def test_memory_is_flat_over_distinct_prompts() -> None:
    replicas = [Replica(f"t{n}", kv_tokens=100_000) for n in range(3)]
    policy, usable, chance = load("home-cost")([each.name for each in replicas], 0), range(3), Random(2)
    sizes = []
    for n in range(250_000):
        hashed = chance.getrandbits(64) or 1
        prompt = Prompt(3000, hashed, hashed if n % 8 == 0 else None, 2000, n % 4 == 0)
        score = policy.pick(policy.score(prompt, replicas, usable if n % 16 else [n % 3], n * 0.01))
        if n % 16 == 0:
            Share(replicas[score.index].load, 3000 - score.cached).end()
        policy.placed(prompt, score, replicas)  # type: ignore[attr-defined]
        if n in (100_000, 249_999):
            sizes.append(size(policy))
    assert sizes[1] <= sizes[0] * 1.02
    assert sizes[1] < 2 * MEGABYTE


@pytest.mark.parametrize("targets", [1, 8, 256, 4096])
def test_full_tables_are_below_a_megabyte(targets: int) -> None:
    groups, exceptions = Groups(targets), Exceptions()
    for n, hashed in enumerate(hashes(100_000)):
        groups.sent(hashed, n % targets, n, 2000)
        exceptions.put(hashed, n % targets, n, n)
    assert size(groups, exceptions) < MEGABYTE


def test_an_idle_route_takes_next_to_nothing() -> None:
    assert size(load("home-cost")([f"t{n}" for n in range(8)], 0)) < 20_000


def test_the_oldest_of_a_bucket_is_replaced() -> None:
    """Each of four ways is used before any is taken over; among the last 4096 conversations nearly none is lost."""
    exceptions, put = Exceptions(), hashes(60_000)
    for n, hashed in enumerate(put):
        exceptions.put(hashed, 1, n, n)
    kept = [exceptions.get(hashed) is not None for hashed in put]
    assert sum(kept) > 16384 * 0.95
    assert sum(kept[-4096:]) > 4096 * 0.97
    assert sum(kept[:20_000]) < 100, "only where a bucket has hardly been asked for since"
    assert exceptions.get(put[-1]) == (1, 59_999, 59_999)
    assert exceptions.get(put[0]) is None


def test_what_is_used_is_not_old() -> None:
    groups, busy = Groups(2), key("busy")
    for hashed in hashes(50_000):
        groups.sent(hashed, 0, 1, 2000)
        groups.sent(busy, 1, 2, 2000)
        assert groups.find(busy) >= 0


def test_a_replaced_group_leaves_nothing_to_its_successor() -> None:
    groups = Groups(3)
    for hashed in hashes(20_000):
        known, before = groups.sent(hashed, 1, 500, 2000)
        assert not known and before < -(10**12)
        stamps = groups.stamps(groups.find(hashed))
        assert stamps[1] == 500 and max(stamps[0], stamps[2]) < -(10**12)


def test_a_group_does_not_inherit_the_share_of_the_one_it_replaced() -> None:
    """Four more keys of one bucket push out a group that had nearly all calls."""
    groups, bucket = Groups(1), [5 + 4096 * n for n in range(1, 6)]
    for _ in range(100):
        groups.sent(bucket[0], 0, 0, 2000)
    for hashed in bucket[1:]:
        groups.sent(hashed, 0, 0, 2000)
    assert groups.find(bucket[0]) < 0
    assert [groups.share(groups.find(hashed)) < 0.02 for hashed in bucket[1:]] == [True] * 4


def test_a_share_has_a_half_life_of_512_grouped_calls() -> None:
    groups, one, other = Groups(1), key(1), key(2)
    for _ in range(20_000):
        groups.sent(one, 0, 0, 2000)
    everyone = groups.share(groups.find(one))
    for _ in range(512):
        groups.sent(other, 0, 0, 2000)
    assert groups.share(groups.find(one)) == pytest.approx(everyone / 2, abs=1e-3)
    assert groups.share(groups.find(other)) == pytest.approx(everyone / 2, abs=1e-3)


def test_shares_are_as_if_128_calls_of_other_groups_had_just_come() -> None:
    """One call is no popularity; a group that has all calls has nearly all."""
    groups, one = Groups(1), key(1)
    groups.sent(one, 0, 0, 2000)
    assert groups.share(groups.find(one)) == pytest.approx(1 / 129, rel=0.01)
    for _ in range(127):
        groups.sent(one, 0, 0, 2000)
    assert 0.45 < groups.share(groups.find(one)) < 0.5, "earlier calls have begun to fade"
    for _ in range(20_000):
        groups.sent(one, 0, 0, 2000)
    of_late = 1 / (2 ** (1 / 512) - 1)
    assert groups.share(groups.find(one)) == pytest.approx(of_late / (of_late + 128))


def test_shares_go_on_smoothly_for_ever() -> None:
    """However large the weights of late calls become."""
    groups, one, other = Groups(1), key(1), key(2)
    for n in range(400_000):
        groups.sent(one if n % 4 else other, 0, 0, 2000)
        if n > 4000 and n % 50 == 0:
            assert groups.share(groups.find(one)) == pytest.approx(3 * groups.share(groups.find(other)), rel=0.04)
            assert groups.share(groups.find(one)) == pytest.approx(0.75 * 738 / (738 + 128), abs=0.01)


def test_what_others_did_is_no_call_of_ours() -> None:
    groups, one, other = Groups(2), key(1), key(2)
    groups.sent(one, 0, 5, 2000)
    for _ in range(100):
        groups.heard(other, 1, 7, 2000)
    assert groups.share(groups.find(one)) == pytest.approx(1 / 129, rel=0.01)
    assert groups.share(groups.find(other)) == 0
    assert groups.stamps(groups.find(other))[1] == 7


def test_a_prefix_is_counted_where_its_last_call_went_as_long_as_it_is_warm_there() -> None:
    groups = Groups(3)
    groups.sent(key("a"), 0, 100, 6000)
    groups.sent(key("b"), 0, 200, 500)
    groups.heard(key("c"), 2, 50, 3000)
    assert groups.residents([0, 0, 0]) == [6500, 0, 3000]
    assert groups.residents([101, 0, 50]) == [500, 0, 3000]
    assert groups.residents([0, 0, 51]) == [6500, 0, 0]
    groups.sent(key("a"), 1, 0, 6000)
    groups.heard(key("b"), 2, 60, 700)
    assert groups.residents([0, 0, 0]) == [0, 6000, 3700], "the length that was told last"
    groups.sent(key("a"), 0, 300, 6000)
    assert groups.residents([0, 0, 0]) == [6000, 0, 3700]


@pytest.mark.parametrize("count", [100, 300, 3000, 20_000])
def test_each_group_is_counted_once_however_much_the_table_has_grown(count: int) -> None:
    """Where it doubles, what it holds is there twice."""
    groups, put = Groups(4), hashes(count)
    for n, hashed in enumerate(put):
        groups.sent(hashed, n % 4, n, 1500)
    kept = [n % 4 for n, hashed in enumerate(put) if groups.find(hashed) >= 0]
    assert groups.residents([0] * 4) == [1500 * kept.count(target) for target in range(4)]
    for hashed in put:
        groups.sent(hashed, 2, 10**6, 1500)
    kept = [2 for hashed in put if groups.find(hashed) >= 0]
    assert groups.residents([0] * 4) == [0, 0, 1500 * len(kept), 0]


def test_a_successor_counts_the_prefixes_of_targets_that_stay() -> None:
    old, new = Groups(3), Groups(4)
    for n, name in enumerate("abcdef"):
        old.sent(key(name), n % 3, 10 + n, 1000 * (n + 1))
    new.inherit(old, [(0, 3), (2, 0)])
    assert new.residents([0] * 4) == [3000 + 6000, 0, 0, 1000 + 4000]
    assert new.residents([13, 0, 0, 13]) == [6000, 0, 0, 4000]
    new.sent(key("b"), 1, 5, 2000)
    new.sent(key("g"), 1, 5, 100)
    assert new.residents([0] * 4) == [9000, 2100, 0, 5000]


@pytest.mark.parametrize(("known", "kept"), [(100, True), (4000, False)])
def test_a_table_for_more_targets_takes_over_all_or_nothing(known: int, kept: bool) -> None:
    """A new table must be in force at once, and what is forgotten is only an expectation."""
    old, new, put = Groups(8), Groups(64), hashes(known)
    for n, hashed in enumerate(put):
        old.sent(hashed, 3, n, 2000)
    before = [hashed for hashed in put if old.find(hashed) >= 0]
    new.inherit(old, [(3, 60)])
    assert [hashed for hashed in put if new.find(hashed) >= 0] == (before if kept else [])
    for hashed in before if kept else ():
        stamps = new.stamps(new.find(hashed))
        assert stamps[60] == put.index(hashed) and stamps.count(stamps[0]) == 63
    new.sent(put[0], 5, 9, 2000)
    assert new.stamps(new.find(put[0]))[5] == 9


def test_the_ring_holds_the_newest_32() -> None:
    asked = Gateway(load("home-cost"), [Replica("a"), Replica("b")])
    for n in range(100):
        asked.serve(Prompt(2000, key(n), key("g", n), 1500), usable=[n % 2])
    notes = asked.policy.notes()  # type: ignore[attr-defined]
    assert len(notes) == 32
    assert notes[-1].key in (key(99), key("g", 99))
    assert key(0) not in [note.key for note in notes]


def test_where_a_group_was_sent_is_marked_as_long_as_its_stamps_are_known() -> None:
    """While the table grows, when one group takes another's slot, and after targets have come and gone."""
    chance, groups = Random(1), Groups(3)
    put = hashes(9000)
    for number, hashed in enumerate(put):
        (groups.sent if chance.random() < 0.5 else groups.heard)(hashed, chance.randrange(3), number, 2000)
    heir = Groups(4)
    heir.inherit(groups, [(0, 3), (2, 1)])
    for table in (groups, heir):
        known = [slot for hashed in put if (slot := table.find(hashed)) >= 0]
        assert 1000 < len(known) < len(put), "some have had to go"
        for slot in known:
            stamps, sent, share, calls = table.known(slot)
            assert list(sent) == [int(stamp != NEVER) for stamp in stamps]
            assert (list(stamps), share, calls) == (list(table.stamps(slot)), table.share(slot), table.calls(slot))
