"""`home-cost` by example: each term of the rule and each reason, with figures worked out by hand."""

from __future__ import annotations

import pytest
from harness.routing import Gateway, Replica, key
from unit.gateway.routing.asking import HOME_COST, by_place, first, follow, gateway, grouped, home, others, spilled

from gateway.routing.policies.api import Prompt
from gateway.targets.load import LoadReport, Share


def test_an_idle_fleet_serves_every_conversation_at_home() -> None:
    asked = gateway()
    for n in range(100):
        placed = asked.serve(first(n))
        assert (placed.score.reason, placed.charge) == ("home", 1000)
        assert asked.serve(follow(n)).score.index == placed.score.index


def test_a_call_leaves_home_when_the_wait_is_longer_than_what_is_saved() -> None:
    """phi .5: the home of a first call is worth half its prompt."""
    asked = gateway()
    at = home(asked, first(1))
    asked.replicas[at].load.prefill = 499
    assert asked.serve(first(1)).score.reason == "home"
    asked.replicas[at].load.prefill = 501
    assert asked.serve(first(1, 1000)).score.reason == "spill"


def test_kappa_grows_with_the_queue_and_is_capped() -> None:
    """2 + the mean of calls without a first token, all gateways' together, 8 at most."""
    for own, told, kappa in ((0, 0, 2), (4, 0, 3), (4, 4, 4), (0, 20, 7), (0, 28, 8), (400, 400, 8)):
        asked = gateway()
        asked.replicas[0].load.waiting = own
        asked.replicas[1].load.apply({"a": (LoadReport(0, told, told, 0), 0.0)}, 0.0)
        scores, at = by_place(asked, follow(1)), home(asked, follow(1))
        assert scores[others(asked, at)[0]].cost - scores[at].cost == pytest.approx(kappa * 0.7 * 1000)
        hoped, at = by_place(asked, first(1)), home(asked, first(1))
        assert hoped[others(asked, at)[0]].cost - hoped[at].cost == pytest.approx(0.5 * 1000), "a hope stays a hope"


def test_it_is_hoped_for_what_is_not_cached_at_home_alone() -> None:
    """The prefix of 2,000 of 3,000 tokens is there already: 2 * 2000, and half of the rest."""
    asked = gateway(kv_tokens=20_000)
    at = asked.serve(grouped("g", 1)).score.index
    score = by_place(asked, grouped("g", 2))[at]
    phi = 0.5 * 0.99
    assert (score.reason, score.cost) == ("home", pytest.approx(3000 - phi * 1000 - 2 * 2000))


def test_a_follow_up_expects_seven_tenths_at_home_and_learns_what_it_is() -> None:
    asked = gateway()
    placed = asked.serve(follow(1))
    assert (placed.score.cached, placed.charge) == (700, 300)
    asked.learn(placed, 1000, 0)
    assert by_place(asked, follow(2))[home(asked, follow(2))].cached == int(0.98 * 700)
    for _ in range(500):
        asked.learn(placed, 1000, 950)
    assert by_place(asked, follow(2))[home(asked, follow(2))].cached in (949, 950)


def test_only_follow_ups_that_went_home_teach_what_home_has() -> None:
    asked = gateway()
    away = others(asked, home(asked, follow(1)))[0]
    elsewhere = asked.serve(follow(1), usable=[away, home(asked, follow(1))])
    elsewhere.score.reason = "spill"
    for placed in (asked.serve(first(2)), elsewhere):
        for _ in range(100):
            asked.learn(placed, 1000, 0)
    assert by_place(asked, follow(3))[home(asked, follow(3))].cached == 700


def test_phi_is_the_share_of_follow_ups() -> None:
    asked, phi = gateway(), 0.5
    for n in range(200):
        asked.serve(follow(n))
        phi += 0.01 * (1 - phi)
    scores, at = by_place(asked, first("x")), home(asked, first("x"))
    assert scores[others(asked, at)[0]].cost - scores[at].cost == pytest.approx(phi * 1000)
    assert scores[at].cached == 0, "what may pay later is not charged less now"


def test_psi_is_the_share_of_system_prompts_that_come_again() -> None:
    """Prompts of their own each: the group's first home is worth less and less."""
    asked, psi = gateway(kv_tokens=100_000), 1.0
    for n in range(150):
        asked.serve(grouped(n, 0))
        psi *= 0.99
    prompt = Prompt(3000, key("x"), key("new"), 2000, follow_up=True)
    score = by_place(asked, prompt)[home(asked, prompt)]
    assert (score.cached, score.cost) == (2100, pytest.approx(3000 - 2 * 2100)), "as every follow-up"
    prompt, phi = grouped("new", 0), 0.5 * 0.99**150
    scores, at = by_place(asked, prompt), home(asked, prompt)
    assert scores[at].cost == pytest.approx(3000 - phi * 3000 - 2 * psi * 2000)
    assert {scores[n].cost for n in others(asked, at)} == {3000}


