"""Runs batches in this worker: looks which there are, and has a `Run` for each until it has ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, cast

from msgspec import structs

from gateway.app.batch_counts import BatchCounts
from gateway.app.batch_line import LineClient, LineKeys
from gateway.app.batch_run import Run, Tools, why
from gateway.app.batch_turns import Turns
from gateway.auth import Keyring
from gateway.batches.files import Files
from gateway.batches.steps import Steps
from gateway.call import serve
from gateway.core.batches import Batch
from gateway.core.errors import FilesUnavailable
from gateway.http.server import DataPlane
from gateway.metering import Metrics
from gateway.store import RENEW_SECONDS, Store, StoreDown
from gateway.targets.load import RATE

log = logging.getLogger("trunkline.app")

LOOK_SECONDS: Final = 1.0
"""How often is looked at batches while there are any; without any, nobody looks before word of one comes."""
BYTES_A_TOKEN: Final = 4
PART: Final = 0.03
"""Of the targets' time, that prompts of lines take beside calls that somebody waits for. A call that comes while such a
prompt is being read waits for its end: with 3 % the 95th percentile of their waiting stays as it was, with 5 % not."""
SWEEP_SECONDS: Final = 3600.0
"""How often is looked for what is to be forgotten."""


class BatchRunner:
    """`lines` is the most that are asked at once; with 0 this worker runs none, and tells others of its own calls."""

    def __init__(
        self,
        store: Store,
        files: Files,
        plane: DataPlane,
        lines: int,
        boot: str,
        metrics: Metrics,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._known, self._files, self._plane, self._now = store, store.batches, files, plane, now
        self._keys = cast("Keyring", LineKeys(plane.parts.keyring))
        self._others = False
        """Another worker has calls under way that somebody waits for."""
        self._turns = Turns(lines, self._is_interactive)
        self._counts = BatchCounts(metrics, self._turns)
        self._steps = Steps(store.batches, store.records, files, now, self._counts.ended)
        self._tools = Tools(
            store.batches,
            files.storage,
            self._steps,
            self._turns,
            boot,
            self._serve,
            self._gap,
            lambda: plane.bodies,
            self._counts.recorded,
        )
        self._runs: dict[str, Run] = {}
        self._word = asyncio.Event()
        self._held_at = self._swept_at = float("-inf")
        self._draining = self._failing = False
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to look."""
        self._known.watch(self._word.set)
        self._word.set()
        self._task = asyncio.create_task(self._run(), name="batches")

    async def close(self) -> None:
        """Record what was answered, leave the rest to others, and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for run in self._runs.values():
            await run.close()
        self._turns.close()

    @property
    def running(self) -> int:
        """Lines that are being asked."""
        return self._turns.running

    def drain(self) -> None:
        """Begin nothing more."""
        self._draining = True
        for run in self._runs.values():
            run.ending = True

    def end_calls(self) -> None:
        """End the lines that are being asked: others will ask them again."""
        for run in self._runs.values():
            run.stop_lines()

    async def _run(self) -> None:
        while True:
            try:
                self._word.clear()
                await self._sweep()
                active = await (self._look() if self._turns.lines else self._tell())
                self._failing = False
            except (StoreDown, FilesUnavailable) as error:
                log.log(logging.DEBUG if self._failing else logging.WARNING, "batches wait: %s", why(error))
                active = self._failing = True
            except Exception:  # a bug of ours; without this task no batch would run any more
                log.exception("batches could not be looked at")
                active = True
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS if active else SWEEP_SECONDS):
                    await self._word.wait()

    async def _look(self) -> bool:
        """See which batches there are, and hold what of them is ours; whether there are any."""
        await self._hold()
        if self._draining:
            return True
        active = {batch.id: batch for batch in await self._known.active()}
        self._counts.active(active.values())
        for id, run in list(self._runs.items()):
            if id in active or run.in_step:
                continue
            del self._runs[id]
            run.batch = structs.replace(run.batch, status="completed")  # or otherwise ended: nothing is to be left
            await run.close()
        for batch in active.values():
            if batch.deadline <= self._now() and batch.status in ("validating", "in_progress"):
                await self._steps.finalize(batch, "expired")
            self._runs_of(batch).update(batch)
        if active:
            self._others = await self._known.interactive(bool(self._plane.running))
        return bool(active or self._runs)

    async def _tell(self) -> bool:
        """Have those that run batches know of this worker's calls; whether there are any batches."""
        active = await self._known.active()
        self._counts.active(active)
        if active and self._plane.running:
            await self._known.interactive(True)
        return bool(active)

    async def _hold(self) -> None:
        now = time.monotonic()
        if now - self._held_at >= RENEW_SECONDS:
            self._held_at = now
            for run in list(self._runs.values()):
                if run.held:
                    await self._known.hold(run.batch, list(run.held))

    def _runs_of(self, batch: Batch) -> Run:
        run = self._runs.get(batch.id)
        if run is None:
            run = self._runs[batch.id] = Run(batch, self._tools)
        return run

    async def _sweep(self) -> None:
        now = time.monotonic()
        if now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            await self._files.sweep()
            await self._files.clean()

    async def _serve(self, client: LineClient) -> None:
        parts = structs.replace(self._plane.parts, keyring=self._keys)
        await serve(parts, client.endpoint, client)

    def _gap(self, line: bytes) -> float:
        """So long that reading prompts of lines takes up no more than a part of the targets' time."""
        targets = sum(target.up is not False for target in self._plane.parts.routes.targets.values())
        return len(line) / BYTES_A_TOKEN / RATE / PART * self._store.gateways / max(1, targets)

    def _is_interactive(self) -> bool:
        return self._others or bool(self._plane.running)
