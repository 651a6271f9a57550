"""Simulated gateways: the real routes, queue, policy and gossip, with boards in memory between them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import Any, Final, cast

from backends.api import Call
from backends.body import Body
from backends.capabilities import Capabilities
from gateway.config import RouteSpec, Table, TargetSpec
from gateway.core.types import KeyRecord
from gateway.routing import Builder, Gossip, Route, TargetSlots
from gateway.routing.policies.api import Prompt
from gateway.routing.policies.registry import Factory
from gateway.routing.route_attempts import RouteAttempts
from gateway.store import FRESH_SECONDS, Limits

ROUTE: Final = "simulated"
CALL: Final = Call("", "chat/completions", ROUTE, Body(b"{}"), stream=True)
"""What the route is told of each call beside its prompt."""
ENGINE: Final = Capabilities.of(cast("Any", object()))
"""Nothing is sent to a simulated engine."""
KEY: Final = KeyRecord(id="k", name="k", secrets=(), created=0.0)


class Boards:
    """What the gateways have written for each other."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._published: dict[str, tuple[Mapping[str, bytes], float]] = {}

    async def exchange(self, gateway: str, mine: Mapping[str, bytes]) -> dict[str, dict[str, tuple[bytes, float]]]:
        """Publish, and read what the others published last, with its age."""
        now = self._clock()
        self._published[gateway] = mine, now
        return {
            board: {
                name: (reports[board], now - at)
                for name, (reports, at) in self._published.items()
                if name != gateway and board in reports and now - at <= FRESH_SECONDS
            }
            for board in mine
        }


class SimulatedGateway:
    """One gateway's side of routing; it is made in the loop whose time it lives in."""

    def __init__(
        self,
        name: str,
        targets: Sequence[TargetSpec],
        policy: str,
        policies: Callable[[str], Factory],
        boards: Boards,
        clock: Callable[[], float],
        seed: int,
    ) -> None:
        builder = Builder(
            {},
            lambda backend: ENGINE,
            TargetSlots(cast("Limits", None)),  # asked for nothing: no target has `max_inflight`
            clock,
            seed=seed,
            policies=policies,
        )
        routes = builder.build(Table(routes={ROUTE: RouteSpec(targets=tuple(targets), policy=policy)}))
        routes.open()
        route = routes.get(ROUTE)
        assert route is not None
        self.route: Route = route
        self._gossip = Gossip(partial(boards.exchange, name), routes, clock)
        self._chance = Random(f"{seed} exchange")  # noqa: S311 - jitter

    def attempts(self, prompt: Prompt) -> RouteAttempts:
        """Of one call, which is tried once."""
        return RouteAttempts(self.route, CALL, prompt, KEY, 1)

    async def exchanges(self, seconds: float) -> None:
        """Exchange each so many seconds, out of step with the others."""
        await asyncio.sleep(seconds * self._chance.random())
        while True:
            await self._gossip.once()
            await asyncio.sleep(seconds * self._chance.uniform(0.9, 1.1))
