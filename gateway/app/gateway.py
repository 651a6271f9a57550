"""The composition root: settings and table in, the parts of one worker out, opened in order and closed in reverse."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import secrets
import sys
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from litestar import Litestar

from backends import registry
from gateway.app.batch_runner import BatchRunner
from gateway.app.fleet import Fleet
from gateway.app.kept_answers import KeptAnswers
from gateway.app.lifetime import Lifetime, Part
from gateway.app.reload import Reloader, TableStatus, answer_limits, prices, rules
from gateway.app.waker import Waker
from gateway.auth import AdminKeys, Keyring, Throttle, networks
from gateway.batches.files import Files
from gateway.batches.storage import FileStorage
from gateway.batches.submissions import Submissions
from gateway.call_state import Parts
from gateway.config import Settings, Table
from gateway.config.discovery import expanded
from gateway.config.settings import unknown
from gateway.config.source import Loaded, Source
from gateway.config.watch import Watcher
from gateway.config.weak_secrets import weak_secrets
from gateway.core.clock import SystemClock
from gateway.http import batches, files, models, openapi, operations
from gateway.http.request import BOOT
from gateway.http.server import DataPlane
from gateway.limits import Admission, AdmissionEvents
from gateway.metering import Lines, Meter, Metrics
from gateway.metering.connections import ConnectionMetrics
from gateway.metering.counting import Learned
from gateway.metering.ledger import LedgerWriter
from gateway.metering.loop_lag import LoopLag
from gateway.metering.reconcile import Reconciler
from gateway.metering.shadows import ShadowMetrics
from gateway.process import supervisor
from gateway.process.log import set_up
from gateway.routing import Builder, Routes, TargetSlots
from gateway.routing.queue.events import QueueEvents
from gateway.routing.responses import Responses
from gateway.store import Store, open_store
from gateway.upstream import Forwarder, Pool
from gateway.upstream.shadow import Shadow

log = logging.getLogger("trunkline.app")

PULSE_SECONDS = 1.0


def from_environment() -> Gateway:
    """The gateway that `TRUNKLINE_...` describes; what a worker runs."""
    settings = Settings.read()
    set_up(settings.log_level, settings.log_format)
    source = Source(
        Path(settings.routing),
        launched=_launched(settings),
        kept=Path(settings.kept) if settings.kept else None,
    )
    return Gateway(settings, source.load(), source)


class Gateway:
    """One worker: its parts, which know each other only as far as they were handed to each other here.

    A worker opens it, has it serve, and closes it.
    """

    def __init__(self, settings: Settings, loaded: Loaded, source: Source) -> None:
        """Put the parts together. Raises `ValueError` for settings that cannot work."""
        self.settings, self.clock, self.metrics = settings, SystemClock(), Metrics()
        self.learned = Learned()
        self.metrics.unknown_settings.set(len(unknown()))
        self.metrics.worker_restarts.set(supervisor.restarts)
        self.metrics.weak_secrets.set(len([*weak_secrets(settings)]))
        self.launched, self.capabilities = _launched(settings), cache(registry.capabilities)
        table = loaded.table
        self.lines = Lines(sys.stdout.fileno(), self.metrics.dropped.inc)
        self.store = open_store(
            settings.redis_url, settings.state_path, settings.redis_timeout, records_url=settings.records_url, boot=BOOT
        )
        self.kept = KeptAnswers(settings, self.metrics, self.clock) if settings.cache_url else None
        self.files = self._files(table)
        self.keyring, self.admin_keys = self._keys()
        self.waiting = WaitingCalls(self.metrics)
        self.builder = self._builder()
        standing = expanded(table, {})
        routes = self.builder.build(standing, loaded.config_hash)
        routes.open()
        self.forwarder = Forwarder(answer_limits(table), pool=_pool(settings))
        self.forwarder.origins.bind(standing)
        self.ledger = LedgerWriter(self.store.ledger, self.metrics.ledger_dropped.inc)
        self.admission = self._admission(table)
        self.pulse = Pulse(self.admission, self.store, self.metrics, self.forwarder)
        self.shadow = self._shadow(table)
        asks = settings.ask_without_credential
        self.fleet = Fleet(routes, self.store, self.forwarder, self.metrics, self.clock, BOOT, asks=asks)
        self.waiting.waker = self.fleet.waker
        self.reconciler = Reconciler(self._urls, self.fleet.counters, self.store.ledger, self.metrics.drift)
        self.readiness = operations.Readiness(self.store, self._is_draining)
        self.proxies = networks(settings.trusted_proxies.split(","))
        self.plane = DataPlane(self._parts(routes), table.bodies, self._operations(), self.proxies, self._may_explain)
        self.plane.allow(table.cors)
        self.fleet.departed = self.plane.parts.meter.depart
        status = TableStatus(self.readiness, self.metrics, self.clock, loaded.config_hash)
        self.reloader = Reloader(self.plane, self.builder, self.fleet, self.launched, table, status, self.files)
        self.reloader.cache_url = settings.cache_url
        self.watcher = Watcher(source, self.reloader.apply, self.reloader.refused)
        self.runner = self._batch_runner()
        self.lifetime = Lifetime(self._order())
        self.accept, self.grace = settings.drain_accept, settings.grace
        self.serve = self.plane.serve

    def _order(self) -> list[Part]:
        """All that is opened or closed, each part after those that it uses."""
        return [
            (None, self.lines.close),
            (None, self.metrics.pending.flush),
            (self.store.open, self.store.close),
            *([(self.kept.open, self.kept.close)] if self.kept is not None else []),
            (self.ledger.open, self.ledger.close),
            (self.keyring.open, self.keyring.close),
            (self.admin_keys.open, self.admin_keys.close),
            (None, self.forwarder.close),
            (self.fleet.open, self.fleet.close),
            (self.reconciler.open, self.reconciler.close),
            (None, self.shadow.close),
            (self.reloader.open, self.reloader.close),
            (self.watcher.open, self.watcher.close),
            (self.pulse.open, self.pulse.close),
            *([(self.runner.open, self.runner.close)] if self.runner is not None else []),
        ]

    async def open(self) -> None:
        """Open all parts. Raises what the first one raises that cannot be opened."""
        await self.lifetime.open()
        # What start-up made stays for good: looking through it again and again costs a tenth of each call's CPU.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)

    async def close(self) -> None:
        """Close all parts."""
        await self.lifetime.close()

    @property
    def running(self) -> int:
        """Calls under way."""
        return self.plane.running + (self.runner.running if self.runner is not None else 0)

    def drain(self) -> None:
        """Tell whoever asks that this worker will be gone soon."""
        self.plane.drain()
        if self.runner is not None:
            self.runner.drain()

    def end_calls(self) -> None:
        """End every call that runs."""
        self.plane.end_calls()
        if self.runner is not None:
            self.runner.end_calls()

    def _keys(self) -> tuple[Keyring, AdminKeys]:
        peppers, refused = self.settings.pepper_versions(), self.metrics.throttled.inc
        keyring = Keyring(self.store.records, peppers, self.clock, Throttle(self.clock, refused=refused))
        admin_keys = AdminKeys(
            self.store.records,
            peppers,
            self.clock,
            bootstrap=self.settings.admin_digest(),
            throttle=Throttle(self.clock, refused=refused),
        )
        return keyring, admin_keys

    def _files(self, table: Table) -> Files | None:
        where = self.settings.files
        return Files(self.store.batches, FileStorage(where), table.limits.storage.storage()) if where else None

    def _submissions(self) -> Submissions | None:
        return None if self.files is None else Submissions(self.store.batches, self.files)

    def _batch_runner(self) -> BatchRunner | None:
        if self.files is None:
            return None
        return BatchRunner(self.store, self.files, self.plane, self.settings.batch_lines, BOOT, self.metrics)

    def _builder(self) -> Builder:
        return Builder(
            self.launched,
            self.capabilities,
            TargetSlots(self.store.limits, self._gateways),
            self.clock.monotonic,
            seed=secrets.randbits(32),
            events=self.waiting,
        )

    def _admission(self, table: Table) -> Admission:
        return Admission(
            self.store,
            rules(table),
            prices=prices(table),
            gateways=self.settings.workers,
            events=Admissions(self.metrics),
            clock=self.clock.monotonic,
            now=self.clock.now,
        )

    def _shadow(self, table: Table) -> Shadow:
        shadows = ShadowMetrics(self.metrics)
        return Shadow(
            self.builder.mirrors(table), self.forwarder, shadows.compared, shadows.dropped, self.clock.monotonic
        )

    def _parts(self, routes: Routes) -> Parts:
        learn = self.admission.estimator.learn
        return Parts(
            keyring=self.keyring,
            routes=routes,
            admission=self.admission,
            forwarder=self.forwarder,
            meter=Meter(
                self.metrics, self.clock, self.lines.write, enter=self.ledger.add, learn=learn, learned=self.learned
            ),
            shadow=self.shadow,
            responses=Responses(self.store.homes),
            answers=None if self.kept is None else self.kept.answers,
        )

    def _operations(self) -> Litestar:
        """Health, readiness, metrics, documentation: what is no call."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            app = Litestar(
                route_handlers=[
                    operations.router(self._parts_in_force, self.readiness),
                    models.router(self._parts_in_force, self.proxies),
                    files.router(self._parts_in_force, self.proxies, self.files),
                    batches.router(self._parts_in_force, self.proxies, self._submissions()),
                    openapi.assets(),
                ],
                after_request=operations.name_request,
                exception_handlers={Exception: operations.render_exception},
                openapi_config=openapi.config(),
                logging_config=None,
                pdb_on_exception=False,
            )
        openapi.describe_data_plane(app)
        return app

    # What parts ask or tell of others that are made after them.

    def _parts_in_force(self) -> Parts:
        return self.plane.parts

    def _is_draining(self) -> bool:
        return self.plane.draining

    def _gateways(self) -> int:
        return self.store.gateways

    def _urls(self) -> dict[str, str]:
        return {name: target.address.url for name, target in self.fleet.routes.targets.items()}

    async def _may_explain(self, token: bytes, source: str | None) -> bool:
        """Whether an admin key asks; one that is good for one thing only is not good for this."""
        return not (await self.admin_keys.authenticate({b"authorization": b"Bearer " + token}, source)).once


