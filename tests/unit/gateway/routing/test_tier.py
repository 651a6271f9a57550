"""Targets that are equally welcome: who can take a call, canaries, and what their policy is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from harness.routing import key as hashed
from unit.gateway.routing.building import PROMPT, World, eject, one, targets

from backends.api import Facts
from gateway.routing.filters import EJECTED
from gateway.routing.policies.api import Candidate, Policy, Prompt, Score
from gateway.routing.tier import Tier
from gateway.targets.load import Share


class Told:
    """A policy that takes the last and keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []

    def score(self, prompt: Prompt, targets: Sequence[Candidate], usable: Sequence[int], now: float) -> list[Score]:
        return [Score(place, -float(place), cached=place) for place in usable]

    def pick(self, scores: Sequence[Score]) -> Score:
        return scores[-1]

    def placed(self, prompt: Prompt, score: Score, targets: Sequence[Candidate]) -> None:
        self.events.append(("placed", score.index))

    def told(self, prompt: Prompt, score: Score, prompt_tokens: int, cached_tokens: int) -> None:
        self.events.append(("told", cached_tokens))


def world(*names: str, policy: Policy | None = None, **canaries: float) -> World:
    listed = [targets(name, **({"canary": canaries[name]} if name in canaries else {}))[0] for name in names]
    return World(one(targets=listed), policy=policy)


def tier(*names: str, **canaries: float) -> Tier:
    return world(*names, **canaries).route.tiers[0]


def conversation(number: int, **values: object) -> Prompt:
    return Prompt(10, hashed("c", number), **values)  # type: ignore[arg-type]


def test_what_cannot_take_the_call_is_left_out() -> None:
    of = world("a", "b", "c", "d")
    of["a"].ordered("drained", 1)
    eject(of["c"])
    assert of.route.tiers[0].usable(PROMPT, of.clock()) == [1, 3]
    assert of.route.tiers[0].usable(PROMPT, of.clock(), [of["b"]]) == [3]
    assert of.route.tiers[0].usable(PROMPT, of.clock(), (), [EJECTED]) == [1, 2, 3]


@pytest.mark.parametrize(
    ("state", "busy"), [("open", False), ("down", False), ("drained", False), ("full", True), ("resting", True)]
)
def test_waiting_helps_only_where_a_target_has_no_room_now(state: str, busy: bool) -> None:
    of = world("a", "b")
    of["b"].ordered("drained", 1)
    match state:
        case "down":
            of["a"].probed("away")
        case "drained":
            of["a"].ordered("drained", 1)
        case "full":
            Share(of["a"].load, 10**6)
        case "resting":
            of["a"].rest(1.0)
    assert of.route.tiers[0].busy(PROMPT, of.clock()) == busy
    assert not of.route.tiers[0].busy(PROMPT, of.clock(), [of["a"]])


def test_a_target_alone_needs_no_policy() -> None:
    told = Told()
    of = world("a", policy=told)
    single = of.route.tiers[0]
    score = single.pick(PROMPT, [0], of.clock())
    assert (score.index, score.reason) == (0, "only")
    single.placed(PROMPT, score)
    assert not told.events and not single.keyed


def test_the_last_usable_one_of_several_is_scored_all_the_same() -> None:
    """What is cached there decides what it is charged, and the policy must learn where the call went."""
    told = Told()
    of = world("a", "b", "c", policy=told)
    some = of.route.tiers[0]
    score = some.pick(PROMPT, [1], of.clock())
    assert (score.index, score.cached) == (1, 1)
    some.placed(PROMPT, score)
    some.told(PROMPT, score, 100, 60)
    assert told.events == [("placed", 1), ("told", 60)] and some.keyed


def test_policies_that_remember_nothing_are_told_nothing() -> None:
    of = world("a", "b")
    round_robin = of.route.tiers[0]
    round_robin.placed(PROMPT, Score(0, 0.0))
    round_robin.told(PROMPT, Score(0, 0.0), 10, 5)


