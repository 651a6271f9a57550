"""What is written into the tables: records, entries of the audit log, ended calls. Each is part of a transaction."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import astuple, replace

from gateway.core.types import Entry
from gateway.store import KINDS, AnyRecord
from gateway.store.local.tally import Tally

MAX_CALLS: Final = 2_000_000
"""Calls that are kept one by one, about 100 bytes each; the oldest go first, the sums stay."""
KEEP_DAYS: Final = 400
"""Days that sums stay after their day."""
MOST: Final = 2**53
"""No count is taken for more: what an engine reports is not ours, and a sum of many must fit."""

_FIELDS: Final = Entry.__struct_fields__
_CALL: Final = f"INSERT INTO calls ({', '.join(_FIELDS)}) VALUES ({', '.join('?' * len(_FIELDS))})"  # noqa: S608
_USAGE: Final = """
    INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (day, key_id, tenant, route) DO UPDATE SET
        calls = calls + excluded.calls, input = input + excluded.input, cached = cached + excluded.cached,
        output = output + excluded.output, cost_micros = cost_micros + excluded.cost_micros
"""
_TARGET: Final = """
    INSERT INTO target_usage VALUES (?, ?, ?) ON CONFLICT (target) DO UPDATE SET
        input = input + excluded.input, output = output + excluded.output
"""
_RECORD: Final = "INSERT OR REPLACE INTO records (kind, id, version, changed, body) VALUES (?, ?, ?, ?, ?)"


def write_record(connection: sqlite3.Connection, record: AnyRecord) -> int:
    """Write a record, whatever was there; returns the generation that this makes."""
    # A new file does not begin with 1: it may have come to the place of one that is known up to there.
    begin = time.time_ns() // 1_000_000
    (generation,) = connection.execute("SELECT coalesce(max(changed), ?) + 1 FROM records", (begin,)).fetchone()
    body = msgspec.json.encode(record).decode()
    connection.execute(_RECORD, (KINDS[type(record)], record.id, record.version, generation, body))
    return int(generation)


def log_change(connection: sqlite3.Connection, entry: bytes) -> None:
    """Add an entry, as JSON, to the audit log."""
    connection.execute("INSERT INTO audit (entry) VALUES (?)", (entry.decode(),))


def add_calls(connection: sqlite3.Connection, entries: Sequence[Entry], max_calls: int = MAX_CALLS) -> None:
    """Write ended calls and add them to the sums; the oldest go of what there is too much of."""
    bounded = [*map(_bounded, entries)]
    tally = Tally(bounded)
    connection.executemany(_CALL, [*map(astuple, bounded)])
    connection.executemany(_USAGE, [(*of, *counts) for of, counts in tally.rows.items()])
    connection.executemany(_TARGET, [(name, *tokens) for name, tokens in tally.targets.items()])
    connection.execute("DELETE FROM calls WHERE number <= (SELECT max(number) FROM calls) - ?", (max_calls,))
    newest = max((day for day, *_ in tally.rows), default="")
    # A call from a clock that is ahead must not make all others old.
    old = f"date(min(?, date('now')), '-{KEEP_DAYS} days')"
    connection.execute(f"DELETE FROM usage WHERE day < {old}", (newest,))  # noqa: S608


def _bounded(entry: Entry) -> Entry:
    if max(entry.input, entry.cached, entry.output, entry.cost_micros) <= MOST:
        return entry
    counts = {name: min(getattr(entry, name), MOST) for name in ("input", "cached", "output", "cost_micros")}
    return replace(entry, **counts)
