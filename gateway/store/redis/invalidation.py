"""Hearing of changes that others make to records: a subscription that knows when it is deaf."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress

import hiredis
from redis.asyncio import Connection
from redis.exceptions import NoPermissionError

from gateway.store.redis.connect import Connector

log = logging.getLogger("trunkline.store")

PING_SECONDS = 1.0
DEAF_SECONDS = 3.0
"""A connection that has not even answered a ping for this long is dead."""
RETRY_SECONDS = 0.5


class Changes:
    """Calls `changed` with what others publish on `channel`, and with None whenever something may have been missed."""

    def __init__(self, url: str, channel: str, timeout: float) -> None:
        self._connector, self._channel, self._timeout = Connector(url, timeout), channel, timeout
        self._changed: list[Callable[[str | None], None]] = []
        self._task: asyncio.Task[None] | None = None
        self.subscribed = self._denied = False

    def watch(self, changed: Callable[[str | None], None]) -> None:
        self._changed.append(changed)

    def open(self) -> None:
        self._task = asyncio.create_task(self._run(), name="changes")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            connection: Connection | None = None
            try:
                async with asyncio.timeout(max(self._timeout, DEAF_SECONDS)):
                    connection = await self._connector.connect()
                await self._listen(connection)
            except NoPermissionError as error:
                self._tell_denied(str(error))
            except Exception as error:  # whatever it is: be deaf, and try again
                log.debug("the subscription to changes ended: %r", error)
            finally:
                self.subscribed = False
                if connection is not None:
                    with suppress(Exception):
                        await connection.disconnect(nowait=True)
            await asyncio.sleep(RETRY_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    async def _listen(self, connection: Connection) -> None:
        await self._send(connection, "SUBSCRIBE", self._channel)
        while True:
            unanswered = 0.0
            while True:
                try:
                    async with asyncio.timeout(PING_SECONDS):
                        message = await connection.read_response(disable_decoding=True, disconnect_on_error=False)
                    break
                except TimeoutError:
                    unanswered += PING_SECONDS
                    if unanswered >= DEAF_SECONDS:
                        raise
                    await self._send(connection, "PING")
            self._heard(message)

    def _tell_denied(self, said: str) -> None:
        """A gateway that may not listen hears of changes late, for ever: its operator is to know."""
        if not self._denied:
            self._denied = True
            why = f"Redis does not allow its user to hear of changes, SUBSCRIBE {self._channel} ({said})"
            log.warning("%s: docs/security.md has the rules of each role", why)

    def _heard(self, message: list[bytes]) -> None:
        match message:
            case [b"subscribe", *_]:
                self.subscribed = True
                self._tell(None)  # what changed before is unknown
            case [b"message", _, bytes(name)]:
                self._tell(name.decode())

    def _tell(self, name: str | None) -> None:
        for changed in self._changed:
            changed(name)

    async def _send(self, connection: Connection, *parts: str) -> None:
        packed = hiredis.pack_command(parts)  # type: ignore[arg-type] # its stub knows single words only
        await connection.send_packed_command(packed, check_health=False)
