"""What happens to a batch before its lines are asked and after: its input is looked at, its results are written."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final

from msgspec import structs

from gateway.batches.files import Files
from gateway.batches.lines import check
from gateway.batches.results import collected, folder, missing
from gateway.core.batches import DAY, Batch, LineError, StoredFile, path_of
from gateway.core.errors import NoFile
from gateway.core.types import Tenant
from gateway.store import Batches, Conflict, Records

log = logging.getLogger("trunkline.batches")

_UNANSWERED: Final = {
    "expired": ("batch_expired", "The batch's window of 24h ended before this request was made."),
    "cancelled": ("batch_cancelled", "The batch was cancelled before this request was made."),
}


class Steps:
    """Each step can be begun anew by another worker, wherever the one before has died: it does the same again."""

    def __init__(
        self,
        known: Batches,
        records: Records,
        files: Files,
        now: Callable[[], float] = time.time,
        ended: Callable[[str], object] = lambda status: None,
    ) -> None:
        """`ended` is told what a batch that ends here has become."""
        self._known, self._records, self._files, self._now, self._ended = known, records, files, now, ended

    async def change(self, batch: Batch, **fields: Any) -> Batch | None:
        """Write a change; None: somebody else has changed the batch since."""
        changed = structs.replace(batch, version=batch.version + 1, **fields)
        try:
            await self._known.put(changed)
        except Conflict:
            return None
        if changed.ended:
            self._ended(changed.status)
        return changed

    async def finalize(self, batch: Batch, ends_as: str = "completed") -> None:
        """Have its results written: all lines have an answer, or it is out of time."""
        await self.change(batch, status="finalizing", ends_as=ends_as, finalizing_at=self._now())

    async def check(self, batch: Batch, most_bytes: int) -> None:
        """Look at all lines, of at most `most_bytes` each, and put them up to be asked; or say what is wrong."""
        if batch.status not in ("validating", "in_progress"):
            return
        tenant = await self._records.get(Tenant, batch.tenant)
        most, now = self._files.most(tenant), self._now()
        try:
            pieces = self._files.storage.pieces(path_of(batch.tenant, batch.input_file))
            found = await check(pieces, batch.endpoint, most.lines or 0, most_bytes)
            errors = tuple(found.errors)
        except NoFile:
            errors = (LineError(code="file_not_found", message="The input file is gone."),)
        if errors:
            await self.change(batch, status="failed", errors=errors, failed_at=now, expires=self._kept(most.days))
            return
        begun: Batch | None = batch
        if batch.status == "validating":
            begun = await self.change(batch, status="in_progress", total=found.total, in_progress_at=now)
        if begun is not None:
            await self._known.add_work(begun, found.work)

    async def finish(self, batch: Batch) -> None:
        """Write the results, and end it."""
        if batch.status not in ("finalizing", "cancelling"):
            return
        known, storage = self._known, self._files.storage
        progress = await known.progress(batch, close=True)
        parts = await known.parts(batch)
        most = self._files.most(await self._records.get(Tenant, batch.tenant))
        expires = self._kept(most.days)
        output = errors = None
        if progress.completed:
            output = await self._result(batch, "output", collected(storage, batch, parts, True), expires)
        if progress.failed or (batch.ends_as != "completed" and progress.ended < batch.total):
            errors = await self._result(batch, "errors", self._failed(batch), expires)
        ended = {f"{batch.ends_as}_at": self._now()}
        counts = {"completed": progress.completed, "failed": progress.failed}
        files = {"output_file": output, "error_file": errors}
        await self.change(batch, status=batch.ends_as, expires=expires, **ended, **counts, **files)
        await storage.clear(folder(batch))
        await known.forget_work(batch)
        log.info("batch %s is %s: %d answers, %d errors", batch.id, batch.ends_as, progress.completed, progress.failed)

    def _kept(self, days: int | None) -> float:
        return self._now() + (days or 0) * DAY

    async def _failed(self, batch: Batch) -> AsyncIterator[bytes]:
        known, storage = self._known, self._files.storage
        async for line in collected(storage, batch, await known.parts(batch), False):
            yield line
        if batch.ends_as != "completed" and batch.total:
            recorded = await known.recorded(batch, 0, batch.total)
            path = path_of(batch.tenant, batch.input_file)
            with suppress(NoFile):  # then nobody can say whose lines they were
                async for line in missing(storage, batch, path, recorded, *_UNANSWERED[batch.ends_as]):
                    yield line

    async def _result(self, batch: Batch, what: str, pieces: AsyncIterator[bytes], expires: float) -> str:
        """Store a file of results, under an id that is the same whoever does it."""
        digest = hashlib.blake2b(f"{batch.id}:{what}".encode(), digest_size=12).hexdigest()
        id, size = f"file-{digest}", 0

        async def counted() -> AsyncIterator[bytes]:
            nonlocal size
            async for piece in pieces:
                size += len(piece)
                yield piece

        await self._files.storage.write(path_of(batch.tenant, id), counted())
        file = StoredFile(
            id=id,
            tenant=batch.tenant,
            created=self._now(),
            bytes=size,
            filename=f"{batch.id}_{what}.jsonl",
            purpose="batch_output",
            expires=expires,
        )
        await self._known.add_file(file)
        return id
