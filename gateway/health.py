"""Whether a target is fit for calls: a breaker fed by their outcomes, and probes for what no call has told yet."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

log = logging.getLogger("trunkline.health")

CONSECUTIVE = 5
WINDOW_SECONDS, WINDOW_CALLS, WINDOW_SHARE = 30.0, 10, 0.5
EJECT_SECONDS, EJECT_MAX_SECONDS = 10.0, 120.0
PROBE_SECONDS = (0.25, 5.0)
"""Between probes of one target: until it first answers, and afterwards."""


class Breaker:
    """Ejects a target that fails: 5 times in a row, or at least half of at least 10 calls within 30 s.

    An ejection lasts 10 s, twice as long each time, at most 120 s; then one call tries it.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.name, self._clock = name, clock
        self._streak = 0
        self._recent: deque[tuple[float, bool]] = deque(maxlen=1000)
        self._ejections = 0
        self._until = 0.0
        self._trying = False

    @property
    def closed(self) -> bool:
        """Calls may go there; False while ejected, and while one call is trying it."""
        return not self._ejections or (self._clock() >= self._until and not self._trying)

    def attempt(self) -> bool:
        """A call goes there; whether it is the one that tries an ejected target.

        Before its time is over, a call to an ejected target is a last resort, and its failure tells nothing new.
        """
        trial = bool(self._ejections) and self._clock() >= self._until and not self._trying
        self._trying |= trial
        return trial

    def succeeded(self) -> None:
        self._streak = 0
        self._recent.append((self._clock(), True))
        if self._ejections:
            log.warning("target %s works again", self.name)
            self._ejections, self._trying = 0, False
            self._recent.clear()

    def failed(self) -> None:
        now = self._clock()
        self._streak += 1
        self._recent.append((now, False))
        while self._recent and self._recent[0][0] < now - WINDOW_SECONDS:
            self._recent.popleft()
        failures = sum(not good for _, good in self._recent)
        many = len(self._recent) >= WINDOW_CALLS and failures >= WINDOW_SHARE * len(self._recent)
        if self._trying or (not self._ejections and (self._streak >= CONSECUTIVE or many)):
            pause = min(EJECT_SECONDS * 2**self._ejections, EJECT_MAX_SECONDS)
            self._ejections, self._until, self._trying = self._ejections + 1, now + pause, False
            log.warning("target %s is ejected for %.0f s", self.name, pause)

    def ended(self, trial: bool) -> None:
        """The call is over, whatever it told: if it was the trial, another may be."""
        if trial:
            self._trying = False


class Prober:
    """Asks every target's health route now and then; what it learns is a hint for routing and the text of /ready."""

    def __init__(self, targets: Sequence[str], probe: Callable[[str], Awaitable[bool]]) -> None:
        self.up: dict[str, bool | None] = dict.fromkeys(targets)
        self._probe = probe
        self._tasks: list[asyncio.Task[None]] = []

    def open(self) -> None:
        self._tasks = [asyncio.create_task(self._watch(name), name=f"probe {name}") for name in self.up]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    async def _watch(self, name: str) -> None:
        while True:
            up = await self._probe(name)
            if up != self.up[name]:
                log.log(logging.INFO if up else logging.WARNING, "target %s is %s", name, "up" if up else "down")
            self.up[name] = up
            await asyncio.sleep(PROBE_SECONDS[1] if up else PROBE_SECONDS[0])
