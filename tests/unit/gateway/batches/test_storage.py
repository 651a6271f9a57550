"""Files in a folder: whole or not at all, and what is said of a place that cannot be used."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.batches.storage import FileStorage, examine_storage, is_shared
from gateway.core.errors import NoFile


async def some(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def test_what_is_written_is_read(tmp_path: Path) -> None:
    storage = FileStorage(str(tmp_path / "made" / "here"))
    await storage.write("a/b", some(b"one", b"", b"two"))
    await storage.put("a/c", b"three")
    await storage.write("a/empty", some())
    assert [each async for each in storage.pieces("a/b")] == [b"onetwo"]
    assert [each async for each in storage.pieces("a/empty")] == []
    assert await storage.read("a/c", 1, 3) == b"hre"
    assert {path async for path, _ in storage.below("a")} == {"a/b", "a/c", "a/empty"}
    await storage.remove(["a/b", "a/b", "a/nothing"])
    assert {path async for path, _ in storage.below("a")} == {"a/c", "a/empty"}
    with pytest.raises(NoFile):
        await storage.read("a/b", 0, 1)
    with pytest.raises(NoFile):
        await anext(storage.pieces("a/b"))


async def test_what_breaks_off_is_not_there(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(20_000_000)
        raise ValueError("the client left")

    storage = FileStorage(str(tmp_path))
    with pytest.raises(ValueError, match="the client left"):
        await storage.write("a", broken())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file"):
        examine_storage(str(tmp_path / "file" / "folder"))
    with pytest.raises(ValueError, match="s3://"):
        examine_storage("ftp://host/files")
    examine_storage("s3://bucket/prefix")
    assert is_shared("gs://bucket") and not is_shared("/var/files")