class Admissions(AdmissionEvents):
    """What admission does, in metrics."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.answered = metrics.pending.values(metrics.redis).append  # type: ignore[assignment,method-assign] # no frame

    def denied(self, scope: str, dimension: str) -> None:
        """A call was refused by this limit."""
        self._metrics.denials.labels(scope, dimension).inc()

    def degraded(self, alone: bool) -> None:
        """This gateway decides alone from now on, or no longer."""
        self._metrics.degraded.set(alone)


class WaitingCalls(QueueEvents):
    """Calls that wait, in metrics; `waker`, once there is one, hears of those that wait for a target to wake up."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.waker: Waker | None = None

    def queued(self, route: str, calls: int, size: int) -> None:
        """So many calls wait for a target with room."""
        self._metrics.queue_calls.labels(route).set(calls)
        self._metrics.queue_bytes.labels(route).set(size)

    def held(self, route: str, calls: int) -> None:
        """So many calls wait because no target is there."""
        self._metrics.held_calls.labels(route).set(calls)
        if self.waker is not None:
            self.waker.held(calls)

    def hold_ended(self, route: str, outcome: str, seconds: float) -> None:
        """A call is held no longer."""
        self._metrics.hold.labels(route, outcome).observe(seconds)


class Pulse:
    """What the store and the connections to targets know of themselves, for metrics: gauges of several workers cannot
    be asked when scraped."""

    def __init__(self, admission: Admission, store: Store, metrics: Metrics, forwarder: Forwarder) -> None:
        self._admission, self._store, self._metrics, self._forwarder = admission, store, metrics, forwarder
        self._connections, self._lag = ConnectionMetrics(metrics), LoopLag(metrics.loop_lag)
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to look every second."""
        self._lag.open()
        self._task = asyncio.create_task(self._run(), name="pulse")

    async def close(self) -> None:
        """End."""
        self._lag.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            try:
                await self._admission.look()
                self._metrics.settle_pending.set(self._store.limits.unsettled)
                self._metrics.gateways.set(self._store.gateways)
                self._metrics.answer_memory.set(self._forwarder.memory.held)
                self._connections.show(self._forwarder.origins)
                self._metrics.pending.flush()
            except Exception:  # a bug of ours; the pulse goes on
                log.exception("the state of the store and of connections could not be shown")
            await asyncio.sleep(PULSE_SECONDS)


def _pool(settings: Settings) -> Pool:
    """The connections to targets, as the settings bound them."""
    return Pool(
        idle=settings.connection_idle,
        max_age=settings.connection_max_age,
        head_bytes=settings.answer_head_bytes,
        head_lines=settings.answer_head_lines,
    )


def _launched(settings: Settings) -> Mapping[str, str]:
    """The URLs of the targets that `trunkline serve` has started, by name."""
    urls: dict[str, str] = json.loads(settings.launched or "{}")
    return urls
