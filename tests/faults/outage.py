"""A Redis outage in the middle of steady load, and what callers of each kind of key saw before, during and after it."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

from faults.fleet import FOUND, LOST, Fleet
from faults.volley import Exchange, chat, percentile, steady, volley

from gateway.auth import token
from gateway.core.types import Allowance, Budget, Limit

BEFORE, DURING, AFTER, LAST = 1.5, 3.0, 2.5, 1.0
"""Seconds of load; the last one is a second in which no worker has lost Redis, and must be as if nothing had been."""
RATE = 100.0
"""Calls a second."""
BUDGET = 0.25
"""Seconds that a call waits for Redis at most."""
SLACK = 0.25
"""Seconds that two cores may add; or four times what the slowest calls took before, if that is more."""
AGAIN = 5
"""How often a worker may lose Redis in an outage; once, where it has the machine to itself."""
NARROW, SPENT = 120, 6
UNKNOWN = token("Z" * 12, "z" * 43)

LIMITS: dict[str, Limit] = {
    "share": Limit(rpm=100_000, concurrency=10_000),
    "narrow": Limit(rpm=NARROW),
    "closed": Limit(rpm=100_000, outage={"rpm": "closed"}),
    "open": Limit(rpm=SPENT, outage={"rpm": "open"}),
    "budget": Limit(budget=Budget(month=Allowance(tokens=10**9))),
    "free": Limit(),
}
MIX = ("share", "narrow", "free", "narrow", "share", "open", "narrow", "closed", "narrow", "share", "budget")


def worker(call: Exchange) -> str:
    """Whoever answered it."""
    return call.headers["x-request-id"].rpartition("-")[0]


class Story:
    """What happened, in the monotonic clock's time."""

    def __init__(self, fleet: Fleet, model: str = "m") -> None:
        self.fleet, self.model = fleet, model
        self.calls: list[Exchange] = []
        self.unknown: list[Exchange] = []
        self.began = self.ending = self.ended = self.found = self.over = 0.0
        self._lost = self._found = 0

    async def run(self, secrets: dict[str, str], begin: Callable[[], Any], end: Callable[[], Any]) -> None:
        """Load, outage, load; `begin` and `end` are run in a thread, as they may take their time."""
        raws = [(label, chat(self.model, secrets[label])) for label in MIX]
        for raw in dict(raws).values():
            await self._make_known(raw)
        self._lost, self._found = self.fleet.logged(LOST), self.fleet.logged(FOUND)
        told: list[bool] = []
        load = asyncio.create_task(steady(self.fleet.ports, raws, RATE, lambda: bool(told)))
        await asyncio.sleep(BEFORE)
        self.began = time.monotonic()
        await asyncio.to_thread(begin)
        await asyncio.sleep(DURING * 0.6)
        self.unknown = await volley(self.fleet.ports, [chat(self.model, UNKNOWN)] * 4)
        await asyncio.sleep(max(0.0, self.began + DURING - time.monotonic()))
        self.ending = time.monotonic()
        await asyncio.to_thread(end)
        self.ended = time.monotonic()
        await asyncio.sleep(AFTER)
        told_before: tuple[int, int] | None = None
        while (lines := self.lines()) != told_before or len(set(lines)) > 1:
            assert time.monotonic() < self.ended + 60, f"workers that lost Redis, and found it again: {lines}"
            told_before, self.found = lines, time.monotonic()
            await asyncio.sleep(LAST)
        told.append(True)
        self.over = time.monotonic()
        self.calls = await load

    async def _make_known(self, raw: bytes) -> None:
        """Have every worker load the key; a request id begins with its worker's boot id."""
        workers = set[str]()
        for tries in range(50):
            # Workers accept from one socket: the first that is awake takes them all, until it has enough to do.
            calls = await volley(self.fleet.ports, [raw] * (2 + 2 * tries))
            workers |= {worker(call) for call in calls}
            if len(workers) == self.fleet.workers * len(self.fleet.gateways):
                return
        raise AssertionError(f"only {len(workers)} workers take calls")

    def of(self, *labels: str) -> list[Exchange]:
        return [call for call in self.calls if call.label in labels]

    def during(self, *labels: str) -> list[Exchange]:
        """Those that came when their worker had said once that it counts on its own, and went before the end."""
        noticed = dict[str, float]()
        for call in sorted(self.calls, key=lambda call: call.finished):
            if call.degraded:
                noticed.setdefault(worker(call), call.finished)
        known = [call for call in self.of(*labels) if call.finished < self.ending]
        return [call for call in known if noticed.get(worker(call), math.inf) < call.sent]

    @property
    def last(self) -> list[Exchange]:
        """Those that came when all had found it again."""
        return [call for call in self.calls if call.sent > self.found]

    def added(self, share: float) -> float:
        """What this percentile of the calls that nothing refuses took longer than before the outage, in seconds."""
        later = [call.seconds for call in self.of("share", "free") if call.sent >= self.began]
        return percentile(later, share) - percentile(self.calm(), 0.5)

    def calm(self) -> list[float]:
        """What they took before it."""
        return [call.seconds for call in self.of("share", "free") if call.sent < self.began]

    def recovered(self) -> float:
        """Seconds from the outage's end to the last call that was still degraded."""
        late = [call.sent - self.ended for call in self.calls if call.degraded and call.sent > self.ended]
        return max(late, default=0.0)

    def lines(self) -> tuple[int, int]:
        """How often workers logged that they count on their own, and that they share again."""
        return self.fleet.logged(LOST) - self._lost, self.fleet.logged(FOUND) - self._found

    def log(self) -> str:
        """What the gateways have said of Redis lately."""
        lines = [line for one in self.fleet.gateways for line in one.stderr().splitlines()]
        return "\n".join([line for line in lines if "trunkline.store" in line or "trunkline.limits" in line][-60:])


