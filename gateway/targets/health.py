"""Whether a target is fit for calls: a breaker fed by their outcomes, and probes for what no call has shown yet."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

log = logging.getLogger("trunkline.targets")

CONSECUTIVE = 5
WINDOW_SECONDS, WINDOW_CALLS, WINDOW_SHARE = 30.0, 10, 0.5
EJECT_SECONDS, EJECT_MAX_SECONDS = 10.0, 120.0
PROBE_SECONDS = (0.25, 5.0)
"""Between probes of one target, more or less: at first while it is not up, then twice as long each time, and as long
as this at most; while it is up."""
SPREAD = 200
"""So many targets or more are first probed in the course of a second, not all at once."""
CREDENTIAL_ROUNDS = 12
"""Probes of a target that is up, about a minute's, after which its credential is tried again."""


class Breaker:
    """Ejects a target that fails: 5 times in a row, or at least half of at least 10 calls within 30 s.

    An ejection lasts 10 s, twice as long each time, at most 120 s; then one call tries it.
    """

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self.name, self._clock = name, clock
        self._streak = 0
        self._recent: deque[tuple[float, bool]] = deque(maxlen=1000)
        self.ejections = 0
        """How often it was ejected since it last worked; 0: it works, and `closed` need not be asked."""
        self._until = 0.0
        self._trying = False

    @property
    def closed(self) -> bool:
        """Calls may go there; False while ejected, and while one call is trying it."""
        return not self.ejections or (self._clock() >= self._until and not self._trying)

    def attempt(self) -> bool:
        """A call goes there; whether it is the one that tries an ejected target.

        Before its time is over, a call to an ejected target is a last resort, and its failure tells nothing new.
        """
        trial = bool(self.ejections) and self._clock() >= self._until and not self._trying
        self._trying |= trial
        return trial

    def succeeded(self) -> bool:
        """It was answered; whether that ends an ejection: the target is back."""
        self._streak = 0
        self._recent.append((self._clock(), True))
        if self.ejections:
            log.warning("target %s works again", self.name)
            self.ejections, self._trying = 0, False
            self._recent.clear()
            return True
        return False

    def failed(self, trial: bool = False) -> None:
        """It failed; `trial`: it was the call that tried the target. Calls begun before an ejection lengthen none."""
        now = self._clock()
        self._streak += 1
        self._recent.append((now, False))
        while self._recent and self._recent[0][0] < now - WINDOW_SECONDS:
            self._recent.popleft()
        failures = sum(not good for _, good in self._recent)
        many = len(self._recent) >= WINDOW_CALLS and failures >= WINDOW_SHARE * len(self._recent)
        if trial or (not self.ejections and (self._streak >= CONSECUTIVE or many)):
            pause = min(EJECT_SECONDS * 2**self.ejections, EJECT_MAX_SECONDS)
            self.eject(pause)
            log.warning("target %s is ejected for %.0f s", self.name, pause)

    def eject(self, seconds: float) -> None:
        """Send no calls there for so long; then one tries it."""
        self.ejections, self._until, self._trying = self.ejections + 1, self._clock() + seconds, False

    def ended(self, trial: bool) -> None:
        """The call is over, whatever it told: if it was the trial, another may be."""
        if trial:
            self._trying = False


class Prober:
    """Says when each target is probed: a task for each, which no other can hold up. It keeps nothing of the answers."""

    def __init__(self, names: Collection[str], probe: Callable[[str, bool], Awaitable[bool]]) -> None:
        """`probe` asks a target, and also for its credential if told so, and returns whether it is up. The credential
        is asked for at first, when the target is back, and about once a minute."""
        self._probe = probe
        self._hurried = {name: asyncio.Event() for name in names}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._opened = False

    @property
    def names(self) -> Collection[str]:
        """The targets that are probed."""
        return self._hurried.keys()

    def open(self) -> None:
        """Begin to probe."""
        self._opened = True
        for name in self._hurried:
            self._start(name)

    async def close(self) -> None:
        """End; probes that are under way are not waited for."""
        self._opened = False
        for name in list(self._tasks):
            self._stop(name)
        if self._ending:
            await asyncio.wait(self._ending)

    def replace(self, names: Collection[str], anew: Collection[str] = ()) -> None:
        """Probe these targets from now on; those in `anew` at once, they are others by now."""
        for name in [name for name in self._hurried if name not in names or name in anew]:
            self._stop(name)
            del self._hurried[name]
        for name in names:
            if name not in self._hurried:
                self._hurried[name] = asyncio.Event()
                if self._opened:
                    self._start(name)

    def hurry(self, name: str) -> None:
        """Probe it as soon as may be: a call waits for it, or could not reach it."""
        if name in self._hurried:
            self._hurried[name].set()

    def _start(self, name: str) -> None:
        self._tasks[name] = asyncio.create_task(self._watch(name), name=f"probe {name}")

    def _stop(self, name: str) -> None:
        if (task := self._tasks.pop(name, None)) is not None:
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            task.cancel()

    async def _watch(self, name: str) -> None:
        rounds, pause, hurried = 0, PROBE_SECONDS[0], self._hurried[name]
        await asyncio.sleep(random.random() * min(1.0, len(self._hurried) / SPREAD))  # noqa: S311 # only to spread
        while True:
            hurried.clear()
            try:
                up = await self._probe(name, rounds == 0)
            except Exception:  # a bug of ours; its probes go on
                log.exception("target %s could not be probed", name)
                up = False
            rounds = (rounds + 1) % CREDENTIAL_ROUNDS if up else 0
            seconds = PROBE_SECONDS[1] if up else pause
            pause = PROBE_SECONDS[0] if up else min(2 * pause, PROBE_SECONDS[1])
            seconds *= max(1.0, len(self._hurried) / SPREAD)  # thousands must not take the time that calls need
            seconds *= random.uniform(0.9, 1.1)  # noqa: S311 # only to spread
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await hurried.wait()
