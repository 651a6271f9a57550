"""What a gateway without Redis kept in files before there was one database: read once, and left as it is.

`NAME.json` has the records, `NAME.json.audit.jsonl` the audit log, `NAME.json.ledger/` a file of calls for each UTC
day, `NAME.json.report` the report of a gateway that runs.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from gateway.core.types import AdminKey, Audit, Entry, KeyRecord, TargetOrder, Tenant
from gateway.store import DEAD_SECONDS, StoreDown
from gateway.store.local.rows import add_calls, log_change, write_record

log = logging.getLogger("trunkline.store")

CALLS_AT_ONCE: Final = 10_000
_DAY_FILE: Final = re.compile(r"usage-(\d{4}-\d\d-\d\d)\.jsonl(?:\.(\d+))?")


class _State(Struct, frozen=True, forbid_unknown_fields=True):
    """The records file's content."""

    keys: dict[str, KeyRecord] = {}
    tenants: dict[str, Tenant] = {}
    admins: dict[str, AdminKey] = {}
    orders: dict[str, TargetOrder] = {}


class EarlierFiles:
    """The records file `path` and what is beside it.

    `named` says that the operator named the file, so that it must be one of ours; else it need not. Methods raise
    `StoreDown` for files that cannot be used.
    """

    def __init__(self, path: Path, named: bool) -> None:
        self._path, self._named = path, named

    def exist(self) -> bool:
        """There is something to read in."""
        return self._state(self._content()) is not None

    def read_into(self, connection: sqlite3.Connection, database: Path) -> None:
        """Fill the tables, as part of a transaction, unless the files are still being written."""
        content, started = self._content(), time.monotonic()
        state = self._state(content)
        connection.execute("INSERT INTO read_in VALUES (?)", ("" if state is None else _digest(content),))
        if state is None:
            return
        self._refuse_running()
        log.warning("%s is of an earlier version: it is read into %s", self._path, database)
        for group in (state.keys, state.tenants, state.admins, state.orders):
            for record in group.values():
                write_record(connection, record)
        entries, calls = self._read_audit(connection), self._read_calls(connection)
        log.warning(
            "%s was read: %d keys, %d tenants, %d audit entries, %d calls, in %.1f s; it is not used any more",
            *(self._path, len(state.keys), len(state.tenants), entries, calls, time.monotonic() - started),
        )

    def refuse_changed(self, connection: sqlite3.Connection, database: Path) -> None:
        """Raise `StoreDown` if the file is not what was read in: what was revoked must not come back to life."""
        (digest,) = connection.execute("SELECT digest FROM read_in").fetchone()
        content = self._content()
        if content and _digest(content) != digest and self._state(content) is not None:
            raise StoreDown(
                f"{self._path} is not what was read into {database}: an earlier version has changed it since. Move "
                f"{database} away to read it anew, or {self._path} to go on without what was changed there"
            )

    def _content(self) -> bytes:
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StoreDown(f"the state file {self._path} cannot be read: {error}") from error

    def _state(self, content: bytes) -> _State | None:
        """What is in the file; None: there is none."""
        if not content and not (self._named and self._path.exists()):
            return None
        try:
            return msgspec.json.decode(content, type=_State)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if isinstance(error, msgspec.ValidationError) and not self._named:
                return None  # somebody else's
            raise StoreDown(f"the state file {self._path} cannot be read: {error}") from error

    def _refuse_running(self) -> None:
        """An old gateway that went on writing would write where nobody reads."""
        with suppress(OSError, ValueError):
            head = self._beside(".report").read_bytes().partition(b"\n")[0]
            if time.time() - float(head.split(b" ")[1]) <= DEAD_SECONDS:
                raise StoreDown(
                    f"a gateway of an earlier version still runs on {self._path}: stop it (after a crash wait "
                    f"{DEAD_SECONDS:.0f} s), then try again"
                )

    def _read_audit(self, connection: sqlite3.Connection) -> int:
        entries = 0
        for line in _lines(self._beside(".audit.jsonl")):
            with suppress(msgspec.DecodeError, UnicodeDecodeError):  # half a line: the process died while writing it
                msgspec.json.decode(line, type=Audit)
                log_change(connection, line)
                entries += 1
        return entries

    def _read_calls(self, connection: sqlite3.Connection) -> int:
        entries, total = self._calls(), 0
        while some := list(islice(entries, CALLS_AT_ONCE)):
            add_calls(connection, some)
            total += len(some)
        return total

    def _calls(self) -> Iterator[Entry]:
        """All calls, the oldest first. Of a day's files the one without a number is the last."""
        folder = self._beside(".ledger")
        named = ((_DAY_FILE.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ()))
        files = [(name[1], int(name[2]) if name[2] else float("inf"), path) for name, path in named if name]
        decoder = msgspec.json.Decoder(Entry)
        for _, _, path in sorted(files):
            for line in _lines(path):
                with suppress(msgspec.DecodeError, UnicodeDecodeError):
                    yield decoder.decode(line)

    def _beside(self, ending: str) -> Path:
        return self._path.with_name(self._path.name + ending)


def _lines(path: Path) -> Iterator[bytes]:
    with suppress(FileNotFoundError), path.open("rb") as file:
        for line in file:
            yield line.rstrip(b"\n")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
