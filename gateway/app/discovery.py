"""Looks up the names behind which the table's targets are found, and tells when their addresses have changed."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Final

from gateway.config import Table
from gateway.config.discovery import DiscoverSpec, discovered
from gateway.upstream.dial import Address, Resolve, look_up

log = logging.getLogger("trunkline.app")

PAUSE_SECONDS: Final = 2.0
"""Between two look-ups of a name."""
LEARN_SECONDS: Final = 2.0
"""How long a new table waits for all names that nobody has looked up yet."""
MOST_ADDRESSES: Final = 256
"""Of one name: each has metrics of its own."""
_NONE: Final = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}
"""The name has no address; other errors say nothing of it."""


class Discovery:
    """The addresses of names, looked up every two seconds, one name after the other.

    A look-up that fails changes nothing; only an answer does, be it that there is no address. `changed` is awaited
    after an answer that differs from the one before, and again after the next look if it raises.
    """

    def __init__(self, changed: Callable[[], Awaitable[None]], resolve: Resolve = look_up) -> None:
        self.known: dict[str, tuple[str, ...]] = {}
        """By `dns` of the table, in their order."""
        self.resolve = resolve
        self._changed = changed
        self._watched: tuple[DiscoverSpec, ...] = ()
        self._failing: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._task = asyncio.create_task(self._run(), name="discover targets")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def learn(self, table: Table) -> None:
        """Look up what is not known of a table's names. What cannot be had in time is looked up later."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LEARN_SECONDS):
                for each in discovered(table):
                    if each.dns not in self.known:
                        await self._look(each)

    def watch(self, table: Table) -> None:
        """This table is in force: its names are looked up from now on, and others no more."""
        self._watched = discovered(table)
        names = {each.dns for each in self._watched}
        self.known = {name: found for name, found in self.known.items() if name in names}
        self._failing = {name: why for name, why in self._failing.items() if name in names}

    async def _run(self) -> None:
        pending = False
        while True:
            await asyncio.sleep(PAUSE_SECONDS)
            try:
                for each in self._watched:
                    pending |= await self._look(each)
                if pending:
                    await self._changed()
                pending = False
            except Exception:  # a bug of ours; without this task no target would come or go any more
                log.exception("targets could not be discovered")

    async def _look(self, spec: DiscoverSpec) -> bool:
        """Whether the answer differs from what was known."""
        try:
            found = await looked_up(spec, self.resolve)
        except (OSError, UnicodeError) as error:
            self._fails(spec.dns, str(error))
            return False
        self._failing.pop(spec.dns, None)
        before = self.known.get(spec.dns)
        self.known[spec.dns] = found
        if found == (before or ()):
            return False
        if len(found) == MOST_ADDRESSES:
            log.error("%s has %d addresses or more: no more are used", spec.dns, MOST_ADDRESSES)
        come, gone = set(found) - set(before or ()), set(before or ()) - set(found)
        shown = ", ".join([*(f"+{each}" for each in sorted(come)), *(f"-{each}" for each in sorted(gone))])
        log.warning("%s has %d address%s: %s", spec.dns, len(found), "es" * (len(found) != 1), shown)
        return True

    def _fails(self, name: str, why: str) -> None:
        if self._failing.get(name) != why:
            log.warning("%s cannot be looked up: %s", name, why)
            self._failing[name] = why


async def found_now(table: Table) -> dict[str, tuple[str, ...]]:
    """What the names of a table lead to, for who asks once; of those that do not answer in time there is nothing."""
    known: dict[str, tuple[str, ...]] = {}
    with suppress(TimeoutError):
        async with asyncio.timeout(LEARN_SECONDS):
            for each in discovered(table):
                with suppress(OSError, UnicodeError):
                    known[each.dns] = await looked_up(each, look_up)
    return known


async def looked_up(spec: DiscoverSpec, resolve: Resolve) -> tuple[str, ...]:
    """The addresses of a name; none: it has none. Raises `OSError` and `UnicodeError` where that cannot be said."""
    try:
        return addresses(await resolve(spec.host, spec.port))
    except socket.gaierror as error:
        if error.errno not in _NONE:
            raise
        return ()


def addresses(answer: Iterable[Address]) -> tuple[str, ...]:
    """The addresses of an answer, each once, in an order that stays.

    A server that has one of each family is one server, reached in two ways: the family with most counts, IPv4 if both
    have as many.
    """
    families: dict[int, set[str]] = {socket.AF_INET: set(), socket.AF_INET6: set()}
    for family, address in answer:
        families.setdefault(family, set()).add(str(address[0]))
    most = max(families.values(), key=len)
    return tuple(sorted(most))[:MOST_ADDRESSES]
