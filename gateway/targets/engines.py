"""What the engines behind the targets say of themselves: their load, every second or two, and what they are.

Both only correct what the gateway counts itself: an engine that tells nothing is taken for one that has room.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterable
from heapq import heappop, heappush
from typing import Final, Protocol, TypeVar

from backends.api import Facts, Gauges

T = TypeVar("T")

log = logging.getLogger("trunkline.targets")

EVERY_SECONDS: Final = (1.0, 2.0)
"""Between two looks at a target: chance keeps gateways and targets from falling into step."""
MANY: Final = 150
"""Up to so many targets each has its look in that time, about a hundred a second; of more each has it later."""
AT_ONCE: Final = 64
"""Targets that are looked at at the same time."""
SCRAPE_SECONDS, DESCRIBE_SECONDS = 2.0, 5.0
"""How long a target may take to tell its load, and what it is."""
SLOW_SECONDS: Final = 10.0
"""Until the next look at a target that took longer: many that hang must not take all places."""
FACTS_SECONDS, FACTS_RETRY_SECONDS = 60.0, 5.0
"""Until a target is asked again what it is: after it has told, and after it has not."""
FIELDS: Final = ("context", "models", "version", "loras")
"""In what targets of one route may differ: what `differences` returns some of."""


class _Looks:
    """When to look at one target."""

    def __init__(self, due: float) -> None:
        self.due = due
        self.looking = self.doubtful = False
        """`doubtful`: it may hang, which is to be known soon, however many targets there are."""
        self.gauges: Gauges | None = None
        """What the last look has seen."""
        self.facts_due = due

    def saw(self, gauges: Gauges | None, now: float) -> None:
        """A look is over. A server that is back, or was started anew, may be another by now: it is asked what it is."""
        if gauges is not None and (self.gauges is None or _restarted(self.gauges, gauges)):
            self.facts_due = min(self.facts_due, now)
        self.gauges = gauges


class EngineFleet(Protocol):
    """Whose engines are looked at: targets are known by their names."""

    async def read_gauges(self, name: str) -> Gauges | None:
        """Ask the target for its load; None: it does not tell it now."""

    async def read_facts(self, name: str) -> Facts | None:
        """Ask the target what it is; None: it does not tell it now."""

    def gauges_read(self, name: str, gauges: Gauges | None) -> None:
        """The target's load after a look; None, once: it is not told any longer."""

    def facts_read(self, name: str, facts: Facts) -> None:
        """What the target is, each time that it says so."""


