"""Files of tenants: uploading, listing, reading and deleting them, within what each tenant may store."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import unquote

from gateway.batches.results import folder
from gateway.batches.storage import FileStorage
from gateway.batches.upload import Upload, receive
from gateway.core.batches import DAY, Purpose, Storage, StoredFile, path_of
from gateway.core.errors import BadRequest, BodyTooLarge, Conflicting, NoFile, StorageFull
from gateway.core.types import Caller, Tenant
from gateway.store import Batches, QuotaReached

log = logging.getLogger("trunkline.batches")

UPLOADED: Final[tuple[Purpose, ...]] = ("batch", "user_data")
"""What files of clients may be for."""
LEAST_SECONDS: Final = 3600
STRAY_AGE: Final = timedelta(days=2)
"""Content of which nothing is known is not on its way any more."""


class Files:
    """The files of all tenants. `defaults` say what each may store, unless its record says otherwise."""

    def __init__(
        self,
        known: Batches,
        storage: FileStorage,
        defaults: Storage,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._known, self.storage, self.defaults, self._now = known, storage, defaults, now

    def most(self, tenant: Tenant | None) -> Storage:
        """What a tenant may store."""
        return self.defaults if tenant is None else tenant.storage.over(self.defaults)

    async def upload(self, caller: Caller, content_type: str, pieces: AsyncIterable[bytes]) -> StoredFile:
        """Store a file that comes as a form. Raises `BadRequest`, `BodyTooLarge`, `StorageFull`."""
        tenant, most = caller.key.tenant, self.most(caller.tenant)
        left, number = await self._left(tenant, most)
        if number <= 0:
            raise full(most, "files")
        id = new_file_id()
        path = path_of(tenant, id)

        async def write(content: AsyncIterator[bytes]) -> None:
            await self.storage.write(path, content)

        stored = False
        try:
            upload = await receive(content_type, pieces, write, left)
            file = self._described(id, tenant, upload, most)
            await self._known.add_file(file, most)
            stored = True
        except QuotaReached as reached:  # by another upload of this moment
            raise full(most, reached.what) from None
        except BodyTooLarge:
            raise full(most, "bytes") from None
        finally:
            if not stored:
                await self.storage.remove([path])
        return file

    async def find(self, tenant: str, id: str) -> StoredFile:
        """Raises `NoFile`."""
        file = await self._known.file(tenant, id)
        if file is None:
            raise NoFile(f"There is no file {id[:64]!r}.", param="file_id")
        return file

    async def of(self, tenant: str) -> list[StoredFile]:
        """All of the tenant's, newest first."""
        return await self._known.files(tenant)

    async def delete(self, file: StoredFile) -> None:
        """Raises `Conflicting` while a batch reads it."""
        for batch in await self._known.active():
            if batch.tenant == file.tenant and batch.input_file == file.id:
                raise Conflicting(f"The batch {batch.id} reads this file: cancel it first, or let it end.")
        await self._remove(file)

    async def sweep(self) -> None:
        """Remove what is to be forgotten."""
        while (expired := await self._known.expired(self._now())) != ([], []):
            for batch in expired[1]:
                await self.storage.clear(folder(batch))
                await self._known.remove_batch(batch)
            for file in expired[0]:
                await self._remove(file)

    async def clean(self) -> None:
        """Remove content that nobody ever came to know of: who stored it has died before it could tell."""
        if not await self._known.is_cleaner():
            return
        old = datetime.now(UTC) - STRAY_AGE
        stray = [path async for path, written in self.storage.below("files") if written < old]
        for path in stray:
            tenant, _, id = path.removeprefix("files/").partition("/")
            if await self._known.file(unquote(tenant), id) is None:
                log.warning("removing %s, which belongs to no file", path)
                await self.storage.remove([path])

    async def _remove(self, file: StoredFile) -> None:
        # Content first: what fails in between is found again, as its record is still there.
        await self.storage.remove([file.path])
        await self._known.remove_file(file)

    async def _left(self, tenant: str, most: Storage) -> tuple[int, int]:
        """Bytes and files that the tenant may still store."""
        files = await self._known.files(tenant)
        return (most.bytes or 0) - sum(file.bytes for file in files), (most.files or 0) - len(files)

    def _described(self, id: str, tenant: str, upload: Upload, most: Storage) -> StoredFile:
        purpose = upload.fields.get("purpose", "")
        if upload.filename is None:
            raise BadRequest("The form has no file: send it in the field 'file', with a file name.", param="file")
        if purpose not in UPLOADED:
            raise BadRequest(f"'purpose' must be one of {', '.join(UPLOADED)}.", param="purpose")
        keep, now = (most.days or 0) * DAY, self._now()
        if (wanted := upload.fields.get("expires_after[seconds]")) is not None:
            if not wanted.isascii() or not wanted.isdigit() or len(wanted) > 9 or int(wanted) < LEAST_SECONDS:
                raise BadRequest(
                    f"'expires_after[seconds]' must be a number of seconds, at least {LEAST_SECONDS}.",
                    param="expires_after",
                )
            keep = min(keep, int(wanted))
        return StoredFile(
            id=id,
            tenant=tenant,
            created=now,
            bytes=upload.bytes,
            filename=upload.filename,
            purpose=purpose,
            expires=now + keep,
        )


def new_file_id() -> str:
    return f"file-{secrets.token_hex(12)}"


def full(most: Storage, what: str) -> StorageFull:
    """What a tenant is told that has as much as it may have of something."""
    text = {
        "files": f"Your tenant may store {most.files} files, and has as many: delete some.",
        "bytes": f"Your tenant may store {most.bytes} bytes of files together: delete some.",
        "batches": f"Your tenant may have {most.batches} batches that have not ended, and has as many.",
    }
    return StorageFull(text[what])
