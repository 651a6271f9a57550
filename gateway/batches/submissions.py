"""Batches as tenants leave them with us, look at them and cancel them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

from msgspec import structs

from backends.endpoints import PATHS
from gateway.batches.files import Files, full
from gateway.core.batches import DAY, Batch
from gateway.core.errors import BadRequest, Conflicting, NoBatch, NoFile
from gateway.core.types import Caller
from gateway.store import Batches, Conflict, QuotaReached

WINDOW: Final = "24h"
WINDOW_SECONDS: Final = 24 * 3600.0
MAX_METADATA: Final = 16
_BATCHED: Final = ("chat/completions", "completions", "embeddings", "responses", "messages", "rerank", "score")
ENDPOINTS: Final = {path: name for path, name in PATHS.items() if name in _BATCHED and path == f"/v1/{name}"}
"""What lines may ask, as clients name it."""


class Submissions:
    """The batches of all tenants."""

    def __init__(self, known: Batches, files: Files, now: Callable[[], float] = time.time) -> None:
        self._known, self._files, self._now = known, files, now

    async def create(
        self,
        caller: Caller,
        source: str | None,
        *,
        endpoint: str,
        input_file: str,
        window: str,
        metadata: dict[str, str] | None = None,
    ) -> Batch:
        """Take a batch on. Raises `BadRequest` naming the field, `NoFile`, `StorageFull`."""
        if endpoint not in ENDPOINTS:
            raise BadRequest(f"'endpoint' must be one of {', '.join(ENDPOINTS)}.", param="endpoint")
        if window != WINDOW:
            raise BadRequest(f"'completion_window' must be {WINDOW}.", param="completion_window")
        _check(metadata)
        tenant, most, now = caller.key.tenant, self._files.most(caller.tenant), self._now()
        try:
            file = await self._files.find(tenant, input_file)
        except NoFile as error:
            error.param = "input_file_id"
            raise
        if file.purpose != "batch":
            raise BadRequest(f"The purpose of the file is {file.purpose}, not batch.", param="input_file_id")
        deadline = now + WINDOW_SECONDS
        if file.expires < deadline:
            raise BadRequest(f"The file is deleted before {WINDOW} have passed.", param="input_file_id")
        batch = Batch(
            id=f"batch_{secrets.token_hex(12)}",
            tenant=tenant,
            key_id=caller.key.id,
            source=source,
            endpoint=endpoint,
            input_file=file.id,
            created=now,
            deadline=deadline,
            expires=deadline + (most.days or 0) * DAY,
            metadata=metadata,
        )
        try:
            await self._known.put(batch, most)
        except QuotaReached:
            raise full(most, "batches") from None
        return batch

    async def find(self, tenant: str, id: str) -> Batch:
        """Raises `NoBatch`."""
        batch = await self._known.batch(tenant, id)
        if batch is None:
            raise NoBatch(f"There is no batch {id[:64]!r}.", param="batch_id")
        return batch

    async def of(self, tenant: str) -> list[Batch]:
        """All of the tenant's, newest first."""
        return await self._known.batches(tenant)

    async def cancel(self, batch: Batch) -> Batch:
        """Have no more of it run. Raises `Conflicting` for one that has ended, or is about to."""
        return await cancel(self._known, batch, self._now())


async def cancel(known: Batches, batch: Batch, now: float) -> Batch:
    """As of `Submissions`."""
    while True:
        if batch.status == "cancelling":
            return batch
        if batch.status not in ("validating", "in_progress"):
            raise Conflicting(f"The batch {batch.id} is {batch.status}: it cannot be cancelled any more.")
        cancelling = structs.replace(
            batch, version=batch.version + 1, status="cancelling", ends_as="cancelled", cancelling_at=now
        )
        try:
            await known.put(cancelling)
            return cancelling
        except Conflict:
            found = await known.batch(batch.tenant, batch.id)
            if found is None:
                raise NoBatch(f"There is no batch {batch.id!r}.", param="batch_id") from None
            batch = found


def _check(metadata: dict[str, str] | None) -> None:
    for name, value in (metadata or {}).items():
        if not 0 < len(name) <= 64 or len(value) > 512:
            raise BadRequest("'metadata': names have 1 to 64 characters, values up to 512.", param="metadata")
    if metadata is not None and len(metadata) > MAX_METADATA:
        raise BadRequest(f"'metadata' may have {MAX_METADATA} names.", param="metadata")
