"""A Redis that may forget: values that are kept for a while, or until there is no room for them."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

import redis

from gateway.store import NotAllowed, StoreDown, shown
from gateway.store.redis.answer_timer import in_time
from gateway.store.redis.connect import Connector
from gateway.store.redis.connection import Command, Pipe, pack

log = logging.getLogger("trunkline.store")

LOOK_SECONDS: Final = 2.0
"""How long a command of the operator's waits for a Redis that it looks at."""
AGAIN_SECONDS: Final = 30.0
"""After which one that is not fit is looked at again: it may have been set up in the meantime."""
FIX: Final = "give it a Redis of its own, with 'maxmemory' and 'maxmemory-policy allkeys-lru'"


class RedisAnswers:
    """Values by name. What Redis does not answer in time is not there; nothing waits for it to come back."""

    def __init__(self, url: str, timeout: float) -> None:
        self._pipe, self._where = Pipe(url, timeout, self._connected), shown(url)
        self._fit = False
        """It has room that is bounded, and makes more when it is full."""
        self._again: asyncio.TimerHandle | None = None
        self._told = ""

    async def open(self) -> None:
        """Start to connect."""
        self._pipe.open()

    async def close(self) -> None:
        """Have what was given to be stored sent, and stop."""
        if self._again is not None:
            self._again.cancel()
        await self._pipe.close()

    def get(self, name: str, most: int) -> asyncio.Future[Any]:
        """The value, or so many bytes of it; empty: there is none. The future may end in `StoreDown`."""
        if not self._fit:
            return self._unfit()
        return self._pipe.submit("GETRANGE", name, 0, most - 1)

    def put(self, name: str, value: bytes, seconds: float, ended: Callable[[Any], None]) -> None:
        """Keep a value; `ended` is called with the answer to that, or with the exception if there is none."""
        if not self._fit:
            ended(StoreDown(self._told))
            return
        data = pack(("SET", name, value, "PX", max(1, int(seconds * 1000))))
        self._pipe.send(data, ended=lambda _, answer: ended(answer))

    def _unfit(self) -> asyncio.Future[Any]:
        refused = asyncio.get_running_loop().create_future()
        refused.set_exception(StoreDown(self._told or "not connected"))
        refused.exception()  # nobody may be waiting
        return refused

    def _connected(self) -> None:
        """Another server may be there now."""
        self._fit = False
        self._look()

    def _look(self) -> None:
        self._again = None
        self._pipe.send(pack(("INFO", "memory")), ended=self._looked)

    def _looked(self, command: Command, told: Any) -> None:
        if isinstance(told, NotAllowed):
            self._say(f"{told}; whether it evicts and how much it holds cannot be told", refused=False)
        elif isinstance(told, bytes):
            if why := unfit(told):
                self._say(f"answers are not kept: the Redis of TRUNKLINE_CACHE_URL, {self._where}, {why}", refused=True)
                self._again = asyncio.get_running_loop().call_later(AGAIN_SECONDS, self._look)
                return
        else:
            return  # it is looked at when it is there again
        self._fit = True

    def _say(self, what: str, *, refused: bool) -> None:
        if what != self._told:
            log.log(logging.ERROR if refused else logging.WARNING, "%s", what)
        self._told = what


def unfit(memory: bytes) -> str:
    """Why a Redis that tells this by `INFO memory` is no place for a cache; empty: it is one, as far as it tells."""
    policy = re.search(rb"^maxmemory_policy:(\S+)", memory, re.MULTILINE)
    most = re.search(rb"^maxmemory:(\d+)", memory, re.MULTILINE)
    if policy is not None and policy[1] == b"noeviction":
        return f"has maxmemory-policy noeviction, as only that of limits and records must: it would fill up; {FIX}"
    if most is not None and not int(most[1]):
        return f"has no 'maxmemory': a cache would take all the memory of its machine; {FIX}"
    return ""


async def look(url: str, others: Sequence[str]) -> str:
    """Why the Redis at `url` cannot have the cache; empty: it can. `others` are the URLs of limits and records.

    Raises `StoreDown` if it does not answer.
    """
    if url in others:
        return f"is that of limits and records, which must not evict; {FIX}"
    memory, server = await _ask(url)
    for other in others:
        with suppress(StoreDown):
            if server and server == (await _ask(other))[1]:
                return f"is the server of limits and records, which must not evict; {FIX}"
    return unfit(memory)


async def _ask(url: str) -> tuple[bytes, bytes]:
    """What a Redis tells of its memory, and the id of its process; empty what it does not tell us."""
    try:
        connection = await in_time(Connector(url, LOOK_SECONDS).connect(), LOOK_SECONDS)
        try:
            memory = await _info(connection, "memory")
            server = re.search(rb"^run_id:(\S+)", await _info(connection, "server"), re.MULTILINE)
        finally:
            await connection.disconnect()
    except (redis.RedisError, OSError, TimeoutError) as error:
        raise StoreDown(f"no answer from Redis at {shown(url)}: {error or type(error).__name__}") from None
    return memory, b"" if server is None else server[1]


async def _info(connection: Any, section: str) -> bytes:
    await connection.send_command("INFO", section)
    try:
        told: bytes = await in_time(connection.read_response(), LOOK_SECONDS)
    except redis.ResponseError:
        return b""  # we may not look
    return told
