"""A file with a routing table, what of it can be used, and the last text that could."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from gateway.config.located import Mistake, Mistakes
from gateway.config.reader import Reading, Stamp, read
from gateway.config.table import Table

log = logging.getLogger("trunkline.config")


class Loaded(Struct, frozen=True):
    """A table that can be used."""

    table: Table
    config_hash: str
    """12 hexadecimal digits of the SHA-256 of the file's text."""
    warnings: tuple[Mistake, ...] = ()


class Source:
    """A file with a routing table.

    `launched` has the URLs of targets that were started: a table with others to start cannot be used; None: none is
    started before the table is read. `kept` is a file in which the last good text is kept, for a worker that starts
    anew while the table's own file is broken.
    """

    def __init__(
        self,
        path: Path,
        environment: Mapping[str, str] | None = None,
        *,
        launched: Mapping[str, str] | None = None,
        kept: Path | None = None,
    ) -> None:
        self.path = path
        self.trouble: tuple[Mistake, ...] = ()
        """Why `load` answered with the text that was kept."""
        self.loaded: Reading | None = None
        """What `load` answered with."""
        self.seen: Stamp = {}
        """The files when `load` read them."""
        self._environment, self._launched, self._kept = environment, launched, kept

    def load(self) -> Loaded:
        """Read the table now, in this process. Raises `Mistakes` if neither it nor the kept text can be used."""
        reading = read(self.path, self._environment)
        self.seen = reading.stamp
        self.trouble = self.mistakes(reading)
        if self.trouble and self._kept is not None and self._kept.exists():
            reading = read(self._kept, self._environment)
        if mistakes := self.mistakes(reading):
            raise Mistakes(list(self.trouble or mistakes))
        self.loaded = reading
        return loaded(reading)

    async def read(self) -> Reading:
        """Read the table in a process of its own. Raises `Unread` if that fails."""
        from gateway.config.apart import read_apart  # and with it asyncio, which the main process has no use for

        return await read_apart(self.path, self._environment)

    def mistakes(self, reading: Reading) -> tuple[Mistake, ...]:
        """Why a reading cannot be used; nothing: it can."""
        if reading.table is None:
            return reading.found
        found = [] if self._launched is None else unlaunched(reading.table, self._launched)
        return tuple(Mistake(str(self.path), 1, 1, text) for text in found)

    def keep_in(self, folder: str) -> str:
        """Keep the text that was loaded, and those that follow it, in a folder. Returns the file that it is in."""
        self._kept = Path(folder) / "routing.yaml"
        if self.loaded is not None:
            self.keep(self.loaded.text)
        return str(self._kept)

    def keep(self, text: bytes) -> None:
        """Keep a text that turned out good."""
        if self._kept is None:
            return
        fresh = self._kept.with_name(f"{self._kept.name}.{os.getpid()}")  # other workers keep the same text
        try:
            fresh.write_bytes(text)
            fresh.replace(self._kept)
        except OSError as error:
            log.warning("the last good table cannot be kept in %s: %s", self._kept, error)


def unlaunched(table: Table, launched: Mapping[str, str], current: Table | None = None) -> list[str]:
    """Sentences about launched targets that `trunkline serve` did not start: it does so only when it starts itself.

    `launched` has a URL for each that it started; with `current`, the table in use, a command that changed counts, too.
    """
    started = {target.name: target.launch for _, _, target in current.targets()} if current is not None else {}
    found = []
    for _, _, target in table.targets():
        if target.launch is None:
            continue
        if target.name not in launched:
            found.append(f"target {target.name!r} has 'launch' and does not run: restart `trunkline serve` to start it")
        elif started.get(target.name, target.launch) != target.launch:
            found.append(f"the 'launch' of target {target.name!r} has changed: restart `trunkline serve` to use it")
    return found


def loaded(reading: Reading) -> Loaded:
    """A reading without mistakes as the app takes it."""
    assert reading.table is not None
    return Loaded(reading.table, reading.config_hash, reading.found)
