"""Looking at limits says what the next call meets, and changes nothing."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from contract.subject import Subject
from contract.wanted import Wanted, changed

from gateway.core.types import Ask, Verdict

TURNS = 120


@dataclass
class Calls:
    """Calls that come, end, or are left open by a worker that died, as chance has it."""

    subject: Subject
    chance: random.Random

    def dimensions(self) -> list[Wanted]:
        of = self.subject
        return [
            of.rate(6),
            of.tokens(400, 0),
            of.lease(3),
            of.budget(900, period="day"),
            of.budget(2500, period="week", unit="cost"),
        ]

    def ask(self) -> Ask:
        amounts = {"tokens": self.chance.choice([1, 40, 150, 390]), "cost": self.chance.choice([1, 90, 700])}
        wanted = [changed(each, amount=amounts.get(each.unit, 1)) for each in self.dimensions()]
        return self.subject.ask(*self.chance.sample(wanted, self.chance.randint(1, len(wanted))))


def refusal(verdict: Verdict) -> tuple[int | None, int]:
    return verdict.denied, round(verdict.retry_after * 1000)


@pytest.mark.parametrize("seed", range(3))
async def test_looking_agrees_with_what_comes_next(clocked: Subject, seed: int) -> None:
    calls = Calls(clocked, random.Random(seed))
    await clocked.key()
    limits, held, seen = clocked.store.limits, list[tuple[Ask, Verdict]](), set[bool]()
    for _ in range(TURNS):
        ask = calls.ask()
        looks = [await limits.look(ask) for _ in range(2)]
        assert looks[0].standings == looks[1].standings, "looking costs nothing"
        verdict = await limits.admit(ask)
        assert refusal(looks[0]) == refusal(verdict)
        seen.add(verdict.denied is None)
        if verdict.denied is None:
            assert not verdict.stale
            held.append((ask, verdict))
            for before, after, amount, each in zip(
                looks[0].standings, verdict.standings, ask.amounts, ask.plan.dimensions, strict=True
            ):
                assert before.remaining - after.remaining == amount, each
        while held and calls.chance.random() < 0.45:
            ended, granted = held.pop(calls.chance.randrange(len(held)))
            await clocked.settle((ended, granted), *(calls.chance.randint(0, amount) for amount in ended.amounts))
        await clocked.sleep(calls.chance.choice([0, 0.2, 3, 20, 3600]))
        await clocked.renew()
    assert seen == {True, False}
