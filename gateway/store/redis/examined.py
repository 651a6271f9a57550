"""What an operator is told of a Redis: which it is, what its user may do there, how its clock goes."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any, Final

import redis

from gateway.store import StoreDown, shown
from gateway.store.redis.answer_timer import in_time
from gateway.store.redis.connect import Connector
from gateway.store.redis.permissions import is_denied, pattern
from gateway.store.seen import RedisSeen

LOOKS: Final = 5
"""Times it is asked for its clock; the fastest answer counts."""
_KEY: Final = "{tl}:%s:doctor"
RIGHTS: Final[Sequence[tuple[str, ...]]] = (
    ("EXISTS", "{tl}:epoch"),
    ("HGET", _KEY % "key", "record"),
    ("HGET", _KEY % "tenant", "record"),
    ("HGET", _KEY % "admin", "record"),
    ("HGET", _KEY % "target", "record"),
    ("ZRANGE", "{tl}:orders", "0", "0"),
    ("EVALSHA", "0" * 40, "0"),
    ("PEXPIRE", _KEY % "rate", "no number"),
    ("SET", _KEY % "rate", "0", "no option"),
    ("ZADD", _KEY % "lease", "no number", "x"),
    ("ZREM", _KEY % "lease", "x"),
    ("HINCRBY", _KEY % "budget", "s", "no number"),
    ("HDEL", _KEY % "load", "x"),
    ("XADD", "{tl}:ledger", "no id", "x", "x"),
    ("HINCRBY", _KEY % "usage", "x", "no number"),
    ("SET", _KEY % "home", "0", "no option"),
)
"""What a gateway must be allowed. Redis looks at rules before it looks at arguments: these change nothing, as a key is
not there or an argument is none, and what is forbidden is refused as such."""


async def examined(url: str, seconds: float) -> RedisSeen:
    """What the Redis of `url` tells. Raises `StoreDown` without an answer in time, `ValueError` for what is no URL."""
    connector = Connector(url, seconds)
    try:
        connection = await in_time(connector.connect(), seconds)
        try:
            return await _seen(connection, shown(url), seconds)
        finally:
            await connection.disconnect()
    except (redis.RedisError, OSError, TimeoutError) as error:
        raise StoreDown(f"no answer from Redis at {shown(url)}: {error or type(error).__name__}") from None


def policy_of(memory: bytes) -> str:
    """The `maxmemory-policy` in what `INFO memory` tells; empty: it does not tell it."""
    return _told(memory, "maxmemory_policy")


async def _seen(connection: Any, where: str, seconds: float) -> RedisSeen:
    async def ask(*command: str) -> Any:
        await connection.send_command(*command)
        return await in_time(connection.read_response(), seconds)

    async def info(section: str) -> bytes:
        try:
            told: bytes = await ask("INFO", section)
        except redis.ResponseError:
            return b""  # a managed Redis may not let us look
        return told

    ways = []
    for _ in range(LOOKS):
        asked = time.time()
        told, micros = await ask("TIME")
        took = time.time() - asked
        ways.append((took, int(told) + int(micros) / 1e6 - asked - took / 2))
    took, ahead = min(ways)
    append = _told(await info("persistence"), "aof_enabled")
    return RedisSeen(
        where=where,
        version=_told(await info("server"), "redis_version"),
        policy=policy_of(await info("memory")),
        persistent=None if not append else append == "1",
        milliseconds=round(took * 1000, 2),
        clock_ahead=round(ahead, 3),
        denied=tuple([_shown(right) for right in RIGHTS if await _denied(ask, right)]),
    )


async def _denied(ask: Any, right: Sequence[str]) -> bool:
    try:
        await ask(*right)
    except redis.ResponseError as error:  # redis-py takes NOPERM off what it raises an own error for
        return isinstance(error, redis.exceptions.NoPermissionError) or is_denied(str(error))
    return False


def _shown(right: Sequence[str]) -> str:
    """`hget on {tl}:key:*`; of a script its name alone."""
    command, key = right[0].lower(), right[1]
    return f"{command} on {pattern(key)}" if key.startswith("{tl}") else command


def _told(info: bytes, name: str) -> str:
    found = re.search(rb"^%b:(\S+)" % name.encode(), info, re.MULTILINE)
    return "" if found is None else found[1].decode(errors="replace")
