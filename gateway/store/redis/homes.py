"""Where what calls go on with is, in Redis, which forgets it by itself."""

from __future__ import annotations

from typing import Final

from gateway.store.redis.connection import Pipe

HOME: Final = "{tl}:home:"


class RedisHomes:
    """Raises `StoreDown` when Redis does not answer."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    async def remember(self, tenant: str, name: str, target: str, seconds: int) -> None:
        await self._pipe.call("SET", f"{HOME}{tenant}:{name}", target, "EX", seconds)

    async def forget(self, tenant: str, name: str) -> None:
        await self._pipe.call("DEL", f"{HOME}{tenant}:{name}")

    async def recall(self, tenant: str, name: str) -> str | None:
        found: bytes | None = await self._pipe.call("GET", f"{HOME}{tenant}:{name}")
        return None if found is None else found.decode()
