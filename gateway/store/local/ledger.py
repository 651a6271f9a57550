"""The usage ledger of a gateway without Redis: a line of JSON for every ended call, a file for every UTC day."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import msgspec

from gateway.core.types import Entry, Sum
from gateway.store import StoreDown
from gateway.store.local.tally import Tally
from gateway.store.periods import day

FILE_BYTES = 64 * 1024**2
"""A day's file that would grow beyond this becomes `.1`, the next one `.2`, and a new one is begun."""
TOTAL_BYTES = 1024**3
"""All files together; the oldest go first."""
REMEMBERED = 1000
"""Batches known again when they come twice."""
BLOCK = 1024**2

_NAME = re.compile(r"usage-(\d{4}-\d\d-\d\d)\.jsonl(?:\.(\d+))?")
T = TypeVar("T")
_entry = msgspec.json.Decoder(Entry)


class _File(NamedTuple):
    day: str
    number: float
    """The order in which a day's files were begun; the one being written has none yet and is the last."""
    path: Path


class FileLedger:
    """Raises `StoreDown` when the files cannot be written or read; then nothing of the batch was written."""

    def __init__(self, folder: Path, *, file_bytes: int = FILE_BYTES, total_bytes: int = TOTAL_BYTES) -> None:
        self._folder, self._file_bytes, self._total_bytes = folder, file_bytes, total_bytes
        self._mutex, self._scanning = threading.Lock(), threading.Lock()
        self._batches: dict[str, None] = {}
        self._begun: list[tuple[Path, int]] = []
        """Where a batch that is being written began: its files are cut there again if it fails."""
        self._read: dict[bytes, int] = {}
        self._targets: dict[str, tuple[int, int]] = {}

    async def append(self, batch: str, entries: Sequence[Entry]) -> None:
        await _in_thread(self._append, batch, entries)

    async def sums(self, first: str, last: str) -> list[Sum]:
        return await _in_thread(self._sums, first, last)

    async def by_target(self) -> dict[str, tuple[int, int]]:
        return await _in_thread(self._by_target)

    def _append(self, batch: str, entries: Sequence[Entry]) -> None:
        days: dict[str, list[bytes]] = {}
        for entry in entries:
            days.setdefault(day(entry.time), []).append(msgspec.json.encode(entry) + b"\n")
        with self._locked():
            if batch in self._batches:
                return
            self._take_back()
            try:
                for of, lines in days.items():
                    self._write(of, b"".join(lines))
            except OSError:
                with suppress(OSError):
                    self._take_back()
                raise
            self._begun.clear()
            self._batches[batch] = None
            if len(self._batches) > REMEMBERED:
                del self._batches[next(iter(self._batches))]

    def _write(self, of: str, text: bytes) -> None:
        path = self._folder / f"usage-{of}.jsonl"
        if not path.exists() or path.stat().st_size + len(text) > self._file_bytes:
            self._begin(of, path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            self._begun.append((path, size))
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                text = b"\n" + text  # a gateway died while it wrote the last line
            rest = memoryview(text)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        finally:
            os.close(descriptor)

    def _begin(self, of: str, path: Path) -> None:
        """Make room for a new file: number the full one, drop the oldest while there is too much."""
        files = self._files()
        if path.exists():
            numbers = [int(file.number) for file in files if file.day == of and file.path != path]
            os.replace(path, path.with_name(f"{path.name}.{max(numbers, default=0) + 1}"))
            files = self._files()
        total = sum(file.path.stat().st_size for file in files)
        for file in files:
            if total + self._file_bytes <= self._total_bytes:
                break
            total -= file.path.stat().st_size
            file.path.unlink()

    def _take_back(self) -> None:
        while self._begun:
            path, size = self._begun[-1]
            with suppress(FileNotFoundError):
                os.truncate(path, size)
            self._begun.pop()

    def _files(self) -> list[_File]:
        """All files of the ledger, the oldest first."""
        paths = self._folder.iterdir() if self._folder.exists() else ()
        named = ((_NAME.fullmatch(path.name), path) for path in paths)
        return sorted(_File(name[1], int(name[2]) if name[2] else float("inf"), path) for name, path in named if name)

    def _sums(self, first: str, last: str) -> list[Sum]:
        tally = Tally()
        for file, end in self._opened(first, last):
            for entry in _entries(file, end):
                tally.add(entry)
        return tally.sums()

    def _by_target(self) -> dict[str, tuple[int, int]]:
        """Reads on from where it was the last time; what a dropped file held stays counted."""
        with self._scanning:
            for file, end in self._opened("", "~"):
                first_line = file.readline().rstrip(b"\n")  # tells the file for ever, under whatever name
                file.seek(self._read.get(first_line, 0))
                for entry in _entries(file, end):
                    if entry.target:
                        seen = self._targets.get(entry.target, (0, 0))
                        self._targets[entry.target] = (seen[0] + entry.input, seen[1] + entry.output)
                self._read[first_line] = end
            return dict(self._targets)

    def _opened(self, first: str, last: str) -> Iterator[tuple[BinaryIO, int]]:
        """These days' files, each with its length now: a file may be renamed or grow while its day is read."""
        with self._locked(reading=True):
            days = sorted({file.day for file in self._files() if first <= file.day <= last})
        for of in days:
            with ExitStack() as stack:
                with self._locked(reading=True):
                    files = [stack.enter_context(file.path.open("rb")) for file in self._files() if file.day == of]
                    ends = [os.fstat(file.fileno()).st_size for file in files]
                yield from zip(files, ends, strict=True)

    @contextmanager
    def _locked(self, *, reading: bool = False) -> Iterator[None]:
        """Keep other threads out, and other processes."""
        with self._mutex:
            lock = self._lock(reading)
            try:
                yield
            finally:
                if lock is not None:
                    os.close(lock)

    def _lock(self, reading: bool) -> int | None:
        path = self._folder / "usage.lock"
        if not reading:
            self._folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(path, os.O_RDONLY if reading else os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            if not reading:
                raise
            return None  # nothing was ever written
        fcntl.flock(lock, fcntl.LOCK_SH if reading else fcntl.LOCK_EX)
        return lock


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    try:
        return await asyncio.to_thread(work, *arguments)
    except OSError as error:
        raise StoreDown(f"the usage files cannot be used: {error}") from error


def _entries(file: BinaryIO, end: int) -> Iterator[Entry]:
    """The entries from here to `end`, without lines that are none: what a crash left unfinished."""
    while lines := file.readlines(min(BLOCK, end - file.tell())) if file.tell() < end else []:
        for line in lines:
            with suppress(msgspec.DecodeError, UnicodeDecodeError):
                yield _entry.decode(line)
        time.sleep(0.0005)  # the event loop's thread wants its turn
