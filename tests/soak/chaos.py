"""What goes wrong in the soak: every few seconds something, by a seed, in several places at once."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from typing import NamedTuple

from soak.events import Event

EVERY = (0.5, 3.0)
"""Seconds between the beginnings of two events."""
KILL_SLACK = 0.3
"""Seconds by which our clock and the kernel may differ about when a process was dead."""


class Happened(NamedTuple):
    """An event that is over, or under way as long as `until` is none."""

    name: str
    at: float
    until: float | None


class Chaos:
    """Begins events, one in each lane at a time. `kills` are the moments of kill -9, with the gateway's port."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self.happened: list[Happened] = []
        self.kills: list[tuple[float, int]] = []
        self.failed: list[str] = []
        """Events that could not be ended as they should: what was to come back did not."""
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self, events: Sequence[Event]) -> None:
        self._task = asyncio.create_task(self._run(events), name="chaos")

    async def stop(self) -> None:
        """Begin no more, and let those under way end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*self._busy.values())

    def hit(self, port: int, since: float, until: float) -> bool:
        """Whether a process of the gateway at this port was killed within this time."""
        return any(
            killed == port and since - KILL_SLACK <= at <= until + KILL_SLACK for at, killed in reversed(self.kills)
        )

    def spoilt(self, lane: str, since: float, until: float) -> bool:
        """Whether something happened in this lane within this time."""
        return any(
            each.name.startswith(lane) and each.at <= until and (each.until or until) >= since
            for each in reversed(self.happened)
        )

    @property
    def now(self) -> list[str]:
        """What is under way."""
        return [each.name for each in self.happened[-20:] if each.until is None]

    async def _run(self, events: Sequence[Event]) -> None:
        while True:
            await asyncio.sleep(self._chance.uniform(*EVERY))
            self._busy = {lane: task for lane, task in self._busy.items() if not task.done()}
            free = [event for event in events if event.lane not in self._busy]
            if free:
                (event,) = self._chance.choices(free, [each.weight for each in free])
                self._busy[event.lane] = asyncio.create_task(self._have(event), name=event.name)

    async def _have(self, event: Event) -> None:
        at, index = time.monotonic(), len(self.happened)
        self.happened.append(Happened(event.name, at, None))
        try:
            await event.run(self._chance)
        except Exception as error:
            self.failed.append(f"{event.name}: {type(error).__name__}: {error}")
        finally:
            self.happened[index] = Happened(event.name, at, time.monotonic())
