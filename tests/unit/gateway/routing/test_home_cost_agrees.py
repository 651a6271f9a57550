"""`home-cost` decides as its page says, call by call, on workloads nobody thought of."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest
from harness.routing import Gateway, Placed, Replica, key
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.gateway.routing.reference import Choice, Reference

from gateway.routing.policies.api import Note, Prompt, Score
from gateway.routing.policies.registry import load
from gateway.targets.load import LoadReport

NUDGES = (0.0, 1e-9, -1e-9)


def disagreement(scores: Sequence[Score], picked: Score, choice: Choice, whole: bool) -> str | None:
    """What is not as the page says, if anything."""
    scored = {score.index: score for score in scores}
    if not (set(choice.costs) if whole else choice.needed) <= set(scored) <= set(choice.costs):
        return f"scored {sorted(scored)}, needed {sorted(choice.needed)} of {sorted(choice.costs)}"
    for index, score in scored.items():
        said = (score.reason, score.cost, score.cached)
        due = (choice.reasons[index], choice.costs[index], choice.cached[index])
        if said[0] != due[0] or said[1] != pytest.approx(due[1], rel=1e-6, abs=1e-3) or abs(said[2] - due[2]) > 1:
            return f"target {index}: {said}, by the page {due}"
    due_picks = choice.picks(set(scored), first_of_equals=whole)
    return None if picked.index in due_picks else f"picked {picked.index}, by the page {due_picks}"


class Both:
    """The class and the page, side by side on the same loads."""

    def __init__(self, replicas: list[Replica], chance: Random) -> None:
        self.gateway = Gateway(load("home-cost"), replicas)
        self.page = Reference([each.name for each in replicas])
        self.chance, self.replicas = chance, replicas
        self.running: list[Placed] = []
        self.charged = 1000

    def call(self, prompt: Prompt, usable: Sequence[int], now: float) -> None:
        choices = [self.page.choose(prompt, self.replicas, usable, now, nudge) for nudge in NUDGES]
        scores = self.gateway.scores(prompt, now, usable)
        picked = self.gateway.policy.pick(scores)
        wrong = [disagreement(scores, picked, choice, len(usable) <= 16) for choice in choices]
        assert None in wrong, f"{prompt}: {wrong[0]}"
        placed = self.gateway.place(prompt, now, usable)
        if len(usable) <= 16:
            assert placed.score == picked, "asked twice, answered twice the same"
        self.page.placed(prompt, choices[wrong.index(None)], placed.score.index, self.replicas)
        self.running.append(placed)

    def end(self) -> None:
        placed = self.running.pop(self.chance.randrange(len(self.running)))
        if self.chance.random() < 0.7:
            placed.share.first_token()
        if self.chance.random() < 0.5:
            cached = self.chance.randrange(placed.prompt.tokens)
            self.gateway.learn(placed, placed.prompt.tokens, cached)
            self.page.told(placed.prompt, placed.score.reason, cached)
        placed.share.end()

    def exchange(self, notes: Sequence[Note], now: float) -> None:
        for replica in self.replicas:
            self.charged += self.chance.randrange(3000)
            told = LoadReport(self.chance.randrange(20_000), self.chance.randrange(6), 7, self.charged)
            replica.load.apply({"other": (told, self.chance.random())}, now)
        self.gateway.policy.heard(notes, self.replicas)  # type: ignore[attr-defined]
        self.page.heard(notes, self.replicas)
        assert self.gateway.policy.notes() == self.page.notes()  # type: ignore[attr-defined]


class Workload:
    """Chats over groups of calls, new and old, some of them in the middle of what another gateway serves."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.prefixes = [chance.choice([0, 500, 1023, 1024, 1025, 3000, 6000]) for _ in range(chance.randint(1, 6))]
        self.spread = chance.choice([3, 30, 10_000])

    def prompt(self) -> Prompt:
        group = min(self.chance.randrange(len(self.prefixes)), self.chance.randrange(len(self.prefixes)))
        prefix, conversation = self.prefixes[group], self.chance.randrange(self.spread)
        return Prompt(
            tokens=prefix + self.chance.choice([1, 40, 700, 5000]),
            conversation=key("conversation", group, conversation),
            group=key("group", group) if prefix else None,
            prefix=prefix,
            follow_up=self.chance.random() < 0.5,
        )

    def notes(self, names: Sequence[str]) -> list[Note]:
        said = []
        for _ in range(self.chance.randrange(4)):
            prompt, target = self.prompt(), self.chance.choice([*names, "gone"])
            if self.chance.random() < 0.5 and prompt.group:
                said.append(Note("group", prompt.group, target, prompt.prefix))
            elif prompt.conversation:
                said.append(Note("call", prompt.conversation, target, prompt.tokens))
        return said


def replicas(chance: Random, count: int) -> list[Replica]:
    kv_tokens = chance.choice([6000, 40_000, 1_000_000])
    weights = chance.choice([[1.0], [0.5, 1.0, 2.0]])
    return [
        Replica(f"t{n}", chance.choice(weights), kv_tokens, chance.choice([float("-inf"), 0.0, 20.0]))
        for n in range(count)
    ]


def play(seed: int, count: int, calls: int) -> None:
    chance = Random(seed)
    both, workload, now = Both(replicas(chance, count), chance), Workload(chance), 20.0
    names = [each.name for each in both.replicas]
    for _ in range(calls):
        now += 0.051 + chance.expovariate(10.0)  # weights of young targets may be 0.05 s old
        usable = (
            range(count) if chance.random() < 0.8 else sorted(chance.sample(range(count), chance.randint(1, count)))
        )
        both.call(workload.prompt(), usable, now)
        while both.running and chance.random() < 0.5:
            both.end()
        if chance.random() < 0.2:
            both.exchange(workload.notes(names), now)


@given(st.integers(0, 2**32), st.integers(1, 10))
@settings(max_examples=60)
def test_decisions_are_those_of_the_page(seed: int, count: int) -> None:
    play(seed, count, calls=150)


@given(st.integers(0, 2**32), st.integers(17, 40))
@settings(max_examples=15)
def test_with_many_targets_the_likely_ones_are_scored_as_the_page_says(seed: int, count: int) -> None:
    play(seed, count, calls=100)
