"""The composition root: settings and table in, a Litestar app out; opens what must be opened and closes it again."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

from litestar import Litestar

from backends import registry
from backends.api import Counted
from gateway import routes
from gateway.config import Settings, Table, load_table
from gateway.core.clock import SystemClock
from gateway.dataplane import Parts
from gateway.edge import docs, ops
from gateway.edge.client import BOOT
from gateway.edge.inference import DataPlane
from gateway.forward import Forwarder
from gateway.health import Breaker, Prober
from gateway.keys import Keyring, Throttle, networks
from gateway.limits import Admission, Rules
from gateway.meter import Lines, Meter, Metrics
from gateway.meter.ledger import LedgerWriter
from gateway.reconcile import Reconciler
from gateway.store import open_store

PULSE_SECONDS = 1.0


def from_environment() -> DataPlane:
    """The app that `TRUNKLINE_...` describes; what every ASGI server is pointed at."""
    settings = Settings.read()
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    table, found = load_table(Path(settings.routing))
    if missing := [mistake for mistake in found if mistake.needed]:
        raise ValueError("\n".join(map(str, missing)))  # a variable: harmless to a check, not to us
    return build(settings, table)


def build(settings: Settings, table: Table) -> DataPlane:
    """Put the parts together. Raises `ValueError` for settings that cannot work."""
    clock = SystemClock()
    peppers = settings.pepper_versions()
    proxies = networks(settings.trusted_proxies.split(","))
    launched = json.loads(settings.launched or "{}")
    for _, _, target in table.targets():
        if target.launch is not None and target.name not in launched:
            raise ValueError(f"target {target.name!r} has 'launch': start the gateway with `trunkline serve`")

    metrics = Metrics()
    lines = Lines(sys.stdout.fileno(), metrics.dropped.inc)
    store = open_store(
        settings.redis_url, settings.state_path, settings.redis_timeout, records_url=settings.records_url, boot=BOOT
    )
    keyring = Keyring(store, peppers, clock, Throttle(clock, refused=metrics.throttled.inc))
    table_routes = routes.build(table, launched, cache(registry.load), lambda name: Breaker(name, clock.monotonic))
    forwarder = Forwarder(table.bodies.answer)
    ledger = LedgerWriter(store, metrics.ledger_dropped.inc)
    admission = Admission(
        store,
        _rules(table),
        prices={name: spec.price for name, spec in table.routes.items()}.get,
        gateways=settings.workers,
        seconds=metrics.redis.observe,
        denied=lambda scope, dimension: metrics.denials.labels(scope, dimension).inc(),
        degraded=metrics.degraded.set,
        clock=clock.monotonic,
        now=clock.now,
    )
    parts = Parts(
        keyring=keyring,
        routes=table_routes,
        admission=admission,
        forwarder=forwarder,
        meter=Meter(metrics, clock, lines.write, enter=ledger.add, learn=admission.estimator.learn),
    )

    async def probe(name: str) -> bool:
        target = table_routes.targets[name]
        target.up = await forwarder.probe(target.address, target.adapter, target.timeouts)
        metrics.target_up.labels(name).set(target.up)
        return target.up

    async def counters(name: str) -> tuple[int, int] | None:
        target = table_routes.targets[name]
        text = await forwarder.scrape(target.address, target.adapter, target.timeouts)
        return target.adapter.counters(text) if text is not None and isinstance(target.adapter, Counted) else None

    def drift(target: str, direction: str, tokens: int, ratio: float) -> None:
        metrics.drift_tokens.labels(target, direction).set(tokens)
        metrics.drift_ratio.labels(target, direction).set(ratio)

    async def pulse() -> None:
        """What the store knows of itself, for metrics: gauges of several workers cannot be asked when scraped."""
        while True:
            await admission.look()
            metrics.settle_pending.set(store.unsettled)
            metrics.gateways.set(store.gateways)
            await asyncio.sleep(PULSE_SECONDS)

    prober = Prober(list(table_routes.targets), probe)
    urls = {name: target.address.url for name, target in table_routes.targets.items()}
    reconciler = Reconciler(urls, counters, store, drift)

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        await store.open()
        await keyring.open()
        ledger.open()
        prober.open()
        reconciler.open()
        pulsing = asyncio.create_task(pulse(), name="pulse")
        # What start-up made stays for good: looking through it again and again costs a tenth of each call's CPU.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        try:
            yield
        finally:
            pulsing.cancel()
            await asyncio.wait([pulsing])
            await reconciler.close()
            await prober.close()
            await forwarder.close()
            await keyring.close()
            await ledger.close()
            await store.close()
            lines.close()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        app = Litestar(
            route_handlers=[
                ops.router(parts, ops.Readiness(store, prober), proxies),
                docs.assets(),
            ],
            lifespan=[lifespan],
            after_request=ops.name_request,
            exception_handlers={Exception: ops.render_exception},
            openapi_config=docs.config(),
            logging_config=None,
            pdb_on_exception=False,
        )
    docs.describe_data_plane(app)
    return DataPlane(parts, table.bodies, app, proxies)


def _rules(table: Table) -> Rules:
    """The table's limits as admission knows them."""
    return Rules(
        key=table.limits.default.limit(),
        tenant=table.limits.tenant.limit(),
        models={name: spec.limits.limit() for name, spec in table.routes.items()},
        key_models={name: spec.key_limits.limit() for name, spec in table.routes.items()},
        ietf_headers=table.limits.ietf_headers,
    )
