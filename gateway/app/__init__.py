"""The composition root: settings and table in, a Litestar app out; opens what must be opened and closes it again."""

from __future__ import annotations

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
from gateway import routes
from gateway.config import Settings, Table, load_table
from gateway.core.clock import SystemClock
from gateway.core.types import Limit
from gateway.dataplane import Parts
from gateway.edge import docs, ops
from gateway.edge.inference import DataPlane
from gateway.forward import Forwarder
from gateway.health import Breaker, Prober
from gateway.keys import Keyring
from gateway.limits import Admission
from gateway.meter import Lines, Meter, Metrics
from gateway.store import open_store


def from_environment() -> DataPlane:
    """The app that `TRUNKLINE_...` describes; what every ASGI server is pointed at."""
    settings = Settings.read()
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    table, found = load_table(Path(settings.routing))
    if found:
        raise ValueError("\n".join(map(str, found)))  # a variable that is missing: harmless to a check, not to us
    return build(settings, table)


def build(settings: Settings, table: Table) -> DataPlane:
    """Put the parts together. Raises `ValueError` for settings that cannot work."""
    clock = SystemClock()
    peppers = settings.pepper_versions()
    launched = json.loads(settings.launched or "{}")
    for _, _, target in table.targets():
        if target.launch is not None and target.name not in launched:
            raise ValueError(f"target {target.name!r} has 'launch': start the gateway with `trunkline serve`")

    metrics = Metrics()
    lines = Lines(sys.stdout.fileno(), metrics.dropped.inc)
    store = open_store(settings.redis_url, settings.state_path, settings.redis_timeout)
    keyring = Keyring(store, peppers, clock)
    table_routes = routes.build(table, launched, cache(registry.load), lambda name: Breaker(name, clock.monotonic))
    forwarder = Forwarder(table.bodies.answer)
    default = table.limits.default
    parts = Parts(
        keyring=keyring,
        routes=table_routes,
        admission=Admission(
            store,
            gateways=settings.workers,
            seconds=metrics.redis.observe,
            denied=lambda dimension: metrics.denials.labels(dimension).inc(),
            degraded=metrics.degraded.set,
            clock=clock.monotonic,
        ),
        forwarder=forwarder,
        meter=Meter(metrics, clock, lines.write),
        default_limit=Limit(rpm=default.rpm, concurrency=default.concurrency),
    )

    async def probe(name: str) -> bool:
        target = table_routes.targets[name]
        target.up = await forwarder.probe(target.address, target.adapter, target.timeouts)
        metrics.target_up.labels(name).set(target.up)
        return target.up

    prober = Prober(list(table_routes.targets), probe)

    @asynccontextmanager
    async def lifespan(_: Litestar) -> AsyncIterator[None]:
        await store.open()
        prober.open()
        # What start-up made stays for good: looking through it again and again costs a tenth of each call's CPU.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        try:
            yield
        finally:
            await prober.close()
            await forwarder.close()
            await store.close()
            lines.close()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        app = Litestar(
            route_handlers=[
                ops.router(parts, ops.Readiness(store, prober)),
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
    return DataPlane(parts, table.bodies, app)