def check(story: Story, *, degrades: bool, empties: bool = False) -> None:
    """What holds in every outage; `degrades`: Redis is of no use while it lasts, `empties`: its counters are lost."""
    known = story.of("share", "narrow", "open", "free")
    failed = [(call.label, call.status, bytes(call.seen[-160:])) for call in known if call.status not in (200, 429)]
    assert not failed, f"{len(failed)} of {len(known)} calls of known keys failed: {failed[:3]}"
    assert all(call.status == 200 for call in story.of("share", "free"))
    slack = max(SLACK, 4 * percentile(story.calm(), 0.99))
    assert story.added(0.99) < BUDGET + slack, f"p99 of added latency {story.added(0.99):.3f} s"
    check_narrow(story, empties)
    stuck = [call for call in story.last if call.degraded or call.status >= 500]
    assert not stuck, f"in the last second: {[(call.label, call.status, call.headers) for call in stuck[:3]]}"
    lost, found = story.lines()
    workers = story.fleet.workers * len(story.fleet.gateways)
    assert lost == found, f"{lost} workers lost Redis, {found} found it again\n{story.log()}"
    if degrades:
        assert 0 < lost <= AGAIN * workers, f"{lost} lines of {workers} workers\n{story.log()}"
        if lost <= workers:  # else one has shared again in between
            check_policies(story)


def check_narrow(story: Story, empties: bool) -> None:
    """Gateways on their own admit the limit together, so in all there is one too much; two if the counters are lost."""
    leaked = NARROW / 60 * (story.over - story.began + BEFORE)
    admitted = [call for call in story.of("narrow") if call.status == 200]
    alone = [call for call in admitted if call.degraded]
    assert len(alone) <= NARROW + leaked, f"{len(alone)} admitted by gateways on their own"
    limits = 3 if empties else 2
    assert len(admitted) <= limits * (NARROW + leaked), f"{len(admitted)} admitted in all"


def check_policies(story: Story) -> None:
    """`share` and `open` pass and say so, `closed` and budgets do not pass and say when to come again."""
    assert story.during("share") and all(call.degraded for call in story.during("share"))
    assert all(call.status == 200 for call in story.during("open")), "open passes"
    for call in story.during("closed", "budget"):
        assert call.status == 503, (call.label, call.status)
        assert int(call.headers["retry-after"]) >= 1
    assert {call.status for call in story.unknown} == {503}, "an unknown key is not wrong while nobody can look it up"


async def keys(fleet: Fleet) -> dict[str, str]:
    """A key of each kind."""
    return {label: (await fleet.issue(limit=limit)).secret for label, limit in LIMITS.items()}