def test_a_slower_target_is_full_with_less_to_read() -> None:
    """A weight says how fast a target is beside the others of its tier, and nothing else."""
    of = World(one(targets=[*targets("a", weight=4), *targets("b", weight=1), *targets("c", weight=2)]))
    assert [of[name].prefill_limit for name in "abc"] == [480_000, 120_000, 240_000]
    alone = World(one(targets=targets("a", weight=0.5), timeouts={"first_output": "3s", "whole": "3s"}))
    assert alone["a"].prefill_limit == 480_000, "in how long a call must be answered changes nothing"


def test_a_short_context_is_only_short_for_long_calls() -> None:
    of = world("a", "b")
    of["a"].learned(Facts(context=100))
    of.route.measure()
    for context, usable in ((100, [0, 1]), (101, [1]), (100, [0, 1])):
        assert of.route.tiers[0].usable(Prompt(10, context=context), of.clock()) == usable


def test_a_canary_has_its_part_of_the_conversations_to_itself() -> None:
    some, went = tier("a", "b", "c", c=0.1), Counter[str]()
    for number in range(3000):
        prompt = conversation(number)
        usable = some.usable(prompt, 0.0)
        assert usable in ([0, 1], [2])
        assert some.usable(prompt, 0.0) == usable, "a conversation stays on its side"
        went["canary" if usable == [2] else "others"] += 1
    assert went["canary"] == pytest.approx(300, abs=60)


def test_several_canaries_have_parts_of_their_own() -> None:
    some = tier("a", "b", "c", a=0.2, c=0.3)
    went = Counter(tuple(some.usable(conversation(number), 0.0)) for number in range(3000))
    assert went[(0,)] == pytest.approx(600, abs=100) and went[(2,)] == pytest.approx(900, abs=100)
    assert went[(1,)] == 3000 - went[(0,)] - went[(2,)]


def test_without_a_key_a_call_is_not_for_canaries() -> None:
    assert tier("a", "b", b=0.5).usable(PROMPT, 0.0) == [0]


def test_a_named_session_is_a_key() -> None:
    some = tier("a", "b", b=0.5)
    went = {tuple(some.usable(Prompt(10, session=hashed("s", number)), 0.0)) for number in range(50)}
    assert went == {(0,), (1,)}


def test_a_canary_that_cannot_leaves_its_calls_to_the_others_and_the_other_way_round() -> None:
    of = world("a", "b", b=0.5)
    some = of.route.tiers[0]
    mine = next(prompt for prompt in map(conversation, range(50)) if some.usable(prompt, 0.0) == [1])
    of["b"].probed("away")
    assert some.usable(mine, 0.0) == [0] and some.usable(PROMPT, 0.0) == [0]
    of["b"].probed("")
    of["a"].probed("away")
    assert some.usable(mine, 0.0) == [1] and some.usable(PROMPT, 0.0) == [1]


def test_a_retry_leaves_the_canary() -> None:
    of = world("a", "b", "c", c=0.5)
    some = of.route.tiers[0]
    mine = next(prompt for prompt in map(conversation, range(50)) if some.usable(prompt, 0.0) == [2])
    assert some.usable(mine, 0.0, [of["c"]]) == [0, 1]


def test_a_tier_takes_over_from_one_of_the_same_policy() -> None:
    before, after, other = (
        World(one("a", "b", policy=policy)) for policy in ("home-cost", "home-cost", "least-tokens")
    )
    prompt = Prompt(1000, hashed("c"), follow_up=True)
    old, new = before.route.tiers[0], after.route.tiers[0]
    at = old.pick(prompt, [0, 1], 0.0).index
    old.placed(prompt, Score(1 - at, 0.0, reason="spill"))
    new.inherit(old)
    assert {
        score.index for score in new.policy.score(prompt, new.targets, [0, 1], 0.0) if score.reason == "exception"
    } == {1 - at}
    other.route.tiers[0].inherit(old)
    old.inherit(other.route.tiers[0])


def test_an_outlook_tells_of_every_target_why_or_at_which_cost() -> None:
    told = Told()
    of = world("a", "b", "c", "d", policy=told, d=0.3)
    some = of.route.tiers[0]
    of["a"].ordered("drained", 1)
    looks = {look.target.name: look for look in some.outlooks(PROMPT, of.clock())}
    assert {name: look.refused for name, look in looks.items()} == {"a": "drained", "b": "", "c": "", "d": "canary"}
    assert {name for name, look in looks.items() if look.score is not None} == {"b", "c"}
    assert not told.events