@pytest.mark.parametrize(("prefix", "homes"), [(1023, 4), (1024, 1)])
def test_a_system_prompt_has_a_home_when_it_is_long_enough(prefix: int, homes: int) -> None:
    """A group with a small share of the calls stays at one target as long as that has time for it."""
    asked = gateway(kv_tokens=40_000)
    used: dict[int, set[int]] = {}
    for n in range(2000):
        group = n % 50
        placed = asked.serve(grouped(group, n, prefix, 1200))
        if n > 1000:
            used.setdefault(group, set()).add(placed.score.index)
    assert sum(len(each) for each in used.values()) / 50 == pytest.approx(homes, abs=0.6)


def test_a_group_that_is_everyones_has_all_targets() -> None:
    asked = gateway(8)
    found = [0] * 8
    for n in range(2000):
        found[asked.serve(grouped("one", n)).score.index] += 1
    assert min(found) > 150


def warmed() -> tuple[Gateway, int]:
    """A gateway, and the target that a group was sent to though it has no home there."""
    asked = gateway(8)
    for n in range(400):
        asked.serve(grouped(("else", n % 40), n))
    near = {asked.serve(grouped("g", n)).score.index for n in range(3)}
    away = next(n for n in range(8) if n not in near and by_place(asked, grouped("g", 0))[n].reason == "spill")
    asked.serve(grouped("g", "sent"), usable=[away])
    return asked, away


def test_a_group_is_warm_where_it_was_sent() -> None:
    asked, away = warmed()
    score = by_place(asked, grouped("g", "next"))[away]
    assert score.cached == 2000


def test_warmth_ends_when_as_many_tokens_as_the_cache_holds_were_sent_since() -> None:
    asked, away = warmed()
    replica = asked.replicas[away]
    Share(replica.load, replica.kv_tokens - 1).end()
    assert by_place(asked, grouped("g", "next"))[away].cached == 2000
    Share(replica.load, 0).end()
    assert by_place(asked, grouped("g", "next"))[away].reason == "spill"


def test_tokens_that_others_send_cool_a_target_too() -> None:
    asked, away = warmed()
    replica = asked.replicas[away]
    replica.load.apply({"a": (LoadReport(0, 0, 0, 50), 0.0)}, 0.0)
    replica.load.apply({"a": (LoadReport(0, 0, 0, 50 + replica.kv_tokens), 0.0)}, 0.2)
    assert by_place(asked, grouped("g", "next"))[away].reason == "spill"


def test_a_restarted_gateway_makes_nothing_fresh_again() -> None:
    asked, away = warmed()
    replica = asked.replicas[away]
    replica.load.apply({"a": (LoadReport(0, 0, 0, 0), 0.0)}, 0.0)
    replica.load.apply({"a": (LoadReport(0, 0, 0, replica.kv_tokens), 0.0)}, 0.2)
    replica.load.apply({"a": (LoadReport(0, 0, 0, 0), 0.0)}, 0.4)
    assert by_place(asked, grouped("g", "next"))[away].reason == "spill"


def test_the_conversation_is_expected_where_its_last_call_went() -> None:
    asked = gateway()
    at = home(asked, first(1))
    away = spilled(asked, first(1, 900))
    placed = asked.serve(follow(1, 1500))
    assert (placed.score.index, placed.score.reason, placed.score.cached) == (away, "exception", 900)
    shorter = by_place(asked, follow(1, 400))[away]
    assert shorter.cached == 400, "never more than the whole prompt"
    assert by_place(asked, follow(1, 1500))[at].cached == 0, "home has nothing of it"


def test_an_exception_whose_target_is_gone_or_whose_tokens_are_is_none() -> None:
    asked = gateway(kv_tokens=50_000)
    at = home(asked, first(1))
    away = spilled(asked, first(1, 900))
    assert {score.reason for score in asked.scores(follow(1), usable=others(asked, away))} == {"home", "spill"}
    Share(asked.replicas[away].load, 49_999).end()
    assert by_place(asked, follow(1))[away].reason == "exception"
    Share(asked.replicas[away].load, 1).end()
    assert by_place(asked, follow(1))[away].reason == "spill"
    assert by_place(asked, follow(1))[at].cached == 700


def test_a_conversation_that_came_back_home_is_expected_there() -> None:
    asked = gateway()
    at = home(asked, first(1))
    away = spilled(asked, first(1))
    asked.serve(follow(1, 1200), usable=[at])
    scores = by_place(asked, follow(1, 1500))
    assert (scores[at].cached, scores[away].cached) == (1200, 0)


def test_calls_without_a_key_go_where_least_is_to_be_read() -> None:
    asked = gateway()
    for n, tokens in enumerate([500, 300, 100, 400]):
        Share(asked.replicas[n].load, tokens)
    placed = asked.place(Prompt(1000))
    assert (placed.score.index, placed.score.reason, placed.charge) == (2, "no_key", 1000)


def test_weights_divide_the_cost() -> None:
    asked = Gateway(HOME_COST, [Replica("a", 1.0), Replica("b", 4.0)])
    for each in asked.replicas:
        Share(each.load, 3000).first_token()
        Share(each.load, 3000)
    costs = {score.index: score.cost for score in asked.scores(Prompt(1000))}
    assert costs[0] == pytest.approx(4000) and costs[1] == pytest.approx(1000)
