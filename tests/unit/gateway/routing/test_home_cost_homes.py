"""`home-cost`: how many homes a group has, and where: no target holds more than its part of all prefixes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest
from harness.routing import Gateway, Placed, Replica, exchange, fleet
from unit.gateway.routing.asking import HOME_COST, by_place, gateway, grouped

from gateway.routing.policies.api import Prompt
from gateway.targets.load import Share

FORTY = range(40)


def document(group: object, n: object = 0, prefix: int = 6000) -> Prompt:
    """A question to a long system prompt."""
    return grouped(group, n, prefix, prefix + 200)


def homes(of: Gateway, prompt: Prompt, now: float = 0.0, usable: Sequence[int] | None = None) -> set[int]:
    return {score.index for score in of.scores(prompt, now, usable) if score.reason == "home"}


def all_homes(of: Gateway, group: object, prefix: int = 6000) -> set[int]:
    """Of many conversations of the group."""
    return set().union(*(homes(of, document(group, n, prefix)) for n in range(100)))


def settled(of: Gateway, groups: Sequence[object], prefix: int = 6000) -> Counter[int]:
    """How many of the groups each target is home to, once each has been called."""
    placed = [of.serve(document(group, 0, prefix)) for group in groups]
    assert {each.score.reason for each in placed} == {"home"}
    return Counter(each.score.index for each in placed)


@pytest.mark.parametrize("seed", range(10))
def test_no_target_is_home_to_more_than_its_part(seed: int) -> None:
    """Hashing alone would give one of four 15 of 40 groups as often as not."""
    found = settled(gateway(4), [(seed, n) for n in FORTY])
    assert sum(found.values()) == 40 and max(found.values()) <= 11


@pytest.mark.parametrize("seed", range(5))
def test_a_part_is_as_large_as_the_weight(seed: int) -> None:
    asked = Gateway(HOME_COST, [Replica("a"), Replica("b"), Replica("c", weight=2.0)])
    found = settled(asked, [(seed, n) for n in FORTY])
    assert 17 <= found[2] <= 21 and max(found[0], found[1]) <= 11


@pytest.mark.parametrize("seed", range(5))
def test_it_is_tokens_that_are_shared_out(seed: int) -> None:
    """One prefix may be as long as ten others."""
    chance, asked, held = Random(seed), gateway(4, kv_tokens=250_000), Counter[int]()
    for n in range(80):
        prefix = chance.choice([2000, 20_000])
        held[asked.serve(document((seed, n), 0, prefix)).score.index] += prefix
    assert max(held.values()) <= sum(held.values()) / 4 + 1.5 * 20_000


def test_a_group_stays_at_its_home() -> None:
    """Whatever others do meanwhile."""
    chance, asked = Random(3), gateway(4, kv_tokens=200_000)
    at = {group: asked.serve(document(group)).score.index for group in FORTY}
    for n in range(600):
        group = chance.randrange(80)
        placed = asked.serve(document(group, n), n * 0.1)
        assert at.setdefault(group, placed.score.index) == placed.score.index
        assert placed.score.reason == "home"


def test_a_long_prefix_has_one_home_and_a_short_popular_one_all() -> None:
    """A fourth of 8 million tokens, shared out by calls: a prefix of 60,000 with a fortieth of them has room for no
    second copy, one of 1,100 that is asked for as often for forty-five."""
    asked = gateway(8)
    for n in range(2000):
        asked.serve(document(n % 40, n, 1100 if n % 40 == 0 else 60_000), n * 0.1)
    assert all_homes(asked, 0, 1100) == set(range(8))
    assert [len(all_homes(asked, group, 60_000)) for group in range(1, 40)] == [1] * 39


@pytest.mark.parametrize(
    ("calls", "prefix", "kv_tokens", "count"),
    [
        (0, 1024, 1_000_000, 1),  # not known: no popularity
        (1, 60_000, 1_000_000, 1),
        (1, 1024, 1_000_000, 1),  # there is room for 1 / 129 of 2,000,000 / 1024, but one call has not paid for it
        (5, 1024, 1_000_000, 3),  # two calls for each further one
        (14, 1024, 1_000_000, 7),  # a call counts a little less with each that comes after it
        (15, 1024, 1_000_000, 8),
        (16, 6000, 120_000, 5),  # .11 of 240,000 / 6000 is 4.4, and one
        (128, 10_000, 20_000, 4),  # .46 of 8 targets are 3.7: there is no room, but there are calls
        (5000, 10_000, 20_000, 7),  # .85 of 8 targets are 6.8
    ],
)
def test_homes_are_as_many_as_calls_need_or_caches_have_room_for(
    calls: int, prefix: int, kv_tokens: int, count: int
) -> None:
    asked = gateway(8, kv_tokens=kv_tokens)
    for n in range(calls):
        asked.serve(document("g", n, prefix))
    assert len(all_homes(asked, "g", prefix)) == count


@pytest.mark.parametrize("outstanding", [1, 16, 120])
def test_when_a_fleet_has_grown_groups_move_to_the_new_targets(outstanding: int) -> None:
    """From 4 targets to 8, where nobody is busy and where all are; each group is read anew about once."""
    chance, asked, now, running = Random(outstanding), gateway(4, kv_tokens=80_000), 0.0, list[Placed]()

    def work(calls: int) -> Counter[str]:
        nonlocal now
        for _ in range(calls):
            now += 0.05
            running.append(asked.place(document(chance.randrange(40), now), now))
            while len(running) > outstanding:
                running.pop(0).share.end()
        held = Counter[str]()
        for group in FORTY:
            (at,) = homes(asked, document(group, "look"), now + 1)
            held[asked.replicas[at].name] += 1
        return held

    small = work(400)
    assert max(small.values()) <= 12
    names = [each.name for each in asked.replicas]
    grown = Gateway(HOME_COST, [*asked.replicas, *(Replica(f"t{n}", kv_tokens=80_000) for n in range(4, 8))])
    grown.policy.inherit(asked.policy, names)  # type: ignore[attr-defined]
    asked = grown
    large = work(1200)
    assert max(large.values()) <= 9, "the old ones keep no more than half as much again as is their part"
    anew = sum(each.load.clock for each in asked.replicas[4:])
    assert anew < 100 * 6000


def test_a_target_that_holds_a_little_more_than_its_part_keeps_what_it_has() -> None:
    """Twelve of 40 groups on one of four targets: there is nothing to gain that reading them anew would not cost."""
    asked = gateway(4, kv_tokens=150_000)
    for n in FORTY:
        asked.serve(document(n), usable=[0 if n < 13 else 1 + n % 3])
    assert [homes(asked, document(n, "x"), 5.0) for n in range(13)] == [{0}] * 13


def test_of_two_places_where_a_group_is_cached_the_one_with_room_is_its_home() -> None:
    asked = gateway(4, kv_tokens=150_000)
    for n in FORTY:
        asked.serve(document(n), usable=[0 if n < 14 else 1 + n % 3])
    for n in range(14):
        asked.serve(document(n, "elsewhere"), usable=[1 + n % 3])
        asked.serve(document(n, "back"), usable=[0])
    found = [homes(asked, document(n, "x"), 5.0) for n in range(14)]
    assert all(each == {1 + n % 3} for n, each in enumerate(found))


def test_a_group_that_two_gateways_met_at_once_has_one_home_when_they_have_told() -> None:
    """They did not see the same targets then."""
    apart = 0
    for n in range(20):
        one, other = fleet(HOME_COST, 2, 4, kv_tokens=100_000)
        one.serve(document(n), usable=[0, 1, 2])
        other.serve(document(n), usable=[1, 2, 3])
        before = homes(one, document(n, "x")), homes(other, document(n, "x"))
        apart += before[0] != before[1]
        exchange([one, other], 0.2)
        (at,) = homes(one, document(n, "x"), 2.0)
        assert {at} == homes(other, document(n, "x"), 2.0) and {at} in before
        for each in (one, other):
            placed = each.serve(document(n, "y"), 2.0)
            assert (placed.score.index, placed.score.cached) == (at, 6000)
    assert apart > 5


def test_gateways_that_know_different_groups_agree_on_nearly_all_they_share() -> None:
    """What each knows of alone fills other targets for each; where they differ the group is cached at both homes."""
    before = after = 0
    for seed in range(20):
        one, other = fleet(HOME_COST, 2, 4, kv_tokens=100_000)
        for n in range(8):
            one.serve(document(("one", seed, n)))
            other.serve(document(("other", seed, n)))
        shared = [document((seed, n), "x") for n in range(12)]
        for n in range(12):
            one.serve(document((seed, n)))
            other.serve(document((seed, n)))
        before += sum(homes(one, each) != homes(other, each) for each in shared)
        exchange([one, other], 0.2)
        after += sum(homes(one, each, 2.0) != homes(other, each, 2.0) for each in shared)
        assert {of.serve(each, 2.0).score.cached for each in shared for of in (one, other)} == {6000}
    assert after <= 0.08 * 240 < 0.1 * 240 < before


def test_what_others_hold_counts() -> None:
    """Forty groups that only the other gateway was asked for: the next forty go where these are not."""
    one, other = fleet(HOME_COST, 2, 4)
    held = Counter[int]()
    for n in FORTY:
        held[other.serve(document(("others", n)), usable=[n % 2]).score.index] += 1
        exchange([one, other], 0.0)
    found = settled(one, [("ours", n) for n in range(30)])
    assert held == {0: 20, 1: 20} and found[2] + found[3] >= 28


def test_a_miss_ages_what_is_cached_there() -> None:
    """It was expected to find all its prefix, and had all to read: the cache has turned over by that much."""
    asked = gateway(4, kv_tokens=20_000)
    at = asked.serve(document("g", 0)).score.index
    warm = asked.serve(document("g", 1))
    assert (warm.score.index, warm.charge) == (at, 200)
    before = asked.replicas[at].load.clock
    asked.learn(warm, 6200, 0)
    assert asked.replicas[at].load.clock == before + 6000
    Share(asked.replicas[at].load, 13_999).end()
    assert by_place(asked, document("g", 2))[at].cached == 6000
    Share(asked.replicas[at].load, 1).end()
    assert by_place(asked, document("g", 2))[at].cached == 0, "it would be warm still if the miss were not known"


def test_no_group_is_at_home_on_a_target_that_cannot_be_used() -> None:
    """While it is away its prefixes are at home elsewhere, as evenly; when it is back they are at home there again."""
    asked = gateway(4, kv_tokens=100_000)
    at = {n: asked.serve(document(n)).score.index for n in FORTY}
    left = [1, 2, 3]
    assert all(homes(asked, document(n, "x"), 1.0, left) <= set(left) for n in FORTY)
    found = Counter(asked.serve(document(n, "y"), 1.0, left).score.index for n in FORTY)
    assert set(found) == set(left) and max(found.values()) <= 15
    stayed = [n for n in FORTY if at[n] != 0]
    assert [homes(asked, document(n, "z"), 2.0) for n in stayed] == [{at[n]} for n in stayed]


def test_prefixes_that_have_cooled_do_not_count_a_second_later() -> None:
    asked = gateway(2, kv_tokens=100_000)
    for n in range(12):
        asked.serve(document(("old", n)), 0.5, usable=[0])
    assert {asked.serve(document(("new", n)), 0.6).score.index for n in range(8)} == {1}
    Share(asked.replicas[0].load, 100_000).end()
    assert homes(asked, document("next"), 1.4) == {1}, "what was counted at .5 is good for a second"
    assert homes(asked, document("next"), 1.6) == {0}


def test_a_reload_keeps_count() -> None:
    """Eighty groups, half of them before it: no target has more than its part of all."""
    old = gateway(4)
    found = settled(old, [("before", n) for n in FORTY])
    new = Gateway(HOME_COST, list(reversed(old.replicas)), 5)
    new.policy.inherit(old.policy, [each.name for each in old.replicas])  # type: ignore[attr-defined]
    after = settled(new, [("after", n) for n in FORTY])
    assert max(found[n] + after[3 - n] for n in range(4)) <= 21
    assert {new.serve(document(("before", n), "x"), 2.0).score.cached for n in FORTY} == {6000}
