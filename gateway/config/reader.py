"""Reads a routing table from start to end; `main` does so in a process of its own, for `apart`."""

from __future__ import annotations

import gc
import hashlib
import os
import pickle
import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

import msgspec
from msgspec import Struct

from gateway.config.located import Mistake, Mistakes, files, unread
from gateway.config.table import Table, parse_table

FRAME_ROUTES = 20
"""Routes that the event loop takes over in one turn."""

Stamp = dict[str, tuple[int, ...] | None]
"""What the file system says of each file; None: there is no such file."""


class Reading(Struct, frozen=True):
    """What was found in a file at one moment."""

    stamp: Stamp
    """Of the file and of those that it names, taken before they were read."""
    text: bytes = b""
    table: Table | None = None
    """None: there are mistakes."""
    found: tuple[Mistake, ...] = ()
    """The mistakes; the warnings if there is a table."""
    digest: bytes = b""
    """Differs when the table does, be it in a secret from another file."""

    @property
    def config_hash(self) -> str:
        """See `hash_of`."""
        return hash_of(self.text)


def hash_of(text: bytes) -> str:
    """12 hexadecimal digits for a table's text, which names secrets and holds none."""
    return hashlib.sha256(text).hexdigest()[:12]


def stamp(names: Iterable[str]) -> Stamp:
    """What the file system says of the files now."""
    return {name: _stat(name) for name in names}


def _stat(name: str) -> tuple[int, ...] | None:
    try:
        said = os.stat(name)
    except (OSError, ValueError):
        return None
    return said.st_dev, said.st_ino, said.st_size, said.st_mtime_ns, said.st_ctime_ns


def read(path: Path, environment: Mapping[str, str] | None = None) -> Reading:
    """Read and check the table, in this process. What is wrong with it is part of the answer."""
    seen = stamp([str(path)])
    try:
        text = path.read_bytes()
        decoded = text.decode()
    except (OSError, UnicodeDecodeError) as error:
        return Reading(seen, found=(Mistake(str(path), 1, 1, f"cannot be read: {unread(error)}"),))
    seen |= stamp(files(decoded))
    try:
        table, found = parse_table(decoded, str(path), environment)
    except Mistakes as error:
        return Reading(seen, text, found=tuple(error.found))
    if missing := tuple(msgspec.structs.replace(mistake, warning=False) for mistake in found if mistake.needed):
        return Reading(seen, text, found=missing)
    return Reading(seen, text, table, tuple(found), hashlib.sha256(msgspec.msgpack.encode(table)).digest())


def main() -> None:
    """The child: a path and an environment come in, a reading without its routes goes out, then the routes."""
    gc.disable()  # nothing here is garbage before the end
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what an adapter prints is not part of the answer
    reading = read(*pickle.load(sys.stdin.buffer))  # noqa: S301 - from our parent
    routes = iter(reading.table.routes.items() if reading.table else ())
    head = reading.table and msgspec.structs.replace(reading.table, routes={})
    with out:
        pickle.dump(msgspec.structs.replace(reading, table=head), out)
        while frame := list(islice(routes, FRAME_ROUTES)):
            pickle.dump(frame, out)
        pickle.dump([], out)
