"""Records that tests write, and stores that share them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

from gateway.core.types import AdminKey, Audit, KeyRecord, Secret, TargetOrder, Tenant
from gateway.store import Store

KINDS = (KeyRecord, Tenant, AdminKey, TargetOrder)


class Places:
    """Opens stores that share their records, as processes of one fleet do."""

    def __init__(self, make: Callable[[], Store], stack: AsyncExitStack) -> None:
        self._make, self._stack = make, stack

    async def store(self) -> Store:
        store = self._make()
        await store.open()
        self._stack.push_async_callback(store.close)
        return store


def unique() -> str:
    return uuid.uuid4().hex[:12]


def record(kind: type[Any], id: str, version: int = 1, **fields: Any) -> Any:
    """A record of a kind, as small as it may be."""
    if kind in (KeyRecord, AdminKey):
        fields = {"name": "n", "secrets": (Secret(digest="00"),), **fields}
    return kind(id=id, version=version, **{"created": time.time(), **fields})


def entry(subject: str, **fields: Any) -> Audit:
    return Audit(time=time.time(), actor="cli:tester", action="key.update", subject=subject, **fields)


async def soon(condition: Callable[[], object], what: str, seconds: float = 1.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)
