"""Keeps a gateway on the newest good table: watches the files, reads what changed, and hands over what can be used."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from msgspec import Struct

from gateway.config.apart import Unread, read_apart
from gateway.config.located import Mistake, Mistakes
from gateway.config.reader import Reading, Stamp, read, stamp
from gateway.config.table import Table

log = logging.getLogger("trunkline.config")

POLL_SECONDS = 0.5
RETRY_SECONDS = 10.0
"""After a reading that failed for no fault of the table."""


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


class Watcher:
    """Reads the table again when its file changes, or one that it names in `${file:...}`, and when it is told to.

    `apply` gets what can be used, and may raise `ValueError` for what cannot. `refused` gets all that is wrong with a
    table, once for each distinct content; the table in use stays. A good table that follows a refused one is applied
    even if it is the one in use, so that everybody knows that all is well again.
    """

    def __init__(
        self, source: Source, apply: Callable[[Loaded], Awaitable[None]], refused: Callable[[str], None]
    ) -> None:
        self._source, self._apply, self._tell = source, apply, refused
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._seen: Stamp = source.seen or {str(source.path): None}
        self._changing: Stamp | None = None
        self._used = _identity(source.loaded)
        self._refused: tuple[str, str] | None = None
        self._pause = POLL_SECONDS

    def open(self) -> None:
        """Begin to watch, and to listen to SIGHUP. Must be called with a running event loop."""
        if self._source.trouble:
            self._refuse(_lines(self._source.trouble), "")
        with suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)
            # `trunkline serve` starts its workers with the signal blocked: one that came meanwhile waits for us.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
        self._task = asyncio.create_task(self._watch(), name="watch the routing table")

    def reload(self) -> None:
        """Read and apply the table at once, also if nothing has changed."""
        self._asked.set()

    async def close(self) -> None:
        with suppress(AttributeError, NotImplementedError, RuntimeError, ValueError):
            asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self) -> None:
        while True:
            asked = await self._wait()
            try:
                if asked or await self._changed():
                    await self._read(asked)
            except Exception:
                log.exception("the routing table could not be looked at")

    async def _wait(self) -> bool:
        try:
            async with asyncio.timeout(self._pause):
                await self._asked.wait()
        except TimeoutError:
            return False
        self._asked.clear()
        return True

    async def _changed(self) -> bool:
        """Whether the files have changed, and then stayed the same for a turn: somebody may be writing still."""
        now = await asyncio.to_thread(stamp, self._seen)
        settled = now == self._changing
        self._changing = now if now != self._seen else None
        return settled and self._changing is not None

    async def _read(self, asked: bool) -> None:
        self._pause = POLL_SECONDS
        try:
            reading = await self._source.read()
        except Unread as error:
            self._pause = RETRY_SECONDS
            return self._refuse(f"{self._source.path}: cannot be read: {error}", "", asked)
        if not asked and await asyncio.to_thread(stamp, reading.stamp) != reading.stamp:
            return None  # it was written to meanwhile: half of it may be missing
        self._seen, self._changing = reading.stamp, None
        if mistakes := self._source.mistakes(reading):
            return self._refuse(_lines(mistakes), reading.config_hash, asked)
        if not asked and self._refused is None and _identity(reading) == self._used:
            return None  # it was only touched
        await self._hand_over(reading, asked)
        return None

    async def _hand_over(self, reading: Reading, asked: bool) -> None:
        try:
            await self._apply(loaded(reading))
        except ValueError as error:
            return self._refuse(f"{self._source.path}: {error}", reading.config_hash, asked)
        except Exception as error:
            log.exception("the routing table could not be applied")
            return self._refuse(f"{self._source.path}: {type(error).__name__}", reading.config_hash, asked)
        self._used, self._refused = _identity(reading), None
        await asyncio.to_thread(self._source.keep, reading.text)
        return None

    def _refuse(self, text: str, config_hash: str, asked: bool = False) -> None:
        if asked or (text, config_hash) != self._refused:
            self._refused = text, config_hash
            self._tell(text)


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


def _identity(reading: Reading | None) -> tuple[str, bytes] | None:
    return None if reading is None else (reading.config_hash, reading.digest)


def _lines(mistakes: Sequence[Mistake]) -> str:
    return "\n".join(map(str, mistakes))
