"""Who is alive: how many gateway workers share the limits, and whose leases no longer mean anything."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

from gateway.store import LEASE_SECONDS, RENEW_SECONDS, StoreDown
from gateway.store.redis.connection import Pipe

LIVING = "{tl}:workers"
"""Sorted set: boot id -> deadline."""
PLACES = "{tl}:places"
"""Hash: boot id -> host, process id and start time of the worker that has it."""
DEAD = "{tl}:dead"
"""Sorted set: boot ids of workers that were seen to be dead -> when their leases have expired anyway."""


class Workers:
    """This worker's place among the living. A worker that starts buries those of its host that have died."""

    def __init__(self, pipe: Pipe, boot: str) -> None:
        self._pipe, self._boot = pipe, boot
        self.dead = DEAD
        self.living = 1

    async def run(self) -> None:
        marked = False
        while True:
            try:
                if not marked and self._boot:
                    await self._mark_dead()
                    marked = True
                await self._live()
            except StoreDown:
                pass
            await asyncio.sleep(RENEW_SECONDS if marked or not self._boot else 0.5)

    async def leave(self) -> None:
        """Tell that this worker ends of its own will."""
        if self._boot:
            await self._pipe.call("ZREM", LIVING, self._boot)
            await self._pipe.call("HDEL", PLACES, self._boot)

    async def _live(self) -> None:
        seconds, micros = await self._pipe.call("TIME")
        now = int(seconds) * 1_000_000 + int(micros)
        if self._boot:
            await self._pipe.call("ZADD", LIVING, now + int(LEASE_SECONDS * 1e6), self._boot)
            await self._pipe.call("HSET", PLACES, self._boot, _place(os.getpid()))
            await self._pipe.call("ZREMRANGEBYSCORE", LIVING, "-inf", now)
        self.living = max(1, int(await self._pipe.call("ZCOUNT", LIVING, now, "+inf")))

    async def _mark_dead(self) -> None:
        """Mark the workers of this host whose process is gone: their slots are free at once, not after 15 s."""
        found = await self._pipe.call("HGETALL", PLACES)
        seconds, _ = await self._pipe.call("TIME")
        until = (int(seconds) + 4 * int(LEASE_SECONDS)) * 1_000_000
        living = {boot.decode() for boot in await self._pipe.call("ZRANGE", LIVING, 0, -1)}
        for raw_boot, raw_place in zip(found[::2], found[1::2], strict=True):
            boot, place = raw_boot.decode(), raw_place.decode()
            host, _, process = place.partition(" ")
            if host == _host() and process.partition(" ")[0].isdigit():
                if _place(int(process.partition(" ")[0])) == place:
                    continue
                await self._pipe.call("ZADD", DEAD, until, boot)
            elif boot in living:
                continue  # of another host: it expires when nobody renews it
            await self._pipe.call("HDEL", PLACES, boot)
            await self._pipe.call("ZREM", LIVING, boot)
        await self._pipe.call("ZREMRANGEBYSCORE", DEAD, "-inf", int(seconds) * 1_000_000)


def _host() -> str:
    return socket.gethostname()


def _place(process: int) -> str:
    """Names a process so that another one with the same number is not taken for it; "" if there is none."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    fields = stat.rpartition(")")[2].split()
    state, started = fields[0], fields[19]
    return "" if state == "Z" else f"{_host()} {process} {started}"
