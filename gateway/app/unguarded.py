"""Finds targets that have a credential, and answer inference to anybody who reaches them beside the gateway."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container
from typing import Final

from backends.api import Target as Address
from gateway.targets import Target
from gateway.upstream import Forwarder

log = logging.getLogger("trunkline.app")

AT_ONCE: Final = 4
"""Targets that are asked at a time: it is for the operator's eyes, and takes nothing from calls."""


class Unguarded:
    """Asks each target that has a credential once without it, when it comes or comes back, and warns of what it takes.

    One that has a client certificate as well is not asked: what it takes from us it may take from nobody else.
    """

    def __init__(self, forwarder: Forwarder, *, asks: bool) -> None:
        """`asks`: whether the operator wants it."""
        self._forwarder, self._asks = forwarder, asks
        self._known: dict[str, Address] = {}
        """The targets that have told, by their names, as they were reached then."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._room = asyncio.Semaphore(AT_ONCE)

    def look(self, target: Target, *, back: bool) -> None:
        """The target is up; `back`: it was not before, and may be another process by now."""
        spec = target.spec
        if not self._asks or spec.api_key is None or (spec.tls is not None and spec.tls.cert is not None):
            return
        if target.name not in self._tasks and (back or self._known.get(target.name) != target.address):
            task = asyncio.create_task(self._ask(target), name=f"without credential {target.name}")
            self._tasks[target.name] = task
            task.add_done_callback(lambda _: self._tasks.pop(target.name, None))

    def keep(self, names: Container[str]) -> None:
        """Forget targets that are not among these."""
        self._known = {name: address for name, address in self._known.items() if name in names}

    async def close(self) -> None:
        tasks = [*self._tasks.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _ask(self, target: Target) -> None:
        try:
            async with self._room:
                found = await self._forwarder.open_paths(target.address, target.capabilities, target.timeouts)
        except Exception:  # a bug of ours, or an odd target
            log.exception("target %s could not be asked without its credential", target.name)
            found = []
        if found is None:
            return  # it is asked again with one of its next probes
        self._known[target.name] = target.address
        target.warnings.pop("unguarded", None)
        if found:
            target.warnings["unguarded"] = f"it answers {', '.join(found)} to anybody, without its credential"
