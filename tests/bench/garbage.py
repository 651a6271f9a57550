"""What it costs to refuse keys that cannot be any: no look-up, no hash."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

from gateway.auth import Keyring
from gateway.core.clock import SystemClock
from gateway.core.errors import Refused
from gateway.store.local import LocalStore

CALLS = 20_000
KEYS = (b"Bearer sk-proj-abcdefghijklmnopqrstuvwxyz", b"Bearer tl_" + b"A" * 12 + b"_" + b"b" * 49)
"""One that does not look like a key, and one whose checksum is wrong."""


async def _refuse_all(keyring: Keyring) -> float:
    headers = [{b"authorization": key} for key in KEYS]
    started = time.process_time()
    for number in range(CALLS):
        try:
            await keyring.authenticate(
                headers[number % 2], f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
            )
        except Refused:
            continue
        raise AssertionError("a garbage key was let in")
    return time.process_time() - started


def cpu_us() -> float:
    """CPU microseconds for each, every one from an address of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        keyring = Keyring(LocalStore(Path(folder) / "keys.json").records, {0: b""}, SystemClock())
        return asyncio.run(_refuse_all(keyring)) / CALLS * 1e6
