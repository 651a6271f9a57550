"""The events of the soak's chaos, by lane: Redis and keys, gateways, each target, the table."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from soak.calls import FAULTS
from soak.fakes import Fake
from soak.peaks import Peaks
from soak.place import WORKERS, Place, workers
from soak.table import BROKEN

RESPAWN_SECONDS = 20.0
ROTATION_SECONDS = 0.5
"""How long after SIGTERM a load balancer still sends calls."""


class Event(NamedTuple):
    """Something that goes wrong, and is mended when `run` returns."""

    name: str
    lane: str
    run: Callable[[random.Random], Awaitable[None]]
    weight: float = 1.0


def events(place: Place, peaks: Peaks, kills: list[tuple[float, int]]) -> list[Event]:
    """All that may happen at this place; with one gateway no gateway is touched."""
    found = [*redis_events(place, peaks), *key_events(place), *table_events(place)]
    for fake in place.spoiled.values():
        found += target_events(fake)
    if len(place.fleet.gateways) > 1:
        found += [
            Event("gateway: kill -9 of a worker", "gateways", lambda chance: _kill(place, kills, chance), 3),
            Event("gateway: SIGTERM and a new one", "gateways", lambda _: _roll(place), 3),
        ]
    return found


def redis_events(place: Place, peaks: Peaks) -> list[Event]:
    """The link to Redis, and Redis itself; nothing of it loses data."""

    def spoiled(name: str, begin: Callable[[], None], end: Callable[[], None], weight: float = 1.0) -> Event:
        async def run(chance: random.Random) -> None:
            peaks.outage_begins()
            try:
                await asyncio.to_thread(begin)
                await asyncio.sleep(chance.uniform(0.5, 4))
            finally:
                await asyncio.to_thread(end)
                peaks.outage_ends()

        return Event(f"redis: {name}", "redis", run, weight)

    async def resets(chance: random.Random) -> None:
        peaks.outage_begins()
        for _ in range(chance.randrange(1, 5)):
            place.link.reset()
            await asyncio.sleep(0.3)
        peaks.outage_ends()

    redis, link = place.redis, place.link
    return [
        spoiled("frozen", redis.freeze, redis.thaw),
        spoiled("black hole", link.black_hole, link.restore),
        spoiled("20 ms away", lambda: link.delay(0.01), link.restore, 0.5),
        spoiled("400 ms away", lambda: link.delay(0.2), link.restore),
        spoiled("SCRIPT FLUSH", lambda: redis.ask("SCRIPT", "FLUSH"), lambda: None, 0.5),
        Event("redis: reset", "redis", resets),
    ]


def key_events(place: Place) -> list[Event]:
    """In the lane of Redis: whoever makes keys needs it."""
    turns = iter(range(1, 10**9))
    return [
        Event("keys: one created", "redis", lambda _: place.keys.create()),
        Event("keys: one revoked", "redis", lambda _: place.keys.revoke()),
        Event("keys: a tenant changed", "redis", lambda _: place.keys.change_tenant(next(turns))),
    ]


def table_events(place: Place) -> list[Event]:
    turns = iter(range(1, 10**9))

    async def reload(_: random.Random) -> None:
        place.fleet.reload(place.table(next(turns)))
        await asyncio.sleep(2)

    async def broken(chance: random.Random) -> None:
        chance.choice(place.fleet.rotation).routing.write_text(BROKEN)  # one that starts with it would rightly end
        await asyncio.sleep(2)
        place.fleet.reload(place.fleet.text)

    return [Event("table: reloaded", "table", reload), Event("table: broken", "table", broken, 0.5)]


def target_events(fake: Fake) -> list[Event]:
    """In a lane for each target."""
    lane = f"target {fake.name}"

    async def ordered(chance: random.Random) -> None:
        await asyncio.to_thread(fake.order, chance.choice((*FAULTS, "refuse=1", "flap=0.5")))
        await asyncio.sleep(chance.uniform(1, 4))
        await asyncio.to_thread(fake.order, "")

    async def frozen(chance: random.Random) -> None:
        fake.freeze()
        await asyncio.sleep(chance.uniform(0.5, 3))
        fake.thaw()

    async def dies(chance: random.Random) -> None:
        fake.kill()
        await asyncio.sleep(chance.uniform(0, 2))
        await asyncio.to_thread(fake.start)

    return [
        Event(f"{lane}: misbehaves", lane, ordered, 1),
        Event(f"{lane}: frozen", lane, frozen, 0.4),
        Event(f"{lane}: dies and comes back", lane, dies, 0.4),
    ]


async def _kill(place: Place, kills: list[tuple[float, int]], chance: random.Random) -> None:
    """One worker, of a gateway that is not the first; until there is a new one, and it may die in its turn."""
    gateway = chance.choice(place.fleet.rotation[1:])
    victim = chance.choice(workers(gateway))
    kills.append((time.monotonic(), gateway.port))
    victim.kill()
    deadline = time.monotonic() + RESPAWN_SECONDS
    while victim in (living := workers(gateway)) or len(living) < WORKERS:
        assert time.monotonic() < deadline, f"the worker was not replaced within {RESPAWN_SECONDS:.0f} s"
        await asyncio.sleep(0.2)


async def _roll(place: Place) -> None:
    """A new gateway takes the place of the one that has been there longest, the first excepted."""
    fleet = place.fleet
    await asyncio.to_thread(fleet.join)
    old = fleet.rotation[1]

    async def leave_rotation() -> None:
        await asyncio.sleep(ROTATION_SECONDS)
        fleet.rotation.remove(old)

    await asyncio.gather(asyncio.to_thread(fleet.retire, old), leave_rotation())
