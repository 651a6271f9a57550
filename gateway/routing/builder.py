"""Makes a table's routes, anew or so that they can take over from those of the table before; and its shadow targets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from backends.capabilities import Capabilities
from gateway.config import RouteSpec, Table, TargetSpec
from gateway.config.discovery import first_url
from gateway.routing.attempt import Attempt
from gateway.routing.max_inflight import TargetSlots
from gateway.routing.policies import registry
from gateway.routing.policies.registry import Factory
from gateway.routing.queue.cold import HeldCalls
from gateway.routing.queue.events import QueueEvents
from gateway.routing.queue.queue import Queue
from gateway.routing.route import Route
from gateway.routing.routes import Routes
from gateway.routing.tier import Tier
from gateway.targets.endpoints import PASSED
from gateway.targets.health import Breaker
from gateway.targets.load import Load, Unseen
from gateway.targets.target import Target, address_of
from gateway.upstream.shadow import Mirror

ROUTES_A_TURN = 10
"""Made in one turn of the event loop."""


class Builder:
    """Makes routes from tables, each taking over from the one before what it has learned and what is under way."""

    def __init__(
        self,
        urls: Mapping[str, str],
        capabilities: Callable[[str], Capabilities],
        slots: TargetSlots,
        clock: Callable[[], float],
        *,
        seed: int = 0,
        policies: Callable[[str], Factory] = registry.load,
        events: QueueEvents | None = None,
    ) -> None:
        """`urls` has those of launched targets; `policies` finds what makes a policy by its name; `events` is told of
        calls that wait."""
        self._urls, self._capabilities, self._slots = urls, capabilities, slots
        self._clock, self._seed, self._policies, self._events = clock, seed, policies, events or QueueEvents()
        self._unseen = Unseen()

    def build(self, table: Table, config_hash: str = "", before: Routes | None = None) -> Routes:
        """The routes of `table`. Whatever it raises, `before` is as it was."""
        return Routes(table, dict(self._made(table, before)), config_hash, before)

    async def rebuild(self, table: Table, config_hash: str, before: Routes) -> Routes:
        """As `build`, some routes at a time: calls go on meanwhile."""
        routes = {}
        for name, route in self._made(table, before):
            routes[name] = route
            if len(routes) % ROUTES_A_TURN == 0:
                await asyncio.sleep(0)
        return Routes(table, routes, config_hash, before)

    def mirrors(self, table: Table) -> dict[str, Mirror]:
        """The shadow targets of `table`, by route."""
        found = {}
        for name, route in table.routes.items():
            if (shadow := route.shadow) is not None:
                spec = shadow.target
                address, capabilities = address_of(spec, self._url(spec)), self._capabilities(spec.backend)
                found[name] = Mirror(address, capabilities, route.timeouts, shadow.share, shadow.concurrency)
        return found

    def _url(self, spec: TargetSpec) -> str:
        return first_url(spec) or self._urls[spec.name]

    def _made(self, table: Table, before: Routes | None) -> Iterator[tuple[str, Route]]:
        loads = {} if before is None else {target.address.url: target.load for target in before.targets.values()}
        for name, spec in table.routes.items():
            yield name, self._route(name, spec, loads, before)

    def _route(self, name: str, spec: RouteSpec, loads: dict[str, Load], before: Routes | None) -> Route:
        numbers = sorted({each.tier for each in spec.fallback})
        specs: list[list[TargetSpec]] = [list(spec.targets)]
        specs += [[each for each in spec.fallback if each.tier == tier] for tier in numbers]
        tiers = [
            Tier([self._target(each, spec, loads, before) for each in tier], spec.policy, self._seed, self._policies)
            for tier in specs
        ]
        old = None if before is None else before.get(name)
        queue, held = (self._queue(name, spec), self._hold(name, spec)) if old is None else (old.queue, old.held)
        return Route(name, spec, tiers, queue, held, self._slots, self._clock)

    def _queue(self, name: str, spec: RouteSpec) -> Queue[Attempt]:
        return Queue(
            calls=spec.queue.calls,
            size=spec.queue.size,
            clock=self._clock,
            changed=partial(self._events.queued, name),
        )

    def _hold(self, name: str, spec: RouteSpec) -> HeldCalls:
        queue = Queue[bool](
            calls=spec.queue.calls,
            size=spec.queue.size,
            clock=self._clock,
            changed=lambda calls, size: self._events.held(name, calls),
        )
        return HeldCalls(name, queue, self._clock, self._events)

    def _target(self, spec: TargetSpec, route: RouteSpec, loads: dict[str, Load], before: Routes | None) -> Target:
        url = self._url(spec).rstrip("/")
        load = loads.setdefault(url, Load(self._unseen))
        old = None if before is None else before.targets.get(spec.name)
        if old is not None and old.address.url == url and old.spec.backend == spec.backend:
            capabilities, breaker = old.capabilities, old.breaker
        else:
            capabilities, breaker = self._capabilities(spec.backend), Breaker(spec.name, self._clock)
        target = Target(spec, url, capabilities, route.timeouts, breaker, self._clock, load)
        target.endpoints = {**target.endpoints, **dict.fromkeys(route.passes, PASSED)}
        return target
