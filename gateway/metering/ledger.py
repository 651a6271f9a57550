"""The way of ended calls into the usage ledger: gathered here, written in batches, each of them once."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from gateway.core.types import Entry, Sum
from gateway.store import Ledger, StoreDown

log = logging.getLogger("trunkline.metering")

FLUSH_SECONDS = 0.2
AGAIN_SECONDS = (0.2, 2.0)
"""The first and the longest pause before a batch that failed is sent again."""
BATCH = 500
BETWEEN_SECONDS = 0.01
"""Between batches of a long queue: calls in flight want the store too."""
MAX_WAITING = 100_000
"""Entries that wait while the ledger is down; newer ones are dropped and counted."""
CLOSE_SECONDS = 2.0

COLUMNS = {"day": "day", "key": "key_id", "tenant": "tenant", "model": "route"}
"""What sums can be grouped by, and the field of a sum that tells it."""
COUNTED = ("calls", "input", "cached", "output", "cost_micros")


class LedgerWriter:
    """Entries wait in memory until the ledger has them: a batch of which nobody knows whether it arrived is sent again
    under the same name, and the ledger takes it once."""

    def __init__(self, ledger: Ledger, dropped: Callable[[int], None] = lambda _: None) -> None:
        self._ledger, self._dropped = ledger, dropped
        self._boot, self._number = secrets.token_hex(6), 0
        self._waiting: deque[Entry] = deque()
        self._batch: list[Entry] = []
        """Taken from those that wait, not known to be written."""
        self._closing = asyncio.Event()
        self._failing = False
        self._task: asyncio.Task[None] | None = None

    def add(self, entry: Entry) -> None:
        """Have the entry written soon."""
        if len(self._waiting) + len(self._batch) >= MAX_WAITING:
            self._dropped(1)
        else:
            self._waiting.append(entry)

    def open(self) -> None:
        """Start to write."""
        self._task = asyncio.create_task(self._run(), name="ledger")

    async def close(self) -> None:
        """Write what is left, for at most 2 s; what cannot be written by then is counted as dropped."""
        self._closing.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_SECONDS)
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if left := len(self._waiting) + len(self._batch):
            log.error("%d ended calls are missing in the usage ledger", left)
            self._dropped(left)

    async def _run(self) -> None:
        pause = AGAIN_SECONDS[0]
        while True:
            while (self._batch or self._waiting) and await self._flushed():
                pause = AGAIN_SECONDS[0]
                await asyncio.sleep(0 if self._closing.is_set() else BETWEEN_SECONDS)
            left = bool(self._batch or self._waiting)
            if self._closing.is_set() and not left:
                return
            await self._rest(pause if left else FLUSH_SECONDS)
            pause = min(2 * pause, AGAIN_SECONDS[1]) if left else AGAIN_SECONDS[0]

    async def _rest(self, seconds: float) -> None:
        if self._closing.is_set():
            await asyncio.sleep(AGAIN_SECONDS[0])
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def _flushed(self) -> bool:
        """Write one batch; False: the ledger is down, the same batch comes next."""
        if not self._batch:
            self._batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            self._number += 1
        try:
            await self._ledger.append(f"{self._boot}-{self._number}", self._batch)
        except StoreDown as error:
            if not self._failing:
                log.warning("the usage ledger cannot be written, ended calls wait: %s", error)
            self._failing = True
            return False
        except Exception as error:  # a bug of ours must not stop what comes after it
            log.error("%d calls are missing in the usage ledger: %s", len(self._batch), type(error).__name__)
            self._dropped(len(self._batch))
        if self._failing:
            log.warning("the usage ledger is written again")
        self._failing, self._batch = False, []
        return True


def grouped(sums: Sequence[Sum], by: Sequence[str]) -> list[dict[str, Any]]:
    """Sums added up by `day`, `key`, `tenant` and `model`, whichever are in `by`, sorted by them in this order.

    Each row holds these, and calls, input, cached, output, cost_micros. Raises `ValueError` for another name.
    """
    for name in by:
        if name not in COLUMNS:
            raise ValueError(f"cannot sum by {name!r}; possible: {', '.join(COLUMNS)}")
    rows: dict[tuple[str, ...], list[int]] = {}
    for each in sums:
        row = rows.setdefault(tuple(getattr(each, COLUMNS[name]) for name in by), [0] * len(COUNTED))
        for index, name in enumerate(COUNTED):
            row[index] += getattr(each, name)
    return [dict(zip((*by, *COUNTED), (*of, *row), strict=True)) for of, row in sorted(rows.items())]
