"""Random lives of calls: what may happen, one step after the other, and a run of it against a store and the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from contract.model import MICRO, Answer, Model, span
from contract.subject import Subject
from contract.timed import TimedStore
from contract.wanted import Wanted, changed, wanted
from hypothesis import strategies as st

from gateway.core.types import Ask, Verdict
from gateway.store import LEASE_SECONDS

GRAIN = 1 / 64
"""Seconds; every time is a whole number of these, which floats and microseconds both hold exactly."""
BEAT = LEASE_SECONDS / 3
EVEN = (1, 2, 3, 5, 8, 10, 60)
"""Limits of which a minute holds so many that each costs whole microseconds."""


FIXED = ("requests", "calls")
"""What every call takes one of."""


class Wait(NamedTuple):
    """Time passes; the living renew what they hold."""

    grains: int


class Call(NamedTuple):
    """A call asks for some of the world's dimensions; the parts (of a hundred) say how much of each limit."""

    picks: tuple[int, ...]
    parts: tuple[int, ...]


class End(NamedTuple):
    """One of the calls under way ends; the part (of a hundred) says how much of its reservation it used."""

    which: int
    part: int


class Again(NamedTuple):
    """One of the ended calls is settled once more."""

    which: int
    part: int


class Lose(NamedTuple):
    """The worker dies with all calls under way; another one takes its place."""


Step = Wait | Call | End | Again | Lose


class World(NamedTuple):
    """The limits there are."""

    rpm: int
    tpm: int
    otpm: int
    window: float
    slots: int
    purse: int


def worlds(limits: Sequence[int] = EVEN, windows: Sequence[float] = (60.0, 60.0, 1.5)) -> st.SearchStrategy[World]:
    limit = st.sampled_from(limits)
    return st.builds(World, limit, limit, limit, st.sampled_from(windows), st.integers(1, 9), st.integers(5, 90))


def steps(most_used: int) -> st.SearchStrategy[list[Step]]:
    """Lives in which a call uses at most so many hundredths of what it reserved."""
    grains = st.sampled_from([0, 7, 64, 5 * 64, 15 * 64, 30 * 64, 60 * 64]) | st.integers(0, 70 * 64)
    dimension = st.integers(0, 4)
    picks = st.lists(dimension, min_size=1, max_size=3, unique=True).map(tuple)
    part = st.sampled_from([0, 20, 50, 100]) | st.integers(0, 100)
    parts = st.lists(part, min_size=5, max_size=5).map(tuple)
    used = st.sampled_from([0, 50, 100, most_used]) | st.integers(0, most_used)
    wait, call = st.builds(Wait, grains), st.builds(Call, picks, parts)
    which = st.integers(0, 5)
    end, again = st.builds(End, which, used), st.builds(Again, which, used)
    kinds: list[st.SearchStrategy[Step]] = [*[wait] * 6, *[call] * 8, *[end] * 6, again, st.just(Lose())]
    step = st.sampled_from(kinds).flatmap(lambda kind: kind)
    return st.lists(step, min_size=20, max_size=40)


class Life(NamedTuple):
    """A call that was granted, and what it used once it had ended; a lost one never tells."""

    ask: Ask
    verdict: Verdict
    used: list[int] | None = None


