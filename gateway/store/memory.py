"""The store of a gateway that runs alone: counters in this process, key records in a file."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from gateway.core.types import Ask, Dimension, KeyRecord, Standing, Verdict
from gateway.store import KeyConflict, StoreDown, gcra

MAX_BUCKETS = 100_000
"""Rate buckets kept before those that are whole again are dropped."""


class _State(Struct, frozen=True):
    """The file's content."""

    keys: dict[str, KeyRecord] = {}


class MemoryStore:
    """In-process counters; the state file is read again whenever another process has replaced it."""

    def __init__(self, state: Path, now: Callable[[], float] = time.time) -> None:
        self._path, self._now = state, now
        self._stamp: tuple[int, int, int] | None = None
        self._keys: dict[str, KeyRecord] = {}
        self._tats: dict[str, int] = {}
        self._leases: dict[str, set[str]] = {}

    async def open(self) -> None:
        await self.ping()

    async def close(self) -> None:
        pass

    async def ping(self) -> None:
        self._refresh()

    async def admit(self, ask: Ask) -> Verdict:
        self._refresh()
        record = self._keys.get(ask.key_id)
        if record is None or record.version != ask.key_version:
            return Verdict(stale=True)
        return self.charge(ask)

    def charge(self, ask: Ask) -> Verdict:
        """The admission itself, without the look at the key's version."""
        now = int(self._now() * gcra.MICRO)
        standings, tats, waits = [], [], []
        for dimension in ask.dimensions:
            if dimension.kind == "rate":
                standing, wait, tat = self._rate(dimension, now)
                tats.append(tat)
            else:
                standing, wait = self._lease(dimension)
                tats.append(0)
            standings.append(standing)
            waits.append(wait)
        longest = max(waits, default=0.0)
        if longest > 0:
            return Verdict(tuple(standings), denied=waits.index(longest), retry_after=longest)
        self._commit(ask, tats, now)
        return Verdict(tuple(standings))

    def release(self, ask: Ask) -> None:
        for dimension in ask.dimensions:
            if dimension.kind == "lease" and (held := self._leases.get(dimension.key)):
                held.discard(ask.call_id)
                if not held:
                    del self._leases[dimension.key]

    async def key(self, key_id: str) -> KeyRecord | None:
        self._refresh()
        return self._keys.get(key_id)

    async def keys(self) -> list[KeyRecord]:
        self._refresh()
        return sorted(self._keys.values(), key=lambda record: record.created)

    async def put_key(self, record: KeyRecord) -> None:
        with self._locked():
            self._stamp = None
            self._refresh()
            stored = self._keys.get(record.id)
            if record.version != (stored.version if stored else 0) + 1:
                raise KeyConflict(record.id)
            self._write(_State({**self._keys, record.id: record}))
            self._stamp = None

    def _rate(self, dimension: Dimension, now: int) -> tuple[Standing, float, int]:
        window = int(dimension.window * gcra.MICRO)
        stored = self._tats.get(dimension.key, 0)
        moved = gcra.step(stored, now, dimension.limit, window, dimension.amount)
        shown = max(stored, now) if moved.over > 0 else moved.tat
        left = gcra.remaining(shown, now, dimension.limit, window)
        return Standing(left, (shown - now) / gcra.MICRO), max(0, moved.over) / gcra.MICRO, moved.tat

    def _lease(self, dimension: Dimension) -> tuple[Standing, float]:
        held = len(self._leases.get(dimension.key, ()))
        if held >= dimension.limit:
            return Standing(0, 0.0), 1.0
        return Standing(dimension.limit - held - 1, 0.0), 0.0

    def _commit(self, ask: Ask, tats: list[int], now: int) -> None:
        for dimension, tat in zip(ask.dimensions, tats, strict=True):
            if dimension.kind == "rate":
                self._tats[dimension.key] = tat
            else:
                self._leases.setdefault(dimension.key, set()).add(ask.call_id)
        if len(self._tats) > MAX_BUCKETS:
            self._tats = {key: tat for key, tat in self._tats.items() if tat > now}

    def _refresh(self) -> None:
        try:
            found = os.stat(self._path)
            stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
            if stamp == self._stamp:
                return
            self._keys = msgspec.json.decode(self._path.read_bytes(), type=_State).keys
            self._stamp = stamp
        except FileNotFoundError:
            self._keys, self._stamp = {}, None
        except (OSError, msgspec.DecodeError) as error:
            raise StoreDown(f"the state file {self._path} cannot be read: {error}") from error

    def _write(self, state: _State) -> None:
        """Replace the file in one step, so that a crash leaves the old one or the new one, never half of one."""
        scratch = self._path.with_name(self._path.name + ".new")
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(state), indent=1))
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, self._path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other writers out, in this process and in others."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path.with_name(self._path.name + ".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
