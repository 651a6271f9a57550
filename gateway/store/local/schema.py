"""The tables of the state file. `docs/ledger.md` and `docs/state.md` describe them for those who read them."""

from __future__ import annotations

from typing import Final

APPLICATION: Final = 0x746C_6461
"""`PRAGMA application_id`: "tlda"."""
VERSION: Final = 2
"""`PRAGMA user_version`. Whoever changes a table raises it, and adds the step that brings an older file to it."""
STEPS: Final = {1: "ALTER TABLE calls ADD COLUMN user TEXT NOT NULL DEFAULT ''"}
"""What brings a file of this version to the next one. Writers of the older version can go on writing."""

TABLES: Final = """
CREATE TABLE records (
    kind TEXT NOT NULL, id TEXT NOT NULL, version INTEGER NOT NULL, changed INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (kind, id)
) WITHOUT ROWID;
CREATE INDEX records_changed ON records (changed);
CREATE TABLE audit (number INTEGER PRIMARY KEY AUTOINCREMENT, entry TEXT NOT NULL);
CREATE TABLE calls (
    number INTEGER PRIMARY KEY AUTOINCREMENT, call_id TEXT NOT NULL, time REAL NOT NULL, key_id TEXT NOT NULL,
    tenant TEXT NOT NULL, route TEXT NOT NULL, target TEXT NOT NULL, endpoint TEXT NOT NULL, outcome TEXT NOT NULL,
    input INTEGER NOT NULL, cached INTEGER NOT NULL, output INTEGER NOT NULL, cost_micros INTEGER NOT NULL,
    source TEXT NOT NULL, user TEXT NOT NULL DEFAULT ''
);
CREATE TABLE usage (
    day TEXT NOT NULL, key_id TEXT NOT NULL, tenant TEXT NOT NULL, route TEXT NOT NULL, calls INTEGER NOT NULL,
    input INTEGER NOT NULL, cached INTEGER NOT NULL, output INTEGER NOT NULL, cost_micros INTEGER NOT NULL,
    PRIMARY KEY (day, key_id, tenant, route)
) WITHOUT ROWID;
CREATE TABLE target_usage (
    target TEXT PRIMARY KEY, input INTEGER NOT NULL, output INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE batches (number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE);
CREATE TABLE reports (gateway TEXT PRIMARY KEY, written REAL NOT NULL, report BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE read_in (digest TEXT NOT NULL)
"""