class Engines:
    """Looks at every target's engine in turn: one task, which no target can hold up for the others."""

    def __init__(
        self,
        targets: Collection[str],
        fleet: EngineFleet,
        clock: Callable[[], float],
        every: tuple[float, float] = EVERY_SECONDS,
    ) -> None:
        """`clock` is monotonic, in seconds."""
        self._fleet, self._clock, self._every = fleet, clock, every
        self._engines: dict[str, _Looks] = {}
        self._dues: list[tuple[float, str]] = []
        """When to look at whom, the soonest first; where an engine's own `due` is another by now, it holds."""
        self._looks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.replace(targets)

    @property
    def _slower(self) -> float:
        """Thousands of targets are looked at less often: looking must not take the time that calls need."""
        return max(1.0, len(self._engines) / MANY)

    def open(self) -> None:
        """Start to look."""
        self._task = asyncio.create_task(self._run(), name="engines")

    async def close(self) -> None:
        """Stop."""
        tasks = [*self._looks, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def replace(self, names: Collection[str], anew: Collection[str] = ()) -> None:
        """Look at these targets from now on; what is known of those in `anew` is forgotten, they are others by now."""
        for name in [name for name in self._engines if name not in names or name in anew]:
            del self._engines[name]
        for name in names:
            if name not in self._engines:
                self._engines[name] = _Looks(self._clock())
                self._look_at(name, self._clock())

    def recovered(self, name: str) -> None:
        """The target came back: it may be another by now, so ask it soon what it is."""
        if engine := self._engines.get(name):
            engine.facts_due = self._clock()
            self._look_at(name, engine.facts_due)

    def doubt(self, name: str) -> None:
        """Its engine may hang: look at it again in a second or two."""
        if (engine := self._engines.get(name)) is not None:
            engine.doubtful = True

    def hurry(self, name: str) -> None:
        """Look at the target as soon as may be: a call waits for it."""
        if (engine := self._engines.get(name)) is not None and not engine.looking:
            self._look_at(name, self._clock())

    async def look(self, name: str) -> None:
        """Ask one target for its load, and when that is due, what it is."""
        engine = self._engines[name]
        gauges = await self._asked(name, "load", self._fleet.read_gauges, SCRAPE_SECONDS)
        if self._engines.get(name) is not engine:
            return
        before = engine.gauges
        engine.saw(gauges, self._clock())
        if gauges is not None or before is not None:
            self._fleet.gauges_read(name, gauges)
        if (due := engine.facts_due) > self._clock():
            return
        facts = await self._asked(name, "facts", self._fleet.read_facts, DESCRIBE_SECONDS)
        if engine.facts_due == due:  # else it came back meanwhile, and what it told may be old
            engine.facts_due = self._clock() + (FACTS_RETRY_SECONDS if facts is None else FACTS_SECONDS)
        if facts is not None and self._engines.get(name) is engine:
            self._fleet.facts_read(name, facts)

    async def _asked(self, name: str, what: str, ask: Callable[[str], Awaitable[T | None]], seconds: float) -> T | None:
        try:
            async with asyncio.timeout(seconds):
                return await ask(name)
        except TimeoutError:
            return None
        except Exception as error:  # an adapter is anybody's code
            log.error("target %s: its %s cannot be read: %s", name, what, type(error).__name__)
            return None

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            now = self._clock()
            while self._dues and self._dues[0][0] <= now and len(self._looks) < AT_ONCE:
                due, name = heappop(self._dues)
                engine = self._engines.get(name)
                if engine is not None and engine.due == due and not engine.looking:
                    self._start(name)
            waits = self._dues and len(self._looks) < AT_ONCE
            soonest = self._dues[0][0] - now if waits else None
            try:
                async with asyncio.timeout(soonest):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def _look_at(self, name: str, due: float) -> None:
        self._engines[name].due = due
        heappush(self._dues, (due, name))
        self._wake.set()

    def _start(self, name: str) -> None:
        engine, began = self._engines[name], self._clock()
        engine.looking = True

        def over(task: asyncio.Task[None]) -> None:
            self._looks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("target %s: a look at its engine failed", name, exc_info=error)
            now = self._clock()
            pause = random.uniform(*self._every)  # noqa: S311 # only to spread
            pause *= 1.0 if engine.doubtful else self._slower
            engine.looking = engine.doubtful = False
            if self._engines.get(name) is engine:
                self._look_at(name, now + (SLOW_SECONDS if now - began >= SCRAPE_SECONDS else pause))
            self._wake.set()

        task = asyncio.create_task(self.look(name), name=f"engine {name}")
        self._looks.add(task)
        task.add_done_callback(over)


def differences(facts_of: Iterable[tuple[str, Facts]]) -> tuple[str, ...]:
    """The `FIELDS` in which targets differ that should be alike, each given by its backend and facts.

    What a target does not say differs from nothing. Names and versions are only compared within one kind of server:
    kinds have their own.
    """
    found: dict[str, dict[str, set[object]]] = {field: {} for field in FIELDS}
    for backend, facts in facts_of:
        for field in FIELDS:
            value = getattr(facts, field)
            if value is not None:
                found[field].setdefault("" if field == "context" else backend, set()).add(value)
    return tuple(field for field in FIELDS if any(len(values) > 1 for values in found[field].values()))


def _restarted(before: Gauges, now: Gauges) -> bool:
    """Its process is another one, or a counter began anew."""
    if before.started is not None and now.started is not None:
        return before.started != now.started
    return now.prefix_queries is not None and now.prefix_queries < (before.prefix_queries or 0)
