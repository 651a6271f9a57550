"""What a gateway without Redis reports of its targets: a file beside its state file."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from gateway.store import DEAD_SECONDS, StoreDown

REWRITE_SECONDS: Final = 5.0
"""A report that says nothing new is written again after so long, so that its age tells whether its gateway lives."""


class FileReport:
    """The boot id and the time of writing in a line, then the report. `now` gives seconds since the epoch.

    Raises `StoreDown` when the file cannot be written or read. Whoever has no `boot` id only reads.
    """

    def __init__(self, path: Path, boot: str, now: Callable[[], float]) -> None:
        self._path, self._boot, self._now = path, boot, now
        self._writing = threading.Lock()
        self._last: tuple[bytes, float] | None = None
        self._ended = False

    async def write(self, word: bytes) -> None:
        """Replace the report, if it is another one or the last has grown old."""
        now = self._now()
        if not self._boot or (
            self._last is not None and self._last[0] == word and now - self._last[1] < REWRITE_SECONDS
        ):
            return
        try:
            await asyncio.to_thread(self._replace, word, now)  # a slow disk must not hold up calls
        except OSError as error:
            raise StoreDown(f"the report {self._path} cannot be written: {error}") from error

    def read(self) -> dict[str, tuple[bytes, float]]:
        """The report of the gateway that lives here, if one does."""
        try:
            head, _, word = self._path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StoreDown(f"the report {self._path} cannot be read: {error}") from error
        try:
            boot, written = head.decode("ascii").split(" ")
            age = max(0.0, self._now() - float(written))
        except ValueError:
            return {}  # not of our writing
        return {boot: (word, age)} if age <= DEAD_SECONDS else {}

    def end(self) -> None:
        """Take the report away, unless another gateway has written one since."""
        with self._writing:
            self._ended = True  # a thread that is late must not bring it back
            if self._last is not None:
                with suppress(OSError, StoreDown):
                    if self._boot in self.read():
                        self._path.unlink()

    def _replace(self, word: bytes, now: float) -> None:
        with self._writing:
            if self._ended:
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            scratch = self._path.with_name(self._path.name + ".new")
            with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(f"{self._boot} {now:.3f}\n".encode("ascii") + word)
            os.replace(scratch, self._path)
            self._last = (word, now)