class Run:
    """Does the steps in a store, and asks the model whether that was right."""

    def __init__(self, subject: Subject, world: World, *, compare: bool = True) -> None:
        self.subject, self.world, self.compare = subject, world, compare
        self.model = Model(int(LEASE_SECONDS * MICRO))
        self.alive: list[Life] = []
        self.ended: list[Life] = []
        self.lost: list[Life] = []
        self.verdicts: list[Verdict] = []
        make = subject
        self.dimensions = (
            make.rate(world.rpm, world.window),
            make.tokens(world.tpm, 1, world.window),
            make.tokens(world.otpm, 1, world.window, "otpm", "key_model"),
            make.lease(world.slots, scope="tenant"),
            make.budget(world.purse, 1, "day", scope="tenant"),
        )

    @property
    def now(self) -> int:
        return round(self.subject.time() * MICRO)

    async def do(self, done: Sequence[Step]) -> None:
        for step in done:
            if isinstance(step, Wait):
                await self._wait(step.grains)
            elif isinstance(step, Call):
                await self._call(step)
            elif isinstance(step, End) and self.alive:
                await self._end(self.alive.pop(step.which % len(self.alive)), step.part)
            elif isinstance(step, Again) and self.ended:
                life = self.ended[step.which % len(self.ended)]
                self.subject.store.limits.settle(life.ask, life.verdict.at, self._used(life.ask, step.part))
            elif isinstance(step, Lose) and isinstance(self.subject.store, TimedStore):
                await self._lose(self.subject.store)

        await self._call(Call((0, 1, 2, 3, 4), (0,) * 5))  # how everything stands in the end

    async def _wait(self, grains: int) -> None:
        rest = grains * GRAIN
        while rest > 0:
            await self.subject.sleep(min(rest, BEAT))
            rest -= min(rest, BEAT)
            if self.alive:
                await self.subject.renew()
                for life in self.alive:
                    self.model.renew(life.ask, self.now)

    async def _call(self, call: Call) -> None:
        chosen = tuple(self._sized(self.dimensions[pick], call.parts[pick]) for pick in call.picks)
        ask = self.subject.ask(*chosen, records=())
        verdict = await self.subject.store.limits.admit(ask)
        assert not verdict.stale and verdict.at == self.now
        self.verdicts.append(verdict)
        if self.compare:
            agree(ask, verdict, self.model.admit(ask, self.now))
        if verdict.denied is None:
            self.alive.append(Life(ask, verdict))
            held = sum(any(each.kind == "lease" for each in wanted(life.ask)) for life in self.alive)
            assert held <= self.world.slots
            return
        again = await self.subject.store.limits.admit(self.subject.ask(*chosen, records=()))
        assert again == verdict  # a denial changed nothing

    async def _end(self, life: Life, part: int) -> None:
        used = self._used(life.ask, part)
        await self.subject.settle((life.ask, life.verdict), *used)
        self.model.settle(life.ask, life.verdict.at, used, self.now)
        self.ended.append(Life(life.ask, life.verdict, used))

    async def _lose(self, store: TimedStore) -> None:
        self.lost += self.alive
        self.alive = []
        self.subject.store = await store.successor()

    def _sized(self, dimension: Wanted, part: int) -> Wanted:
        if dimension.unit in FIXED:
            return dimension
        amount = dimension.limit * part // (400 if dimension.kind == "budget" else 100)
        return changed(dimension, amount=amount)

    def _used(self, ask: Ask, part: int) -> list[int]:
        """In each dimension; more than was reserved, also where that was nothing, if the part is above a hundred."""
        more = part > 150
        return [d.amount if d.unit in FIXED else d.amount * part // 100 + more for d in wanted(ask)]


def agree(ask: Ask, verdict: Verdict, answer: Answer) -> None:
    """The verdict is the model's: who said no, how long to wait, and how everything stands."""
    if answer.granted:
        assert verdict.denied is None
        assert verdict.retry_after == 0
    else:
        assert verdict.denied in answer.refusing
        wait = round(verdict.retry_after * MICRO)
        assert wait > 0
        assert wait >= max(answer.wait.values(), default=0)
        if verdict.denied in answer.wait:
            assert wait == answer.wait[verdict.denied]
    assert tuple(standing.remaining for standing in verdict.standings) == answer.remaining
    for standing, reset in zip(verdict.standings, answer.reset, strict=True):
        assert reset is None or round(standing.reset * MICRO) == reset


def bursts(lives: Sequence[Life], key: str) -> list[tuple[int, int]]:
    """When calls were let in under a rate, and what each used; of a lost one all that it had reserved."""
    found = []
    for life in lives:
        for index, dimension in enumerate(wanted(life.ask)):
            if dimension.key == key:
                found.append((life.verdict.at, dimension.amount if life.used is None else life.used[index]))
    return sorted(found)


def overflow(found: Sequence[tuple[int, int]], limit: int, window: float) -> float:
    """By how much the worst of all sliding windows, of whatever length, exceeds the burst and the rate over it."""
    worst = float("-inf")
    for first in range(len(found)):
        total = 0
        for at, units in found[first:]:
            total += units
            worst = max(worst, total - limit - (at - found[first][0]) * limit / (window * MICRO))
    return worst


def spent(lives: Sequence[Life], key: str) -> dict[object, int]:
    """What ended calls used of a budget, by the period of their admission."""
    sums: dict[object, int] = {}
    for life in lives:
        for index, dimension in enumerate(wanted(life.ask)):
            if dimension.key == key and life.used is not None and dimension.period is not None:
                first = span(dimension.period, life.verdict.at)[0]
                sums[first] = sums.get(first, 0) + life.used[index]
    return sums
