"""All routes of a table, the order in which a call tries their targets, and how a table takes over from another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from msgspec import structs

from backends.api import Call
from backends.endpoints import Endpoint
from gateway.config import Table
from gateway.core.errors import NoRoute, NotServed, ResponseGone
from gateway.core.types import KeyRecord, OrderState, TargetOrder
from gateway.routing.attempts import Attempts
from gateway.routing.explain import Candidacy, explained
from gateway.routing.features import read
from gateway.routing.gossip import RouteGossip
from gateway.routing.policies.api import Prompt
from gateway.routing.responses import FIELD
from gateway.routing.route import Route


class Routes:
    """The routes, and the order in which one call tries their targets."""

    def __init__(
        self, table: Table, routes: Mapping[str, Route], config_hash: str = "", before: Routes | None = None
    ) -> None:
        self._routes, self._names = routes, table.names()
        self.default = table.default_route or ""
        """What a call asks for that names no model; empty: it is refused."""
        self.config_hash = config_hash
        self.passes: dict[str, Endpoint] = {path: "passed" for route in routes.values() for path in route.passes}
        """Paths that some route passes on."""
        self._answer_headers = ((b"x-trunkline-config", config_hash.encode()),)
        self._chains = {name: tuple(self.chain(route)) for name, route in routes.items()}
        for name, chain in self._chains.items():
            routes[name].endpoints = frozenset(each for one in chain for to in one.targets for each in to.endpoints)
        self.targets = {target.name: target for route in routes.values() for target in route.targets}
        self.gossip: Mapping[str, RouteGossip] = dict(_gossip(routes.values()))
        if before is not None:
            for name, each in self.gossip.items():
                each.inherit(before.gossip.get(name))

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes.values())

    def get(self, name: str) -> Route | None:
        """The route of this name."""
        return self._routes.get(name)

    def find(self, model: str, visible: Callable[..., bool], endpoint: str = "") -> Route:
        """The route that `model` means. Raises `NoRoute`, naming the models for which `visible` is true, and
        `NotServed` for one of which none has the `endpoint`."""
        name = self._names.exact.get(model) or self._names.find(model) or self._of_lora(model)
        if name is None:
            raise self.unknown(model, visible)
        route = self._routes[name]
        if endpoint and endpoint not in route.endpoints:
            raise NotServed(f"The model {model!r} has no endpoint {endpoint!r}.", param="model")
        return route

    def having(self, target: str, model: str, endpoint: str) -> Route:
        """The route of a `model` whose response a target has. Raises `ResponseGone`, and `NotServed` where the target's
        server does not have the `endpoint`."""
        name = self._names.exact.get(model) or self._names.find(model) or self._of_lora(model)
        for each in self._chains.get(name or "", ()):
            for one in each.targets:
                if one.name == target:
                    if endpoint not in one.endpoints:
                        raise NotServed(f"The model {model!r} has no endpoint {endpoint!r}.")
                    return self._routes[name or ""]
        raise ResponseGone("The server that has the response is not there any more.")

    def _of_lora(self, model: str) -> str | None:
        """The route whose engines have an adapter of this name."""
        return next((name for name, route in self._routes.items() if route.lists_loras and model in route.loras), None)

    def unknown(self, model: str, visible: Callable[..., bool]) -> NoRoute:
        """What is said of a model that there is not, or not for who asks."""
        usable = self.models(visible)
        shown = ", ".join(usable[:20]) + (", ..." if len(usable) > 20 else "")
        return NoRoute(
            f"The model {model[:200]!r} does not exist. Models this key may use: {shown or 'none'}.", param="model"
        )

    def leads_anywhere(self, model: str) -> bool:
        """A route is meant by this name, be it by a pattern."""
        return (self._names.exact.get(model) or self._names.find(model)) is not None

    def models(self, visible: Callable[..., bool]) -> list[str]:
        """Names a client may ask for by their exact text: routes and aliases, in the table's order, then adapters."""
        named = [name for name, route in self._names.exact.items() if visible(name, route)]
        loras = {lora: name for name, route in self._routes.items() for lora in route.loras}
        return named + sorted(lora for lora, name in loras.items() if lora not in named and visible(lora, name))

    def chain(self, route: Route) -> Iterator[Route]:
        """The route and those that stand in for it."""
        yield route
        while route.fallback_route is not None:
            route = self._routes[route.fallback_route]
            yield route

    def attempts(
        self,
        route: Route,
        call: Call,
        headers: Mapping[bytes, bytes],
        key: KeyRecord,
        tokens: int,
        *,
        explain: bool = False,
        only: str = "",
    ) -> Attempts:
        """The attempts of a call whose prompt is about so many `tokens` long; its answer tells how its target was
        picked if it is to `explain`. `only` names the one target that can take it.

        Raises `ResponseGone` when that is no target of the route any more.
        """
        if only and all(target.name != only for each in self._chains[route.name] for target in each.targets):
            raise ResponseGone(
                "The server that has the response is not there any more. Send the whole conversation.", param=FIELD
            )
        patient, told = route.hold is not None, list(self._answer_headers)
        if explain:
            seen = partial(self.read, call=call, headers=headers, key=key, tokens=tokens)
            told.append((b"x-trunkline-explain", explained(self.explain(route, seen))))

        read = partial(self.read, call=call, headers=headers, key=key, tokens=tokens, patient=patient, only=only)
        return Attempts(self._chains[route.name], call, key, read, told, route.clock)

    def read(
        self,
        route: Route,
        call: Call,
        headers: Mapping[bytes, bytes],
        key: KeyRecord,
        tokens: int,
        *,
        patient: bool | None = None,
        only: str = "",
    ) -> Prompt:
        """The prompt of a call as the route's policies see it; `patient`: it can be held; None: if the route does.
        `only`: as for `attempts`."""
        prompt = read(
            call,
            headers,
            model=route.name,
            tenant=key.tenant,
            tokens=tokens,
            priority=key.priority,
            keyed=route.keyed,
            patient=route.hold is not None if patient is None else patient,
            sessions=route.session_headers,
        )
        lora = call.model if route.lists_loras and self._names.find(call.model) is None else ""
        return structs.replace(prompt, only=only, lora=lora) if only or lora else prompt

    def explain(self, route: Route, read: Callable[[Route], Prompt]) -> list[Candidacy]:
        """What each tier of the route, and of those that stand in for it, says of each target; `read` gives the call's
        prompt as a route sees it: what is cached for one is not for another."""
        found: list[Candidacy] = []
        chain = [(each, read(each)) for each in self.chain(route)]
        for lenient in (len(chain) == 1, True):
            found = []
            for each, prompt in chain:
                decided = any(candidacy.picked for candidacy in found)
                found += each.chooser.explain(prompt, decided=decided, lenient=lenient)
            if any(candidacy.picked for candidacy in found) or self.waits(route, chain[0][1]):
                break
        return found

    def waits(self, route: Route, prompt: Prompt) -> bool:
        """Whether the call would wait for room: none can take it now, and some only lack that."""
        lenient = route.fallback_route is None
        chosen = [each.chooser.fitting(prompt, lenient=lenient) for each in self.chain(route)]
        return not any(each.usable for each in chosen) and any(each.tier is not None for each in chosen)

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
        known = {} if before is None else before.targets
        for name, target in self.targets.items() if before is not None else ():
            old = known.get(name)
            if old is not None and old.breaker is target.breaker:  # the same server
                target.inherit(old)
            else:
                target.returned()
        for route in self:
            if before is not None and (old_route := before.get(route.name)) is not None:
                route.inherit(old_route)
            route.measure()
            route.open()
        if before is not None:
            for route in before:
                route.close(self.get(route.name))

    def freed(self) -> None:
        """There may be room anywhere."""
        for route in self:
            route.freed()


def _gossip(routes: Iterable[Route]) -> Iterator[tuple[str, RouteGossip]]:
    """By route; the load of a server that several routes list is in the first one's reports."""
    seen: set[str] = set()
    for route in routes:
        loads = {target.address.url: target.load for target in route.targets if target.address.url not in seen}
        seen |= loads.keys()
        yield route.name, RouteGossip(route, loads)
