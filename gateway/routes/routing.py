"""All routes of a table, how they are built, and how they take over from the table before."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing

from backends.api import AnyAdapter, Call
from gateway.config import RouteSpec, Table, TargetSpec
from gateway.core.errors import ContextTooLong, NoRoute, NoTarget, QueueFull, QueueTimeout
from gateway.core.types import KeyRecord, OrderState, Spent, TargetOrder
from gateway.routes.exchange import Board
from gateway.routes.explain import Candidacy, explained
from gateway.routes.load import Load
from gateway.routes.placement import Placement
from gateway.routes.policies.api import Prompt
from gateway.routes.prompt import read
from gateway.routes.queue import Queue
from gateway.routes.route import Route
from gateway.routes.slots import Slots
from gateway.routes.target import Breaker, Target
from gateway.routes.tier import Tier

ROUTES_A_TURN = 10
"""Made in one turn of the event loop."""
MOST_ATTEMPTS = 3
"""Targets tried for one call, those of a fallback route included."""


class Routes:
    """The routes, and the order in which one call tries their targets."""

    def __init__(
        self, table: Table, routes: Mapping[str, Route], config_hash: str = "", before: Routes | None = None
    ) -> None:
        self._routes, self._names = routes, table.names()
        self.config_hash = config_hash
        self.targets = {target.name: target for route in routes.values() for target in route.targets}
        self.boards = dict(_boards(routes.values()))
        if before is not None:
            for name, board in self.boards.items():
                board.inherit(before.boards.get(name))

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes.values())

    def get(self, name: str) -> Route | None:
        """The route of this name."""
        return self._routes.get(name)

    def find(self, model: str, visible: Callable[..., bool]) -> Route:
        """The route that `model` means. Raises `NoRoute`, naming the models for which `visible` is true."""
        name = self._names.find(model)
        if name is None:
            usable = self.models(visible)
            shown = ", ".join(usable[:20]) + (", ..." if len(usable) > 20 else "")
            raise NoRoute(
                f"The model {model[:200]!r} does not exist. Models this key may use: {shown or 'none'}.", param="model"
            )
        return self._routes[name]

    def models(self, visible: Callable[..., bool]) -> list[str]:
        """Names a client may ask for by their exact text: routes and aliases, in the table's order."""
        return [name for name, route in self._names.exact.items() if visible(name, route)]

    def chain(self, route: Route) -> Iterator[Route]:
        """The route and those that stand in for it."""
        yield route
        while route.fallback_route is not None:
            route = self._routes[route.fallback_route]
            yield route

    async def placements(
        self,
        route: Route,
        call: Call,
        headers: Mapping[bytes, bytes],
        key: KeyRecord,
        tokens: int,
        spent: Callable[[], Spent],
        *,
        explain: bool = False,
    ) -> AsyncGenerator[Placement, None]:
        """Placements to try in turn, each at another target and only when the one before has failed.

        `tokens` is the estimated length of the prompt, `spent` what the call has used when it is over. Waits while all
        targets are full. Raises `QueueFull`, `QueueTimeout`, `ContextTooLong`, and `NoTarget` if there is no target to
        try at all.
        """
        told = [(b"x-trunkline-config", self.config_hash.encode())]
        chain = list(self.chain(route))
        # Nobody waits for one route, or tries what seems to be down there, while another can take the call. After
        # that the call waits for the first that is only full, and if none is, takes what there is.
        alone = len(chain) == 1
        turns = deque((each, alone, alone) for each in chain)
        tried, refused, full = 0, None, None
        while turns and tried < MOST_ATTEMPTS:
            each, wait, lenient = turns.popleft()
            prompt = self.read(each, call, headers, key, tokens)
            if explain and not tried and each is route:
                told[1:] = [(b"x-trunkline-explain", explained(self.explain(route, prompt)))]
            try:
                attempts = each.placements(call, prompt, key, spent, MOST_ATTEMPTS - tried, wait=wait, lenient=lenient)
                async with aclosing(attempts) as placements:
                    async for placement in placements:
                        tried += 1
                        if each is not route:
                            placement.stand_in(each.name, refused)
                        placement.tell(tried, *told)
                        yield placement
            except (NoTarget, ContextTooLong, QueueFull, QueueTimeout) as error:
                error.headers = {**error.headers, **{name.decode(): value.decode() for name, value in told}}
                if refused is None or wait or isinstance(refused, ContextTooLong):
                    refused = error  # that it fits nowhere is said only if it does not fit anywhere
                if full is None and isinstance(error, QueueFull | QueueTimeout):
                    full = each
            if not turns and not tried and not wait and not lenient:
                turns.extend([(full, True, False)] if full is not None else [(each, False, True) for each in chain])
        if not tried and refused is not None:
            raise refused

    def read(self, route: Route, call: Call, headers: Mapping[bytes, bytes], key: KeyRecord, tokens: int) -> Prompt:
        """The prompt of a call as the route's policies see it."""
        return read(
            call,
            headers,
            model=route.name,
            tenant=key.tenant,
            tokens=tokens,
            priority=key.priority,
            keyed=route.keyed,
        )

    def explain(self, route: Route, prompt: Prompt) -> list[Candidacy]:
        """What each tier of the route, and of those that stand in for it, says of each target."""
        found: list[Candidacy] = []
        chain = list(self.chain(route))
        for lenient in (len(chain) == 1, True):
            found = []
            for each in chain:
                decided = any(candidacy.picked for candidacy in found)
                found += each.chooser.explain(prompt, decided=decided, lenient=lenient)
            if any(candidacy.picked for candidacy in found):
                break
        return found

    def ordered(self, orders: Mapping[str, TargetOrder], now: float) -> None:
        """Apply operators' orders as of `now`, in seconds since the epoch."""
        for name, target in self.targets.items():
            order = orders.get(name)
            state: OrderState = "open" if order is None else order.at(now)
            version = 0 if order is None else order.version
            if (state, version) != (target.order, target.order_version):
                target.ordered(state, version)

    def open(self, before: Routes | None = None) -> None:
        """This table is in force, instead of `before`."""
        for route in self:
            if before is not None and (old := before.get(route.name)) is not None:
                route.inherit(old)
            route.open()
        if before is not None:
            for route in before:
                route.close(self.get(route.name))

    def freed(self) -> None:
        """There may be room anywhere."""
        for route in self:
            route.freed()


