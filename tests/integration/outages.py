"""Taking Redis away from a gateway and giving it back, for tests of what happens meanwhile and afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Final

from harness.gateway_process import GatewayProcess, Issued
from harness.redis_server import RedisServer
from harness.upstream import Script, answer, whole
from integration.client import ask, chat, eventually, get

DURABLE: Final = ("--appendonly", "yes", "--appendfsync", "always")
"""Options of a Redis that still knows everything after it was killed."""
IMPATIENT: Final = {"TRUNKLINE_REDIS_TIMEOUT": "0.25"}
"""What operators have who say nothing else."""
HONEST: Final[Script] = whole(answer(prompt=20, completion=2))
"""What a short call takes, as a target would count it: gateways learn from it."""


def is_whole(alone: GatewayProcess) -> bool | None:
    """Neither worker counts on its own any more, as far as a few looks tell."""
    looks = [get(alone, "/ready").json()["store"] == "ok" for _ in range(6)]
    return all(looks) or None


def introduce(gateway: GatewayProcess, issued: Issued, workers: int = 2) -> None:
    """Make this key known to every worker. Its calls may be denied: what they use up is counted in Redis only."""
    seen: set[str] = set()

    def met() -> bool | None:
        with ThreadPoolExecutor(6) as threads:
            for reply in threads.map(lambda _: ask(gateway, chat("m", max_tokens=1), issued.secret), range(6)):
                assert reply.status in (200, 429)
                seen.add((reply.header("x-request-id") or "").split("-")[1])
        return len(seen) == workers or None

    eventually(met, "every worker has met the key")


@contextmanager
def outage(alone: GatewayProcess, own_redis: RedisServer, *known: Issued) -> Iterator[None]:
    """Redis is away meanwhile; every worker knows these keys."""
    eventually(lambda: is_whole(alone), "Redis is there")
    for issued in known:
        introduce(alone, issued)
    own_redis.stop()
    try:
        yield
    finally:
        own_redis.restart()
        eventually(lambda: is_whole(alone), "Redis is back")


def flood(alone: GatewayProcess, issued: Issued, calls: int, body: dict[str, Any] | None = None) -> Counter[int]:
    """What becomes of so many calls at once, over both workers."""
    with ThreadPoolExecutor(calls) as threads:
        body = body or chat("m", max_tokens=900)
        replies = list(threads.map(lambda _: ask(alone, body, issued.secret), range(calls)))
    return Counter(reply.status for reply in replies)
