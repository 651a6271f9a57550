"""Sees to targets that held calls wait for: probes them more often, and wakes those that sleep."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from gateway.routing import Route, Routes
from gateway.targets import Target
from gateway.targets.engines import Engines
from gateway.targets.health import Prober
from gateway.upstream import Forwarder

log = logging.getLogger("trunkline.app")

ATTEND_SECONDS: Final = 0.5
"""Between two looks at a target that held calls wait for."""
MOST_HURRIED: Final = 32
"""Targets, drawn anew each time, that are probed at such a look."""
WAKE_PAUSE: Final = 5.0
"""Until a target that could not be woken is told again."""


class Waker:
    """Works while calls are held, and only then. One target of a route is woken at a time, the first of the best tier:
    more would take memory that nobody needs yet."""

    def __init__(
        self,
        routes: Routes,
        prober: Prober,
        engines: Engines,
        forwarder: Forwarder,
        clock: Callable[[], float],
    ) -> None:
        """`routes` are those of the table in force, and may be replaced; `clock` is monotonic."""
        self.routes, self._prober, self._engines, self._forwarder = routes, prober, engines, forwarder
        self._clock = clock
        self._called = asyncio.Event()
        self._wanted: frozenset[str] = frozenset()
        self._waking: dict[str, asyncio.Task[None]] = {}
        """By the URL of the server."""
        self._again_at: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._task = asyncio.create_task(self._run(), name="waker")

    async def close(self) -> None:
        tasks = [*self._waking.values(), *([self._task] if self._task is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def held(self, calls: int) -> None:
        """So many calls of some route are held now."""
        if calls:
            self._called.set()

    def wants(self, name: str) -> bool:
        """Held calls wait for this target."""
        return name in self._wanted

    async def _run(self) -> None:
        while True:
            await self._called.wait()
            self._called.clear()
            while waiting := [route for route in self.routes if route.held.calls]:
                try:
                    self._attend(waiting)
                except Exception:  # a bug of ours; without this task no held call would be looked after
                    log.exception("held calls could not be looked after")
                await asyncio.sleep(ATTEND_SECONDS)
            self._wanted = frozenset()

    def _attend(self, waiting: list[Route]) -> None:
        wanted = {route: [target for target in self._chain(route) if target.cold] for route in waiting}
        self._wanted = frozenset(target.name for targets in wanted.values() for target in targets)
        for name in random.sample(sorted(self._wanted), min(MOST_HURRIED, len(self._wanted))):
            self._prober.hurry(name)
        for targets in wanted.values():
            sleepers = [target for target in targets if target.asleep and target.up is not False]
            for target in sleepers:
                self._engines.hurry(target.name)
            if not any(target.address.url in self._waking for target in sleepers):
                self._wake_one(sleepers)

    def _chain(self, route: Route) -> Iterator[Target]:
        for each in self.routes.chain(route):
            yield from (target for target in each.targets if target.order == "open")

    def _wake_one(self, sleepers: list[Target]) -> None:
        now = self._clock()
        for target in sleepers:
            if target.capabilities.wakeable is not None and self._again_at.get(target.address.url, now) <= now:
                task = asyncio.create_task(self._wake(target), name=f"wake {target.name}")
                self._waking[target.address.url] = task
                task.add_done_callback(partial(self._woken, target.address.url))
                return

    def _woken(self, url: str, _: asyncio.Task[None]) -> None:
        del self._waking[url]

    async def _wake(self, target: Target) -> None:
        log.warning("target %s is asleep, and calls wait for it: waking it", target.name)
        began = self._clock()
        self._again_at[target.address.url] = began + WAKE_PAUSE
        why = await self._forwarder.wake(target.address, target.capabilities, target.timeouts)
        if why:
            self._again_at[target.address.url] = self._clock() + WAKE_PAUSE
            log.error("target %s could not be woken: %s", target.name, why)
            return
        self._again_at.pop(target.address.url, None)
        log.warning("target %s is awake after %.1f s", target.name, self._clock() - began)
        for each in self.routes.targets.values():
            if each.address.url == target.address.url and each.asleep:
                each.sleeps(False)
        self._engines.hurry(target.name)