class Builder:
    """Makes routes from tables, each taking over from the one before what it has learned and what is under way."""

    def __init__(
        self,
        urls: Mapping[str, str],
        adapters: Callable[[str], AnyAdapter],
        breaker: Callable[[str], Breaker],
        slots: Slots,
        clock: Callable[[], float],
        *,
        seed: int = 0,
        queued: Callable[[str, int, int], None] = lambda route, calls, size: None,
    ) -> None:
        """`urls` has those of launched targets; `queued` is told of a route's waiting calls and their bytes."""
        self._urls, self._adapters, self._breaker, self._slots = urls, adapters, breaker, slots
        self._clock, self._seed, self._queued = clock, seed, queued

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

    def _made(self, table: Table, before: Routes | None) -> Iterator[tuple[str, Route]]:
        loads = {} if before is None else {target.address.url: target.load for target in before.targets.values()}
        for name, spec in table.routes.items():
            yield name, self._route(name, spec, loads, before)

    def _route(self, name: str, spec: RouteSpec, loads: dict[str, Load], before: Routes | None) -> Route:
        numbers = sorted({each.tier for each in spec.fallback})
        specs: list[list[TargetSpec]] = [list(spec.targets)]
        specs += [[each for each in spec.fallback if each.tier == tier] for tier in numbers]
        tiers = [
            Tier([self._target(each, spec, loads, before) for each in tier], spec.policy, self._seed) for tier in specs
        ]
        queue = self._queue(name, spec) if before is None or (old := before.get(name)) is None else old.queue
        return Route(
            name,
            tiers,
            spec.retry.attempts,
            queue,
            spec.queue_wait,
            self._slots,
            self._clock,
            bounds=(spec.queue.calls, spec.queue.size),
            price=spec.price,
            fallback_route=spec.fallback_route,
        )

    def _queue(self, name: str, spec: RouteSpec) -> Queue[Placement]:
        return Queue(
            calls=spec.queue.calls,
            size=spec.queue.size,
            clock=self._clock,
            changed=lambda calls, size: self._queued(name, calls, size),
        )

    def _target(self, spec: TargetSpec, route: RouteSpec, loads: dict[str, Load], before: Routes | None) -> Target:
        url = (spec.url if spec.url is not None else self._urls[spec.name]).rstrip("/")
        load = loads.setdefault(url, Load())
        old = None if before is None else before.targets.get(spec.name)
        if old is not None and old.address.url == url and old.spec.backend == spec.backend:
            target = Target(spec, url, old.adapter, route.timeouts, old.breaker, self._clock, load)
            target.inherit(old)
            return target
        target = Target(
            spec, url, self._adapters(spec.backend), route.timeouts, self._breaker(spec.name), self._clock, load
        )
        if before is not None:
            target.returned()
        return target


def _boards(routes: Iterable[Route]) -> Iterator[tuple[str, Board]]:
    """A board for each route; a server that several routes list is on that of the first."""
    seen: set[str] = set()
    for route in routes:
        loads = {target.address.url: target.load for target in route.targets if target.address.url not in seen}
        seen |= loads.keys()
        yield route.name, Board(route, loads)
