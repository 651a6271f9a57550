"""The composition root of the admin interface, which is a process of its own."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from litestar import Litestar

from gateway.admin import Registrar
from gateway.admin.http.app import build_app
from gateway.admin.http.credentials import offer_token
from gateway.admin.http.guards import Desk
from gateway.admin.targets import listed
from gateway.auth import AdminKeys, networks
from gateway.config import Settings
from gateway.config.watch import Loaded, Source, Watcher
from gateway.core.clock import SystemClock
from gateway.process.shutdown import Ending, NoCalls
from gateway.store import open_store

log = logging.getLogger("trunkline.admin")

ADMIN_TIMEOUT = 2.0
"""Seconds that the admin interface waits for Redis; nobody streams through it."""


def from_environment() -> Litestar:
    """The admin interface that `TRUNKLINE_...` describes; what the admin listener's server is pointed at."""
    settings = Settings.read()
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    kept = Path(settings.kept) if settings.kept else None
    return build(settings, Source(Path(settings.routing), kept=kept))


def build(settings: Settings, source: Source) -> Litestar:
    """Put the parts of the admin interface together.

    Raises `ValueError` for settings that cannot work, and `Mistakes` for a table that cannot be read.
    """
    table = source.load().table
    clock = SystemClock()
    peppers, digest = settings.pepper_versions(), settings.admin_digest()
    store = open_store(settings.redis_url, settings.state_path, ADMIN_TIMEOUT, records_url=settings.records_url)
    proxies = networks(settings.trusted_proxies.split(","))
    desk = Desk(store, peppers, clock, table.routes, proxies, listed(table))
    admin_keys = AdminKeys(store, peppers, clock, bootstrap=digest)
    first = Registrar(store, peppers, clock, "bootstrap")

    async def apply(loaded: Loaded) -> None:
        desk.replace(loaded.table.routes, listed(loaded.table))

    watcher = Watcher(source, apply, _keep_on)

    offer: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        nonlocal offer
        ending.open()
        await store.open()
        await admin_keys.open()
        watcher.open()
        if not digest:
            offer = asyncio.create_task(offer_token(first, store, settings.admin_address, _say))
        ending.started()
        try:
            yield
        finally:
            await ending.close()

    async def close() -> None:
        if offer is not None:
            offer.cancel()
            await asyncio.wait([offer])
        await watcher.close()
        await admin_keys.close()
        await store.close()

    ending = Ending(NoCalls(), 0.0, 0.0, close)
    return build_app(desk, admin_keys, lifespan)


def _keep_on(mistakes: str) -> None:
    log.warning("the admin interface goes on with the table it has:\n%s", mistakes)


def _say(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
