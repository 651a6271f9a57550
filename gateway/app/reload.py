"""Another table takes over: all of it between two calls, or nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from msgspec import structs

from gateway.app.discovery import Discovery
from gateway.app.fleet import Fleet
from gateway.batches.files import Files
from gateway.config import Table
from gateway.config.caching import without_cache
from gateway.config.discovery import expanded
from gateway.config.limits import Price
from gateway.config.source import Loaded, unlaunched
from gateway.core.clock import Clock
from gateway.http.operations import Readiness
from gateway.http.server import DataPlane
from gateway.limits import Rules
from gateway.metering import Metrics
from gateway.routing import Builder
from gateway.upstream import AnswerLimits

log = logging.getLogger("trunkline.app")


class TableStatus:
    """Tells, in metrics and in `/ready`, which table is in force and whether a newer one cannot be used."""

    def __init__(self, readiness: Readiness, metrics: Metrics, clock: Clock, config_hash: str) -> None:
        self._readiness, self._metrics, self._clock, self.config_hash = readiness, metrics, clock, config_hash
        self._tell(config_hash)

    def applied(self, config_hash: str) -> None:
        """Another table is in force."""
        self._metrics.reloads.labels("applied").inc()
        self._tell(config_hash)

    def refused(self, mistakes: int) -> None:
        """A newer table has so many mistakes that it cannot be used."""
        self._metrics.reloads.labels("refused").inc()
        self._metrics.config_bad.set(1)
        self._readiness.config_error = (
            f"a newer table cannot be used ({mistakes} mistake{'s' * (mistakes > 1)}, see the log)"
        )

    def _tell(self, config_hash: str) -> None:
        if self.config_hash != config_hash:
            self._metrics.forget(self._metrics.config, self.config_hash)
        self._metrics.config.labels(config_hash).set(1)
        self._metrics.config_at.set(self._clock.now())
        self._metrics.config_bad.set(0)
        self.config_hash = config_hash
        self._readiness.config, self._readiness.config_error = config_hash, ""


class Reloader:
    """Applies tables to a running gateway: others, and the same one whose discovered targets have come or gone."""

    def __init__(
        self,
        plane: DataPlane,
        builder: Builder,
        fleet: Fleet,
        launched: Mapping[str, str],
        table: Table,
        status: TableStatus,
        files: Files | None = None,
    ) -> None:
        """`launched` has the URLs of targets that were started; a table with others cannot be used."""
        self._launched, self._table, self._files = launched, table, files
        self._plane, self._builder, self._fleet = plane, builder, fleet
        self._status = status
        self.cache_url: str | None = None
        """Where answers are kept; without it no table is used that keeps any."""
        self.discovery = Discovery(self._rediscover)
        self.discovery.watch(table)
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Begin to discover targets; those that answer soon are in force when this returns."""
        async with self._turn:
            await self.discovery.learn(self._table)
            if any(self.discovery.known.values()):
                await self._put(self._table, self._status.config_hash)
        self.discovery.open()

    async def close(self) -> None:
        await self.discovery.close()

    async def apply(self, loaded: Loaded) -> None:
        """Put a table in force. Calls under way go on with the one before. Raises `ValueError`, changing nothing."""
        table = loaded.table
        async with self._turn:
            objections = unlaunched(table, self._launched, self._table) + without_cache(table, self.cache_url)
            if objections:
                raise ValueError("\n".join(objections))
            await self.discovery.learn(table)
            await self._put(table, loaded.config_hash)
            self.discovery.watch(table)
            self._table = table
        self._status.applied(loaded.config_hash)
        log.warning("the routing table %s is in force", loaded.config_hash)
        for mistake in loaded.warnings:
            log.warning("%s", mistake)

    async def _rediscover(self) -> None:
        async with self._turn:
            await self._put(self._table, self._status.config_hash)

    async def _put(self, table: Table, config_hash: str) -> None:
        """Serve by a table, with the targets that are known now."""
        parts, table = self._plane.parts, expanded(table, self.discovery.known)
        before = parts.routes
        routes = await self._builder.rebuild(table, config_hash, before)
        mirrors = self._builder.mirrors(table)
        parts.forwarder.origins.bind(table)
        # Nothing below waits or fails: no call sees half of it.
        routes.open(before)
        parts.admission.revise(rules(table), prices(table))
        parts.forwarder.bound(answer_limits(table))
        if self._files is not None:
            self._files.defaults = table.limits.storage.storage()
        parts.shadow.mirrors = mirrors
        self._fleet.adopt(routes)
        self._plane.swap(structs.replace(parts, routes=routes), table.bodies, table.cors)

    def refused(self, why: str) -> None:
        """A new table cannot be used: the last good one stays."""
        self._status.refused(len(why.splitlines()))  # what is wrong may quote the table: that is for the log
        stays = self._status.config_hash
        log.error("the routing table %s stays in force; the new one cannot be used:\n%s", stays, why)


def rules(table: Table) -> Rules:
    """The table's limits as admission knows them."""
    return Rules(
        key=table.limits.default.limit(),
        tenant=table.limits.tenant.limit(),
        models={name: spec.limits.limit() for name, spec in table.routes.items()},
        key_models={name: spec.key_limits.limit() for name, spec in table.routes.items()},
        ietf_headers=table.limits.ietf_headers,
    )


def prices(table: Table) -> Mapping[str, Price | None]:
    """What tokens cost, by route."""
    return {name: spec.price for name, spec in table.routes.items()}


def answer_limits(table: Table) -> AnswerLimits:
    """How much of an answer is taken into memory."""
    bodies = table.bodies
    return AnswerLimits(bodies.answer, bodies.event, bodies.together)
