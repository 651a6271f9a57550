"""The composition root of the admin interface, which is a process of its own."""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

from gateway.admin import Registrar
from gateway.admin.http.app import build_app
from gateway.admin.http.credentials import offer_token
from gateway.admin.http.guards import AdminContext
from gateway.admin.standing import Holding
from gateway.admin.targets import listed
from gateway.app.lifetime import Lifetime, Part
from gateway.app.reload import rules
from gateway.auth import AdminKeys, networks
from gateway.config import Settings, Table
from gateway.config.source import Loaded, Source
from gateway.config.watch import Watcher
from gateway.core.clock import SystemClock
from gateway.http import asgi
from gateway.http.answer import Answer
from gateway.http.connection import Connection
from gateway.http.request import Request
from gateway.process.log import set_up
from gateway.store import open_store

log = logging.getLogger("trunkline.app")

ADMIN_TIMEOUT = 2.0
"""Seconds that the admin interface waits for Redis; nobody streams through it."""


def from_environment() -> AdminListener:
    """The admin interface that `TRUNKLINE_...` describes; what its worker runs."""
    settings = Settings.read()
    set_up(settings.log_level, settings.log_format)
    kept = Path(settings.kept) if settings.kept else None
    return AdminListener(settings, Source(Path(settings.routing), kept=kept))


class AdminListener:
    """The parts of the process that serves the admin interface."""

    accept = grace = 0.0
    running = 0
    """Its requests are short: none is waited for."""

    def __init__(self, settings: Settings, source: Source) -> None:
        """Put the parts together.

        Raises `ValueError` for settings that cannot work, and `Mistakes` for a table that cannot be read.
        """
        table, clock = source.load().table, SystemClock()
        peppers, digest = settings.pepper_versions(), settings.admin_digest()
        self.address, self.shared = settings.admin_address, settings.redis_url is not None
        self.store = open_store(
            settings.redis_url, settings.state_path, ADMIN_TIMEOUT, records_url=settings.records_url
        )
        proxies = networks(settings.trusted_proxies.split(","))
        self.context = AdminContext(self.store, peppers, clock, table.routes, proxies, listed(table), self._held(table))
        self.admin_keys = AdminKeys(self.store.records, peppers, clock, bootstrap=digest)
        self.first = None if digest else Registrar(self.store.records, peppers, clock, "bootstrap")
        self.watcher = Watcher(source, self._apply, _keep_on)
        self._offer: asyncio.Task[None] | None = None
        self.lifetime = Lifetime(self._order())
        self.app = build_app(self.context, self.admin_keys)

    def _order(self) -> list[Part]:
        """All that is opened or closed, each part after those that it uses."""
        return [
            (self.store.open, self.store.close),
            (self.admin_keys.open, self.admin_keys.close),
            (self.watcher.open, self.watcher.close),
            (self._offer_token, self._withdraw),
        ]

    async def open(self) -> None:
        """Open all parts. Raises what the first one raises that cannot be opened."""
        await self.lifetime.open()

    async def close(self) -> None:
        """Close all parts."""
        await self.lifetime.close()

    async def serve(self, connection: Connection, request: Request, answer: Answer) -> None:
        """Answer one request."""
        await asgi.serve(self.app, connection, request, answer)

    def drain(self) -> None:
        """Nobody asks."""

    def end_calls(self) -> None:
        """There are none."""

    async def _apply(self, loaded: Loaded) -> None:
        self.context.replace(loaded.table.routes, listed(loaded.table), self._held(loaded.table))

    def _held(self, table: Table) -> Holding:
        return Holding(rules(table), self.shared)

    def _offer_token(self) -> None:
        """Whoever starts a new gateway needs a token for the first admin key."""
        if self.first is not None:
            self._offer = asyncio.create_task(offer_token(self.first, self.store, self.address, _say))

    async def _withdraw(self) -> None:
        if self._offer is not None:
            self._offer.cancel()
            await asyncio.wait([self._offer])


def _keep_on(mistakes: str) -> None:
    log.warning("the admin interface goes on with the table it has:\n%s", mistakes)


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
