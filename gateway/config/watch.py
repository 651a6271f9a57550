"""Keeps a gateway on the newest good table: watches the files, reads what changed, and hands over what can be used."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from gateway.config.apart import Unread
from gateway.config.located import Mistake
from gateway.config.reader import Reading, Stamp, stamp
from gateway.config.source import Loaded, Source, loaded

log = logging.getLogger("trunkline.config")

POLL_SECONDS = 0.5
RETRY_SECONDS = 10.0
"""After a reading that failed for no fault of the table."""


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


def _identity(reading: Reading | None) -> tuple[str, bytes] | None:
    return None if reading is None else (reading.config_hash, reading.digest)


def _lines(mistakes: Sequence[Mistake]) -> str:
    return "\n".join(map(str, mistakes))
