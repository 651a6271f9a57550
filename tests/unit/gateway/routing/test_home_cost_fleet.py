"""`home-cost` among several gateways, with young targets, with many, and over a reload."""

from __future__ import annotations

from random import Random

from harness.routing import Gateway, Replica, exchange, fleet, key
from unit.gateway.routing.asking import HOME_COST, by_place, first, follow, gateway, grouped, home, spilled

from gateway.routing.policies.api import Prompt
from gateway.targets.load import Share


def test_two_gateways_with_equal_tables_pick_alike() -> None:
    """Seeds differ, and so do the times at which they were started."""
    chance, (one, other) = Random(1), fleet(HOME_COST, 2, 8)
    for n in range(600):
        prompt = Prompt(
            3000 + chance.randrange(3000),
            key(chance.randrange(80)),
            key("g", chance.randrange(6)),
            chance.choice([0, 2000]),
            chance.random() < 0.5,
        )
        for each, load_of in enumerate(chance.randrange(9000) for _ in range(8)):
            one.replicas[each].load.prefill = other.replicas[each].load.prefill = load_of
        found, same = one.serve(prompt, n * 0.1), other.serve(prompt, n * 0.1)
        assert (found.score.index, found.score.reason) == (same.score.index, same.score.reason)


def test_what_one_gateway_did_the_others_expect() -> None:
    one, other = fleet(HOME_COST, 2, 8)
    away = spilled(one, first(1, 900))
    cold = one.serve(grouped("g", 1), usable=[away]).score.index
    exchange([one, other], 0.0)
    score = by_place(other, follow(1, 1500))[away]
    assert (score.reason, score.cached) == ("exception", 900)
    assert by_place(other, grouped("g", 2))[cold].cached == 2000
    exchange([one, other], 0.2)
    assert one.policy.notes() == other.policy.notes() == [], "what was heard is not told again"  # type: ignore[attr-defined]


def test_what_was_heard_is_stamped_with_the_own_clock() -> None:
    """A gateway that has sent far more than the teller knows nothing of the teller's clock, nor needs to."""
    one, other = fleet(HOME_COST, 2, 4, kv_tokens=20_000)
    away = spilled(one, first(1))
    Share(other.replicas[away].load, 5_000_000).end()
    notes = one.policy.notes()  # type: ignore[attr-defined]
    other.policy.heard(notes, other.replicas)  # type: ignore[attr-defined]
    assert by_place(other, follow(1))[away].reason == "exception"
    Share(other.replicas[away].load, 20_000).end()
    assert by_place(other, follow(1))[away].reason == "spill", "applied once: nothing renews it"


def test_a_young_target_is_home_for_few_conversations() -> None:
    """A fiftieth of its part at once, half of it after half the time, all of it after 30 s."""
    asked = gateway(4)
    asked.replicas[1].since = 100.0
    at_home = [sum(asked.scores(first(n), 100.0 + age)[0].index == 1 for n in range(1000)) for age in (0, 15, 30)]
    assert at_home[0] < 25 < 90 < at_home[1] < 200 < at_home[2] < 300


def test_a_young_target_is_still_sent_what_it_reads_soonest() -> None:
    asked = gateway(4)
    asked.replicas[1].since = 100.0
    for n in (0, 2, 3):
        Share(asked.replicas[n].load, 30_000)
    assert asked.place(first(1), 100.0).score.index == 1


def test_many_targets_are_not_all_scored_and_calls_still_go_home() -> None:
    asked = gateway(256)
    for n in range(300):
        placed = asked.serve(grouped(n % 40, n), n * 0.1)
        assert len(asked.scores(grouped(n % 40, n), n * 0.1)) <= 32
        assert placed.score.reason in ("home", "warm")


def test_of_many_targets_the_warm_one_is_found_among_those_gone_cold() -> None:
    """A group that has been everywhere in its time is in one cache now: that one is scored."""
    asked = gateway(64, kv_tokens=100_000)
    for n in range(64):
        asked.serve(grouped("g", n), usable=[n])
        Share(asked.replicas[n].load, 200_000).end()
    asked.serve(grouped("g", "again"), usable=[37])
    found = [by_place(asked, grouped("g", n)) for n in range(100, 120)]
    assert all(37 in scores and scores[37].cached == 2000 for scores in found)


def test_a_reload_keeps_the_tables_of_targets_that_stay() -> None:
    old = gateway(4)
    at = home(old, first(1))
    away = old.replicas[spilled(old, first(1, 900))]
    for n in range(4):
        old.serve(grouped("g", n), usable=[n])
    learned = old.serve(follow(2))
    for _ in range(200):
        old.learn(learned, 1000, 100)
    names = [each.name for each in old.replicas]
    stay = [Replica("new"), *(each for each in reversed(old.replicas) if each.name in (away.name, names[at]))]
    new = Gateway(HOME_COST, stay)
    new.policy.inherit(old.policy, names)  # type: ignore[attr-defined]
    scores = by_place(new, follow(1, 1500))
    assert {stay[place].name: score.cached for place, score in scores.items() if score.cached} == {away.name: 900}
    warm = {stay[place].name for place, score in by_place(new, grouped("g", 9)).items() if score.cached}
    assert warm == {away.name, names[at]}
    at_home = by_place(new, follow(3))[home(new, follow(3))]
    assert at_home.cached in (110, 111, 112), "what was learned: .1 + .6 * .98^200"


def test_a_removed_targets_entries_mislead_nobody() -> None:
    """Its place in the new table is another target's."""
    old = gateway(3)
    away = old.replicas[spilled(old, first(1, 900))]
    kept = [each for each in old.replicas if each is not away]
    new = Gateway(HOME_COST, [*kept, Replica("t9")])
    new.policy.inherit(old.policy, [each.name for each in old.replicas])  # type: ignore[attr-defined]
    assert {score.reason for score in new.scores(follow(1))} == {"home", "spill"}
