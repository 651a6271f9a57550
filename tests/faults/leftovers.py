"""What a fleet still holds when nothing goes on any more, and what its processes have taken."""

from __future__ import annotations

import asyncio

import psutil
from faults.fleet import Fleet
from harness.redis_server import RedisServer
from harness.upstream import Upstream
from integration.client import samples, total


async def leftovers(two: Fleet, redis: RedisServer, upstream: Upstream) -> dict[str, float]:
    """What is still held once nothing goes on any more; waits for as long as it takes to settle, no longer."""
    left: dict[str, float] = {}

    def look() -> bool:
        metrics = [samples(gateway) for gateway in two.gateways]
        opened = redis.keys("{tl}:budget:*:open")
        left.update(
            in_flight=sum(total(found, "in_flight") for found in metrics),
            queued=sum(total(found, "queue_calls") + total(found, "held_calls") for found in metrics),
            at_targets=sum(total(found, "target_running") for found in metrics),
            slots=sum(redis.ask("ZCARD", name) for name in redis.keys("{tl}:lease:*")),
            reservations=sum(redis.ask("ZCARD", name) for name in opened),
            reserved=sum(int(redis.ask("HGET", name.removesuffix(":open"), "o")) for name in opened),
            gates=len(redis.keys("{tl}:settled:*")),
            upstream=sum(1 for one in list(upstream._connections) if one._current and one._current.method == "POST"),
        )
        return not any(left.values())

    for _ in range(100):  # gates are forgotten every 5 s
        if look():
            break
        await asyncio.sleep(0.1)
    return left


def workers(two: Fleet) -> list[psutil.Process]:
    """The processes that serve calls."""
    return [worker for gateway in two.gateways for worker in psutil.Process(gateway.process.pid).children()]


def descriptors(two: Fleet) -> int:
    """Open files and connections of all workers."""
    return sum(worker.num_fds() for worker in workers(two))


def megabytes(two: Fleet) -> float:
    """Memory of all workers."""
    return float(sum(worker.memory_info().rss for worker in workers(two))) / 1024**2
