"""The clients: they make calls of all kinds without end, and behave as clients do."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator

from soak.calls import Deck, Made, Plan
from soak.chaos import Chaos
from soak.judging import judge
from soak.place import Place
from soak.table import READER
from soak.tally import Tally

CLIENTS = 16
THINKS = 0.3
"""Seconds between two calls of a client, at most."""
PATIENCE = 40.0
"""Seconds after which a call that has not ended is one that hangs."""


class Callers:
    """All clients; they call while `open` is set."""

    def __init__(self, place: Place, tally: Tally, chaos: Chaos, seed: int) -> None:
        self._place, self._tally, self._chaos = place, tally, chaos
        self._chance = random.Random(seed)
        self._plans: Iterator[Plan] = Deck(place.keys, self._chance).plans()
        self.open = asyncio.Event()
        self.busy = 0
        """Calls under way."""
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self.open.set()
        self._tasks = [asyncio.create_task(self._client(), name="client") for _ in range(CLIENTS)]

    async def pause(self) -> None:
        """Let the calls under way end, and make no more."""
        self.open.clear()
        while self.busy:
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """After `pause`."""
        for task in self._tasks:
            task.cancel()
        for failed in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(failed, Exception):
                raise failed

    async def _client(self) -> None:
        while True:
            await self.open.wait()
            plan = next(self._plans)
            self.busy += plan.copies
            await asyncio.gather(*(self.make(plan) for _ in range(plan.copies)))
            await asyncio.sleep(self._chance.uniform(0, THINKS))

    async def make(self, plan: Plan) -> None:
        """One call, from its connection to what became of it."""
        port = self._chance.choice(self._place.fleet.rotation).port
        call = Made(plan.raw, plan.label)
        call.port, call.sent = port, time.monotonic()
        left = False
        try:
            await call.join(port)
            left = await self._live(plan, call)
        except OSError:
            call.refused, call.finished = True, time.monotonic()
        finally:
            call.leave(reset=plan.way == "resets")
            self.busy -= 1
        excused = self._chaos.hit(port, call.sent, call.finished or time.monotonic())
        self._tally.count(plan, call, judge(plan, call, left=left, excused=excused))

    async def _live(self, plan: Plan, call: Made) -> bool:
        """Behave like this; whether the client has left before the end."""
        match plan.way:
            case "half":
                call.raw = call.raw[: self._chance.randrange(len(call.raw))]
        call.send()
        match plan.way:
            case "idles":
                await asyncio.wait([call.end], timeout=self._chance.uniform(0, 2))
                return not call.end.done()
            case "half" | "leaves" | "resets":
                await asyncio.wait(
                    [call.end], timeout=self._chance.choice((0.0, 0.02, 0.2, 0.6)) * self._chance.random()
                )
                return not call.end.done()
            case "waits a little":  # a server may wait for the rest of what is no call
                await asyncio.wait([call.end], timeout=1)
                return not call.end.done()
            case "reads slowly":
                await self._pauses(call, 4, READER / 5)
            case "never reads":
                await self._pauses(call, 1, 2 * READER)
        await asyncio.wait([call.end], timeout=PATIENCE)
        return False

    async def _pauses(self, call: Made, times: int, seconds: float) -> None:
        """Leave unread what comes, so many times; in between a little is read."""
        transport = call._transport
        assert isinstance(transport, asyncio.Transport)
        for _ in range(times):
            if transport.is_closing():
                return
            transport.pause_reading()
            await asyncio.sleep(seconds)
            if not transport.is_closing():
                transport.resume_reading()
            await asyncio.sleep(0.001)
