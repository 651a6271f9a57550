"""What becomes of a batch before its lines and after: the same, however often a step is begun anew."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.batches.files import Files
from gateway.batches.results import Answered, answered, folder, part
from gateway.batches.steps import Steps
from gateway.batches.storage import FileStorage
from gateway.config.limits import StorageSpec
from gateway.core.batches import Batch, StoredFile, Work, path_of
from gateway.store.local import LocalStore

NOW = 1_000_000.0
LINES = 5


class Bench:
    """A store, a folder, a batch of five lines."""

    def __init__(self, store: LocalStore, where: Path) -> None:
        self.now, self.folder = NOW, where
        self.known, self.storage = store.batches, FileStorage(str(where))
        self.files = Files(self.known, self.storage, StorageSpec().storage(), lambda: self.now)
        self.steps = Steps(self.known, store.records, self.files, lambda: self.now)

    async def batch(self, **fields: Any) -> Batch:
        raw = b"\n".join(
            json.dumps(
                {"custom_id": f"c{n}", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m"}}
            ).encode()
            for n in range(LINES)
        )
        file = StoredFile(
            id="file-in", tenant="t", created=NOW, bytes=len(raw), filename="in", purpose="batch", expires=NOW + 1e6
        )
        await self.storage.put(file.path, raw)
        await self.known.add_file(file)
        made = Batch(
            id="batch_1",
            tenant="t",
            key_id="k",
            endpoint="/v1/embeddings",
            input_file="file-in",
            created=NOW,
            deadline=NOW + 10,
            expires=NOW + 1e6,
            **fields,
        )
        await self.known.put(made)
        return made

    async def stands(self) -> Batch:
        found = await self.known.batch("t", "batch_1")
        assert found is not None
        return found

    async def record(self, batch: Batch, name: str, *answers: Answered) -> None:
        await self.storage.put(f"{folder(batch)}/{name}", part(answers))
        assert await self.known.record(batch, name, [(each.number, each.good) for each in answers], [])

    async def result(self, file: str | None) -> list[dict[str, Any]]:
        if file is None:
            return []
        known = await self.known.file("t", file)
        raw = b"".join([piece async for piece in self.storage.pieces(path_of("t", file))])
        assert known is not None and known.bytes == len(raw) and known.purpose == "batch_output"
        return [json.loads(line) for line in raw.splitlines()]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    store = LocalStore(tmp_path / "keys.db", boot="one")
    await store.open()
    yield Bench(store, tmp_path / "files")
    await store.close()


async def test_a_good_input_becomes_work_once(bench: Bench) -> None:
    batch = await bench.batch()
    await bench.steps.check(batch, 1000)
    begun = await bench.stands()
    assert (begun.status, begun.total, begun.in_progress_at) == ("in_progress", LINES, NOW)
    await bench.steps.check(begun, 1000)  # its first checker died before it had said so
    taken = await bench.known.take(begun)
    assert taken is not None and taken.work.kind == "lines" and taken.work.count == LINES
    assert await bench.known.take(begun) is None


async def test_an_input_that_is_gone_fails_the_batch(bench: Bench) -> None:
    batch = await bench.batch()
    await bench.storage.remove([path_of("t", "file-in")])
    await bench.steps.check(batch, 1000)
    assert [error.code for error in (await bench.stands()).errors] == ["file_not_found"]
    assert (await bench.stands()).status == "failed"


async def test_answers_become_two_files_each_line_once(bench: Bench) -> None:
    batch = await bench.batch(status="in_progress", total=LINES)
    good = [answered(n, f"c{n}", f"id-{n}", 200, b'{ "n" : %d }' % n) for n in range(3)]
    bad = [answered(3, "c3", "id-3", 404, b"no JSON"), answered(4, "c4", "id-4", 502, b"{}")]
    await bench.record(batch, "a", good[0], bad[0])
    await bench.record(batch, "b", answered(0, "c0", "again", 200, b"{}"), *good[1:], bad[1])
    await bench.steps.finalize(batch)
    finalizing = await bench.stands()
    for _ in range(2):  # its first finisher died
        await bench.steps.finish(finalizing)
    ended = await bench.stands()
    assert (ended.status, ended.completed, ended.failed, ended.completed_at) == ("completed", 3, 2, NOW)
    output, errors = await bench.result(ended.output_file), await bench.result(ended.error_file)
    assert [(line["custom_id"], line["response"]["body"]) for line in output] == [(f"c{n}", {"n": n}) for n in range(3)]
    assert output[0]["response"]["request_id"] == "id-0"
    assert [line["response"]["body"] for line in errors] == ["no JSON", {}]
    assert not list((bench.folder / "batches").iterdir())
    assert len(await bench.known.files("t")) == 3


@pytest.mark.parametrize("ends_as", ["expired", "cancelled"])
async def test_what_was_not_asked_is_told(bench: Bench, ends_as: str) -> None:
    batch = await bench.batch(status="in_progress", total=LINES)
    await bench.known.add_work(batch, [Work(kind="lines", count=LINES, length=1)])
    await bench.record(batch, "a", answered(1, "c1", "id", 200, b"{}"), answered(2, "c2", "id", 400, b"{}"))
    await bench.steps.finalize(batch, ends_as)
    await bench.steps.finish(await bench.stands())
    ended = await bench.stands()
    assert (ended.status, ended.completed, ended.failed) == (ends_as, 1, 1)
    assert getattr(ended, f"{ends_as}_at") == NOW
    errors = await bench.result(ended.error_file)
    assert [(line["custom_id"], (line["error"] or {}).get("code")) for line in errors] == [
        ("c2", None),
        *((f"c{n}", f"batch_{ends_as}") for n in (0, 3, 4)),
    ]


async def test_content_without_a_file_is_removed_when_it_is_old(bench: Bench) -> None:
    await bench.batch()
    await bench.storage.put("files/t/file-lost", b"x")
    young = bench.folder / "files" / "t" / "file-young"
    young.write_bytes(b"x")
    for name in ("file-lost", "file-in"):
        os.utime(bench.folder / "files" / "t" / name, (NOW, NOW))
    await bench.files.clean()
    assert {path.name for path in young.parent.iterdir()} == {"file-in", "file-young"}


async def test_what_has_had_its_time_is_removed(bench: Bench) -> None:
    batch = await bench.batch(status="in_progress", total=LINES)
    await bench.record(batch, "a", answered(1, "c1", "id", 200, b"{}"))
    await bench.steps.finalize(batch)
    await bench.steps.finish(await bench.stands())
    ended = await bench.stands()
    await bench.files.sweep()
    assert await bench.stands() == ended
    bench.now = NOW + 31 * 86_400
    await bench.files.sweep()
    assert await bench.known.batches() == [] and await bench.known.files("t") == []
    assert [path async for path, _ in bench.storage.below("files")] == []
