"""Where the content of files lies: a folder, or a bucket of an object store."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterable
from contextlib import suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, TypeVar

from gateway.core.errors import FilesUnavailable, NoFile

T = TypeVar("T")

SCHEMES: Final = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss")
PIECE_BYTES: Final = 1024 * 1024
UPLOAD_BYTES: Final = 8 * 1024 * 1024
"""What an object store is sent at a time."""


def is_shared(where: str) -> bool:
    """Whether all hosts see the same there, whatever it is; of a folder nobody can tell."""
    return "://" in where


def examine_storage(where: str) -> None:
    """Raise `ValueError` if nothing can be stored there, as far as can be seen without asking an object store."""
    if find_spec("obstore") is None:
        raise ValueError("TRUNKLINE_FILES needs obstore: pip install 'trunkline[files]'")
    scheme, separator, _ = where.partition("://")
    if separator:
        if scheme not in SCHEMES:
            allowed = ", ".join(f"{known}://" for known in SCHEMES)
            raise ValueError(f"TRUNKLINE_FILES: expected a folder, or a URL that begins with one of {allowed}")
        return
    try:
        Path(where).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"TRUNKLINE_FILES: the folder {where} cannot be made: {error}") from None
    if not os.access(where, os.R_OK | os.W_OK | os.X_OK):
        raise ValueError(f"TRUNKLINE_FILES: the folder {where} cannot be written")


class FileStorage:
    """Content by path. What is written is there whole, or not at all.

    Every method raises `FilesUnavailable` when the storage fails, and those that read raise `NoFile`.
    """

    def __init__(self, where: str) -> None:
        """A folder or a URL, as the setting `files` has it. Raises `ValueError` if it cannot be used."""
        examine_storage(where)
        import obstore  # only who stores files needs it
        from obstore import store

        self._obstore: Any = obstore
        self._folder = None if is_shared(where) else Path(where).resolve()
        try:
            self._store: Any = store.from_url(where) if is_shared(where) else store.LocalStore(self._folder)
        except Exception as error:  # whatever its builders raise
            raise ValueError(f"TRUNKLINE_FILES: {_first_line(error)}") from None

    async def write(self, path: str, pieces: AsyncIterable[bytes]) -> None:
        """Store what comes. What `pieces` raises is raised, and nothing is stored then."""
        failed = list[BaseException]()

        async def told() -> AsyncIterator[bytes]:
            try:
                async for piece in pieces:
                    if piece:
                        yield piece
            except BaseException as error:
                failed.append(error)
                raise

        put = self._obstore.put_async(self._store, path, told(), chunk_size=UPLOAD_BYTES)
        try:
            await _answered(put)
        except FilesUnavailable:
            if failed:
                raise failed[0] from None
            raise

    async def put(self, path: str, content: bytes) -> None:
        """Store this."""
        await _answered(self._obstore.put_async(self._store, path, content))

    async def read(self, path: str, offset: int, length: int) -> bytes:
        """A part of it."""
        return bytes(await _answered(self._obstore.get_range_async(self._store, path, start=offset, length=length)))

    async def pieces(self, path: str) -> AsyncIterator[bytes]:
        """All of it, piece by piece."""
        found = await _answered(self._obstore.get_async(self._store, path))
        stream = found.stream(min_chunk_size=PIECE_BYTES).__aiter__()
        while (piece := await _answered(_next(stream))) is not None:
            yield bytes(piece)

    async def remove(self, paths: Iterable[str]) -> None:
        """Remove what of this is there."""
        for path in paths:
            try:
                await _answered(self._obstore.delete_async(self._store, path))
            except NoFile:
                continue

    async def clear(self, prefix: str) -> None:
        """Remove all that begins with `prefix/`, and the folder itself."""
        await self.remove([path async for path, _ in self.below(prefix)])
        if self._folder is not None:
            with suppress(OSError):  # never was there, or somebody has come late
                (self._folder / prefix).rmdir()

    async def below(self, prefix: str) -> AsyncIterator[tuple[str, datetime]]:
        """The paths that begin with `prefix/`, each with when it was written."""
        listed = self._obstore.list(self._store, prefix).__aiter__()
        while (found := await _answered(_next(listed))) is not None:
            for each in found:
                yield each["path"], each["last_modified"]


async def _next(iterator: Any) -> Any:
    try:
        return await iterator.__anext__()
    except StopAsyncIteration:
        return None


async def _answered(asked: Awaitable[T]) -> T:
    try:
        return await asked
    except FileNotFoundError:
        raise NoFile("The content of this file is gone.") from None
    except Exception as error:  # obstore's own, and whatever the system says
        raise FilesUnavailable(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
