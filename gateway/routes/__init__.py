"""From a model name to targets: the route, the candidates in it, and the load each of them carries for us."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Protocol

from backends.api import AnyAdapter, Call
from backends.api import Target as Address
from gateway.config import Table, TargetSpec, Timeouts
from gateway.config.limits import Price
from gateway.core.errors import NoRoute

BYTES_PER_TOKEN = 4.0
RETRY_SHARE, RETRY_FLOOR = 0.2, 3
"""Retries in flight may be a fifth of all calls in flight, but three are always allowed."""


class Load:
    """What this gateway has sent to a target and not seen the end of."""

    __slots__ = ("prefill", "running", "waiting")

    def __init__(self) -> None:
        self.prefill = 0
        """Prompt tokens of calls that have no first token yet, estimated from their bytes."""
        self.waiting = 0
        """Calls without a first token."""
        self.running = 0
        """All calls."""


class Share:
    """One call's part of a target's load: the prefill part ends at the first token, the rest at the end."""

    __slots__ = ("_load", "_prefill", "_running")

    def __init__(self, load: Load, prefill: int) -> None:
        self._load, self._prefill, self._running = load, prefill, True
        load.prefill += prefill
        load.waiting += 1
        load.running += 1

    def first_token(self) -> None:
        if self._prefill:
            self._load.prefill -= self._prefill
            self._load.waiting -= 1
            self._prefill = 0

    def end(self) -> None:
        if self._running:
            self.first_token()
            self._load.running -= 1
            self._running = False


class Breaker(Protocol):
    """What routing asks of, and tells to, a target's breaker."""

    @property
    def closed(self) -> bool:
        """Calls may go there."""

    def attempt(self) -> bool:
        """A call goes there; whether it is the one that tries an ejected target."""

    def succeeded(self) -> None:
        """It was answered."""

    def failed(self) -> None:
        """It failed, and the target is to blame."""

    def ended(self, trial: bool) -> None:
        """It is over, whatever it told."""


class Target:
    """One target of a route, with all that a call needs to know to use it."""

    def __init__(self, spec: TargetSpec, url: str, adapter: AnyAdapter, timeouts: Timeouts, breaker: Breaker) -> None:
        self.name, self.weight = spec.name, spec.weight
        self.address = Address(spec.name, url.rstrip("/"), spec.model, spec.api_key)
        self.adapter, self.timeouts = adapter, timeouts
        self.load = Load()
        self.breaker = breaker
        self.up: bool | None = None

    def take(self, call: Call) -> Share:
        """Count `call` as this target's load until its share ends."""
        return Share(self.load, max(1, int(len(call.body.raw) / BYTES_PER_TOKEN)))


class Policy(Protocol):
    """How a route picks among candidates."""

    def pick(self, call: Call, candidates: Sequence[Target]) -> Target:
        """One of `candidates`, of which there is at least one."""


class RoundRobin:
    """Each target in turn, smoothly in proportion to its weight (as nginx's weighted round-robin)."""

    def __init__(self) -> None:
        self._credit: dict[str, float] = {}

    def pick(self, call: Call, candidates: Sequence[Target]) -> Target:
        for target in candidates:
            self._credit[target.name] = self._credit.get(target.name, 0.0) + target.weight
        chosen = max(candidates, key=lambda target: self._credit[target.name])
        self._credit[chosen.name] -= sum(target.weight for target in candidates)
        return chosen


class LeastTokens:
    """The target with the fewest prompt tokens still to be read, then the fewest running calls, for its weight.

    Equals, as when all are idle, take turns in proportion to their weights.
    """

    def __init__(self) -> None:
        self._turns = RoundRobin()

    def pick(self, call: Call, candidates: Sequence[Target]) -> Target:
        loads = [(each.load.prefill / each.weight, each.load.running / each.weight) for each in candidates]
        least = min(loads)
        return self._turns.pick(call, [each for each, load in zip(candidates, loads, strict=True) if load == least])


POLICIES: dict[str, Callable[[], Policy]] = {"least-tokens": LeastTokens, "round-robin": RoundRobin}


class RetryBudget:
    """Keeps retries a small part of the load, so that an outage is not answered with twice the calls."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.retrying = 0

    def allows(self) -> bool:
        return self.retrying < max(RETRY_FLOOR, RETRY_SHARE * self.in_flight)


class Route:
    """A model name's targets in tiers, and the policy among them."""

    def __init__(
        self,
        name: str,
        tiers: Sequence[Sequence[Target]],
        policy: Policy,
        attempts: int,
        price: Price | None = None,
    ) -> None:
        self.name, self.tiers, self._policy, self._attempts = name, tiers, policy, attempts
        self.price = price
        self._budget = RetryBudget()

    def candidates(self, call: Call) -> Generator[Target, None, None]:
        """Targets to try in turn, each at most once; each is picked only when the one before has failed."""
        tried: list[Target] = []
        self._budget.in_flight += 1
        try:
            while len(tried) < self._attempts and (left := self._usable(tried)):
                if tried and not self._budget.allows():
                    return
                target = self._policy.pick(call, left)
                retry = bool(tried)
                tried.append(target)
                self._budget.retrying += retry
                try:
                    yield target
                finally:
                    self._budget.retrying -= retry
        finally:
            self._budget.in_flight -= 1

    def _usable(self, tried: Sequence[Target]) -> list[Target]:
        """The best tier that has any target left: healthy ones before those that only probes call down."""
        rest = [[target for target in tier if target not in tried] for tier in self.tiers]
        for healthy in (lambda t: t.breaker.closed and t.up is not False, lambda t: t.breaker.closed):
            for tier in rest:
                if found := list(filter(healthy, tier)):
                    return found
        # Ejecting the last target would turn a bad answer into none at all.
        return next((tier for tier in rest if tier), []) if not tried else []


class Routes:
    """All routes of a table."""

    def __init__(self, table: Table, routes: dict[str, Route]) -> None:
        self._routes, self._names = routes, table.names()
        self.targets = {target.name: target for route in routes.values() for tier in route.tiers for target in tier}

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

    def __iter__(self) -> Iterator[Route]:
        return iter(self._routes.values())


def build(
    table: Table,
    urls: dict[str, str],
    adapters: Callable[[str], AnyAdapter],
    breaker: Callable[[str], Breaker],
) -> Routes:
    """The routes of a table; `urls` has those of launched targets, the callables make an adapter and a breaker."""

    def target(spec: TargetSpec, timeouts: Timeouts) -> Target:
        url = spec.url if spec.url is not None else urls[spec.name]
        return Target(spec, url, adapters(spec.backend), timeouts, breaker(spec.name))

    routes = {}
    for name, spec in table.routes.items():
        tiers = [[target(each, spec.timeouts) for each in tier] for tier in (spec.targets, spec.fallback)]
        routes[name] = Route(name, tiers, POLICIES[spec.policy](), spec.retry.attempts, spec.price)
    return Routes(table, routes)
