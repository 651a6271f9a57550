"""What is still held when nothing goes on any more: in Redis, in the gateways' own counts, at the targets."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable
from contextlib import suppress

import msgspec
from faults.volley import post, volley
from integration.client import samples, total
from soak.calls import saying
from soak.fakes import Fake
from soak.place import Place
from soak.table import STEADY, WIDE

from gateway.routing.gossip import GatewayReport
from gateway.store import LEASE_SECONDS

SETTLE_SECONDS = LEASE_SECONDS + 20.0
"""Leases of killed workers expire after the first part of this."""
GAUGES = (
    *("in_flight", "queue_calls", "held_calls", "target_running", "target_waiting", "settle_pending"),
    "answer_memory_bytes",
)
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
STAMP = 8
"""Bytes before a report on the board: when it was written."""


async def leftovers(place: Place) -> dict[str, float]:
    """Each thing that may be held, and how much of it is; waits until nothing is, or for so long as it may take."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        found = await asyncio.to_thread(_held, place)
        if not any(found.values()):
            await _sweep(place)
            found |= await asyncio.to_thread(_unswept, place)
            if not any(found.values()):
                return found
        if time.monotonic() > deadline:
            return found | await asyncio.to_thread(_unswept, place)
        await asyncio.sleep(1)


def _held(place: Place) -> dict[str, float]:
    redis, now = place.redis, time.time_ns() // 1000
    boots = redis.ask("ZRANGE", "{tl}:workers", 0, -1)
    gates = redis.keys("{tl}:settled:*")
    scraped, mute = scrape(place)
    gauges = {f"gauge {name}": sum(total(each, name) for each in scraped) for name in GAUGES}
    return {
        "leases in Redis": _members(place, redis.keys("{tl}:lease:*"), now),
        "open reservations": _members(place, redis.keys("{tl}:budget:*:open"), now),
        "gates of living workers": sum(any(boot in gate for boot in boots) for gate in gates),
        "load told on the board": _board(place, boots),
        **gauges,
        "gateways that do not answer": mute,
        "calls at targets (pool slots in use)": sum(map(_running, place.fakes)) + place.steady.now.total(),
    }


def scrape(place: Place) -> tuple[list[Samples], int]:
    """The metrics of the gateways, and how many do not answer."""
    found = []
    for gateway in place.fleet.gateways:
        with suppress(OSError):
            told = samples(gateway)
            found.append(
                {key: value for key, value in told.items() if not math.isnan(value)}
            )  # what is no longer there
    return found, len(place.fleet.gateways) - len(found)


def _members(place: Place, keys: Iterable[str], now: int | str) -> int:
    return sum(place.redis.ask("ZCOUNT", key, now, "+inf") for key in keys)


def _running(fake: Fake) -> int:
    return int(fake.tells()["running"])


def _board(place: Place, boots: list[str]) -> int:
    """Calls that living gateways say are at targets or wait."""
    reports: list[GatewayReport] = []
    with place.redis.raw() as raw:
        for key in raw.keys("{tl}:load:*"):
            published = {boot.decode(): each for boot, each in raw.hgetall(key).items() if boot.decode() in boots}
            reports += [msgspec.msgpack.decode(each[STAMP:], type=GatewayReport) for each in published.values()]
    loads = [load for report in reports for load in report.loads.values()]
    at_targets = sum(load.running + load.waiting + load.prefill for load in loads)
    return at_targets + sum(report.waiting + sum(report.inflight.values()) for report in reports)


async def _sweep(place: Place) -> None:
    """A call of each key to each route that counts: what has expired goes when somebody needs the room."""
    labels = [*place.keys.issued, *["free"] * WIDE]
    raws = [msgspec.json.encode(saying(route, 2, chats=True, stream=False)) for route in ("plain", *STEADY)]
    secrets = [place.keys.secret(label) for label in labels] + [each.secret for each in place.keys.volatile]
    for raw in raws:
        await volley([gateway.port for gateway in place.fleet.gateways], [post(raw, secret) for secret in secrets])


def _unswept(place: Place) -> dict[str, float]:
    """What is left at all, of dead workers too."""
    redis = place.redis
    opened = redis.keys("{tl}:budget:*:open")
    reserved = sum(int(redis.ask("HGET", name.removesuffix(":open"), "o") or 0) for name in opened)
    revoked = place.keys.revoked
    leases = [key for key in redis.keys("{tl}:lease:*") if not any(id in key for id in revoked)]
    return {
        "leases left behind by killed workers": _members(place, leases, "-inf"),
        "reservations left behind": _members(place, opened, "-inf"),
        "tokens and money reserved": reserved,
    }
