"""The store of a gateway that runs alone: counters in this process, records and ledger in files."""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from gateway.core.types import AdminKey, Ask, Audit, Entry, KeyRecord, Sum, TargetOrder, Tenant, Verdict
from gateway.store import KINDS, PLURALS, AnyRecord, Conflict, R, StoreDown, periods
from gateway.store.local.counters import Counters
from gateway.store.local.ledger import FileLedger
from gateway.store.local.reports import FileReport
from gateway.store.rebuild import budgets_of

LOOK_SECONDS = 0.2
"""How often the file is looked at for changes by others; an admission looks for itself."""


class _State(Struct, frozen=True):
    """The file's content."""

    keys: dict[str, KeyRecord] = {}
    tenants: dict[str, Tenant] = {}
    admins: dict[str, AdminKey] = {}
    orders: dict[str, TargetOrder] = {}

    def of(self, kind: type[Any]) -> dict[str, Any]:
        """The records of one kind, by id."""
        found: dict[str, Any] = getattr(self, PLURALS[kind])
        return found


class MemoryStore:
    """In-process counters; the state file is read again whenever another process has replaced it.

    Beside the state file are the audit log (`NAME.audit.jsonl`), the ledger's folder (`NAME.ledger/`) and what the
    gateway reports of its targets (`NAME.report`).
    """

    gateways = 1
    hears = True
    unsettled = 0

    def __init__(self, state: Path, now: Callable[[], float] = time.time, *, boot: str = "") -> None:
        self._path, self._now = state, now
        self._log = state.with_name(state.name + ".audit.jsonl")
        self._stamp: tuple[int, int, int] | None = None
        self._state = _State()
        self._watching: list[Callable[[str | None], None]] = []
        self._looking: asyncio.Task[None] | None = None
        self._counters = Counters(now)
        self._ledger = FileLedger(state.with_name(state.name + ".ledger"))
        self._report = FileReport(state.with_name(state.name + ".report"), boot, now)

    async def open(self) -> None:
        now = self._now()
        first = min(periods.first_day("week", now), periods.first_day("month", now))
        self._counters.restore(budgets_of(await self._ledger.sums(first, periods.day(now)), now))
        await self.ping()
        self._looking = asyncio.create_task(self._look(), name="state file")

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking
        self._report.end()

    async def ping(self) -> None:
        self._refresh()

    async def sound(self) -> None:
        self._refresh()

    async def admit(self, ask: Ask) -> Verdict:
        self._refresh()
        for name, version in ask.records:
            kind, _, id = name.partition(":")
            record = getattr(self._state, kind + "s").get(id)
            if (0 if record is None else record.version) != version:
                return Verdict(stale=True, at=int(self._now() * 1e6))
        return self._counters.charge(ask)

    def settle(self, ask: Ask, at: int, used: Sequence[int]) -> None:
        self._counters.settle(ask, at, used)

    def owe(self, ask: Ask, at: int, used: Sequence[int]) -> None:
        """Nothing: this store is never cut off from its counters."""

    def hold(self, ask: Ask) -> None:
        self._counters.hold(ask)

    def held(self) -> list[Ask]:
        """None, for the same reason."""
        return []

    async def get(self, kind: type[R], id: str) -> R | None:
        self._refresh()
        return self._state.of(kind).get(id)

    async def all(self, kind: type[R]) -> list[R]:
        self._refresh()
        return sorted(self._state.of(kind).values(), key=lambda record: record.created)

    async def put(self, record: AnyRecord, audit: Audit | None = None) -> None:
        with self._locked():
            self._stamp = None
            self._refresh()
            records = self._state.of(type(record))
            stored = records.get(record.id)
            if record.version != (stored.version if stored else 0) + 1:
                raise Conflict(f"{KINDS[type(record)]}:{record.id}")
            changed = msgspec.structs.replace(self._state, **{PLURALS[type(record)]: {**records, record.id: record}})
            try:
                with self._logged(audit):
                    self._write(changed)
            except OSError as error:
                raise StoreDown(f"the state file {self._path} cannot be written: {error}") from error
            self._stamp = None

    async def audit(self, count: int = 100) -> list[Audit]:
        try:
            lines = self._log.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StoreDown(f"the audit log {self._log} cannot be read: {error}") from error
        entries = []
        for line in reversed(lines):
            with suppress(msgspec.DecodeError):  # half a line: the process died while writing it
                entries.append(msgspec.json.decode(line, type=Audit))
            if len(entries) == count:
                break
        return entries

    def watch(self, changed: Callable[[str | None], None]) -> None:
        self._watching.append(changed)

    async def append(self, batch: str, entries: Sequence[Entry]) -> None:
        await self._ledger.append(batch, entries)

    async def sums(self, first: str, last: str) -> list[Sum]:
        return await self._ledger.sums(first, last)

    async def by_target(self) -> dict[str, tuple[int, int]]:
        return await self._ledger.by_target()

    async def exchange(self, mine: Mapping[str, bytes]) -> dict[str, dict[str, tuple[bytes, float]]]:
        return {board: {} for board in mine}

    async def report(self, word: bytes) -> None:
        await self._report.write(word)

    async def reports(self) -> dict[str, tuple[bytes, float]]:
        return self._report.read()

    def _refresh(self) -> None:
        try:
            found = os.stat(self._path)
            stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
            if stamp == self._stamp:
                return
            self._state = msgspec.json.decode(self._path.read_bytes(), type=_State)
            self._stamp = stamp
        except FileNotFoundError:
            if self._stamp is None:
                return
            self._state, self._stamp = _State(), None
        except (OSError, msgspec.DecodeError) as error:
            raise StoreDown(f"the state file {self._path} cannot be read: {error}") from error
        for changed in self._watching:
            changed(None)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            with suppress(StoreDown):
                self._refresh()

    def _write(self, state: _State) -> None:
        """Replace the file in one step, so that a crash leaves the old one or the new one, never half of one."""
        scratch = self._path.with_name(self._path.name + ".new")
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(state), indent=1))
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, self._path)

    @contextmanager
    def _logged(self, audit: Audit | None) -> Iterator[None]:
        """Write the audit entry before the change, and take it back if the change cannot be written."""
        if audit is None:
            yield
            return
        with open(os.open(self._log, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+b") as file:
            before = file.seek(0, os.SEEK_END)
            torn = before > 0 and os.pread(file.fileno(), 1, before - 1) != b"\n"
            file.write(b"\n" * torn + msgspec.json.encode(audit) + b"\n")
            file.flush()
            try:
                yield
            except BaseException:
                file.truncate(before)
                raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other writers out, in this process and in others."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lock = open(self._path.with_name(self._path.name + ".lock"), "w")  # noqa: SIM115 - closed below
        except OSError as error:
            raise StoreDown(f"the state folder {self._path.parent} cannot be written: {error}") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
