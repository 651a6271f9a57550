"""The composition root: settings and table in, a Litestar app out; opens what must be opened and closes it again."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import secrets
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path

from litestar import Litestar

from backends import registry
from gateway.app.fleet import Fleet
from gateway.app.reload import Reloader, answer_limits, mirrors, rules
from gateway.auth import AdminKeys, Keyring, Throttle, networks
from gateway.call import Parts
from gateway.config import Settings
from gateway.config.watch import Loaded, Source, Watcher, unlaunched
from gateway.core.clock import SystemClock
from gateway.http import openapi, operations
from gateway.http.client import BOOT
from gateway.http.server import DataPlane
from gateway.limits import Admission
from gateway.metering import Lines, Meter, Metrics
from gateway.metering.ledger import LedgerWriter
from gateway.metering.reconcile import Reconciler
from gateway.metering.shadows import ShadowMetrics
from gateway.process.shutdown import Ending
from gateway.routing import Builder, Slots
from gateway.store import Store, open_store
from gateway.targets.health import Breaker
from gateway.upstream import Forwarder
from gateway.upstream.shadow import Shadow

log = logging.getLogger("trunkline.app")

PULSE_SECONDS = 1.0


def from_environment() -> DataPlane:
    """The app that `TRUNKLINE_...` describes; what every ASGI server is pointed at."""
    settings = Settings.read()
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    launched = json.loads(settings.launched or "{}")
    source = Source(
        Path(settings.routing),
        objections=lambda table: unlaunched(table, launched),
        kept=Path(settings.kept) if settings.kept else None,
    )
    loaded = source.load()
    return build(settings, loaded, source)


def build(settings: Settings, loaded: Loaded, source: Source) -> DataPlane:
    """Put the parts together. Raises `ValueError` for settings that cannot work."""
    clock, table = SystemClock(), loaded.table
    peppers = settings.pepper_versions()
    proxies = networks(settings.trusted_proxies.split(","))
    launched = json.loads(settings.launched or "{}")
    capabilities = cache(registry.capabilities)

    metrics = Metrics()
    lines = Lines(sys.stdout.fileno(), metrics.dropped.inc)
    store = open_store(
        settings.redis_url, settings.state_path, settings.redis_timeout, records_url=settings.records_url, boot=BOOT
    )
    keyring = Keyring(store, peppers, clock, Throttle(clock, refused=metrics.throttled.inc))
    admin_keys = AdminKeys(
        store,
        peppers,
        clock,
        bootstrap=settings.admin_digest(),
        throttle=Throttle(clock, refused=metrics.throttled.inc),
    )
    builder = Builder(
        launched,
        capabilities,
        lambda name: Breaker(name, clock.monotonic, lambda: fleet.recovered(name)),
        Slots(store, lambda: store.gateways),
        clock.monotonic,
        seed=secrets.randbits(32),
        queued=lambda route, calls, size: _queued(metrics, route, calls, size),
        held=lambda route, calls: _held(metrics, fleet, route, calls),
        hold_ended=lambda route, outcome, seconds: metrics.hold.labels(route, outcome).observe(seconds),
    )
    routes = builder.build(table, loaded.config_hash)
    routes.open()
    forwarder = Forwarder(answer_limits(table))
    ledger = LedgerWriter(store, metrics.ledger_dropped.inc)
    admission = Admission(
        store,
        rules(table),
        prices={name: spec.price for name, spec in table.routes.items()}.get,
        gateways=settings.workers,
        seconds=metrics.redis.observe,
        denied=lambda scope, dimension: metrics.denials.labels(scope, dimension).inc(),
        degraded=metrics.degraded.set,
        clock=clock.monotonic,
        now=clock.now,
    )
    shadows = ShadowMetrics(metrics)
    parts = Parts(
        keyring=keyring,
        routes=routes,
        admission=admission,
        forwarder=forwarder,
        meter=Meter(metrics, clock, lines.write, enter=ledger.add, learn=admission.estimator.learn),
        shadow=Shadow(
            mirrors(table, launched, capabilities),
            forwarder.send,
            shadows.compared,
            shadows.dropped,
            clock.monotonic,
        ),
    )
    fleet = Fleet(routes, store, forwarder, metrics, clock, BOOT)

    reconciler = Reconciler(
        lambda: {name: target.address.url for name, target in fleet.routes.targets.items()},
        fleet.counters,
        store,
        metrics.drift,
    )
    readiness = operations.Readiness(store)

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        ending.open()
        await store.open()
        await keyring.open()
        ledger.open()
        await admin_keys.open()
        await fleet.open()
        reconciler.open()
        watcher.open()
        pulsing.append(asyncio.create_task(_pulse(admission, store, metrics), name="pulse"))
        # What start-up made stays for good: looking through it again and again costs a tenth of each call's CPU.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        ending.started()
        try:
            yield
        finally:
            await ending.close()

    pulsing: list[asyncio.Task[None]] = []

    async def close() -> None:
        for pulse in pulsing:
            pulse.cancel()
            await asyncio.wait([pulse])
        await watcher.close()
        await parts.shadow.close()
        await reconciler.close()
        await fleet.close()
        await forwarder.close()
        await admin_keys.close()
        await keyring.close()
        await ledger.close()
        await store.close()
        lines.close()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        app = Litestar(
            route_handlers=[
                operations.router(lambda: plane.parts, readiness, proxies),
                openapi.assets(),
            ],
            lifespan=[lifespan],
            after_request=operations.name_request,
            exception_handlers={Exception: operations.render_exception},
            openapi_config=openapi.config(),
            logging_config=None,
            pdb_on_exception=False,
        )
    openapi.describe_data_plane(app)
    plane = DataPlane(parts, table.bodies, app, proxies, partial(_explains, admin_keys))
    ending = Ending(plane, settings.drain_accept, settings.grace, close)
    readiness.draining = lambda: plane.draining
    reloader = Reloader(
        plane,
        builder,
        fleet,
        lambda table: mirrors(table, launched, capabilities),
        lambda table, current: unlaunched(table, launched, current),
        table,
        readiness,
        metrics,
        clock,
    )
    watcher = Watcher(source, reloader.apply, reloader.refused)
    return plane


async def _pulse(admission: Admission, store: Store, metrics: Metrics) -> None:
    """What the store knows of itself, for metrics: gauges of several workers cannot be asked when scraped."""
    while True:
        try:
            await admission.look()
            metrics.settle_pending.set(store.unsettled)
            metrics.gateways.set(store.gateways)
        except Exception:  # a bug of ours; the pulse goes on
            log.exception("the state of the store could not be shown")
        await asyncio.sleep(PULSE_SECONDS)


async def _explains(admin_keys: AdminKeys, token: bytes, source: str | None) -> bool:
    """Whether an admin key asks; one that is good for one thing only is not good for this."""
    return not (await admin_keys.authenticate({b"authorization": b"Bearer " + token}, source)).once


def _held(metrics: Metrics, fleet: Fleet, route: str, calls: int) -> None:
    metrics.held_calls.labels(route).set(calls)
    fleet.attendant.held(calls)


def _queued(metrics: Metrics, route: str, calls: int, size: int) -> None:
    metrics.queue_calls.labels(route).set(calls)
    metrics.queue_bytes.labels(route).set(size)
