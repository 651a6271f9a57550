"""A gateway's keyring on a store that can be stopped, and a registrar in another process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from harness.around import Around
from harness.clock import FixedClock

from gateway.admin import Registrar
from gateway.auth import AdminKeys, Caller, Keyring, Throttle
from gateway.core.errors import Throttled, Unauthenticated
from gateway.store import KINDS, Conflict, StoreDown
from gateway.store.local import LocalStore

PEPPERS = {0: b"", 1: b"first", 2: b"second"}
HERE = "192.0.2.1"


class Records(Around):
    """Real records, but they can be down, deaf, or stopped in the middle of a look-up, and look-ups are counted."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.down = False
        self.asked: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.conflicts = 0
        self.tell: Callable[[str | None], None] = lambda _: None
        self.subscribed = True

    async def get(self, kind: Any, id: str) -> Any:
        self.asked.append(f"{KINDS[kind]}:{id}")
        if self.down:
            raise StoreDown("down")
        found = await self.inner.get(kind, id)
        await self.gate.wait()
        if self.down:
            raise StoreDown("down")
        return found

    async def shut(self) -> None:
        """Let no look-up end that begins from now on, until `gate` is set; what they will find is read already."""
        await self.inner.refresh()
        self.gate.clear()

    def watch(self, changed: Callable[[str | None], None]) -> None:
        self.tell = changed  # the test tells, when and what it likes

    async def put(self, record: Any, audit: Any = None) -> None:
        if self.down:
            raise StoreDown("down")
        try:
            await self.inner.put(record, audit)
        except Conflict:
            self.conflicts += 1
            raise


class Parts:
    """One gateway, and a registrar beside it whose changes it hears of only when the test tells it."""

    def __init__(self, folder: Path, peppers: Mapping[int, bytes] = PEPPERS) -> None:
        self.clock, self.store = FixedClock(), LocalStore(folder / "keys.json")
        self.records = Records(self.store.records)
        self.refused = 0
        self.throttle = Throttle(self.clock, refused=self._refused)
        self.keyring = Keyring(self.records, peppers, self.clock, self.throttle)
        self.admins = AdminKeys(self.records, peppers, self.clock)
        self.elsewhere = LocalStore(folder / "keys.json")
        self.registrar = Registrar(self.elsewhere.records, peppers, self.clock, "cli:test")

    async def authenticate(self, token: str, source: str | None = HERE, **options: Any) -> Caller:
        return await self.keyring.authenticate({b"x-api-key": token.encode()}, source, **options)

    async def enters(self, token: str, source: str | None = HERE, **options: Any) -> bool:
        try:
            await self.authenticate(token, source, **options)
        except Unauthenticated:
            return False
        return True

    async def says(self, token: str, source: str | None = HERE) -> int:
        """The status that a call with this key would get."""
        try:
            await self.authenticate(token, source)
        except (Unauthenticated, Throttled) as error:
            return error.status
        return 200

    async def close(self) -> None:
        self.records.gate.set()
        await self.keyring.close()
        await self.admins.close()

    def _refused(self) -> None:
        self.refused += 1


async def turns(count: int = 20) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(met: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that a background task does."""
    async with asyncio.timeout(30):
        while not await met():
            await asyncio.sleep(0.001)
