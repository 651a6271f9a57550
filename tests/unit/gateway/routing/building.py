"""Real routes of a table, with breakers, slots and queues, on a clock and a store of the test's own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from functools import wraps
from pathlib import Path
from typing import Any

from harness.clock import FixedClock
from harness.virtual_time import run

from backends.api import Call
from backends.body import Body
from backends.capabilities import Capabilities
from gateway.config import parse_table
from gateway.core.types import KeyRecord, Priority, Spent
from gateway.routing import Attempt, Builder, Route, Routes, TargetSlots
from gateway.routing.attempt import NO_OUTCOME
from gateway.routing.attempts import Attempts
from gateway.routing.policies import registry
from gateway.routing.policies.api import Policy, Prompt
from gateway.routing.queue.events import QueueEvents
from gateway.store import Limits
from gateway.store.local import LocalStore
from gateway.targets import Target

Headers = Mapping[bytes, bytes]


def virtual(test: Callable[..., Any]) -> Callable[..., None]:
    """The test in a loop of its own, whose time passes only when all wait."""

    @wraps(test)
    def ran(*given: Any, **named: Any) -> None:
        run(test(*given, **named))

    return ran


def targets(*names: str, **values: object) -> list[dict[str, object]]:
    """Targets of a table's route, each on a server of its own."""
    return [{"name": name, "backend": "vllm", "url": f"http://{name}", **values} for name in names]


def table(**routes: Mapping[str, object]) -> str:
    """A routing table: JSON is YAML."""
    return json.dumps({"routes": routes})


def one(*names: str, **route: object) -> str:
    """A table with one route `r`."""
    return table(r={"policy": "round-robin", "targets": targets(*names), **route})


def key(priority: Priority = "normal", tenant: str = "t") -> KeyRecord:
    return KeyRecord(id="k", name="k", secrets=(), created=0.0, tenant=tenant, priority=priority)


def call(model: str = "r", id: str = "c", **fields: object) -> Call:
    """A streamed chat that asks `model`; `fields` replace those of its body."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
    stream = bool(fields.get("stream", True))
    return Call(id, "chat/completions", model, Body(json.dumps(body).encode()), stream=stream)


async def tried_in_turn(attempts: Attempts, spent: Callable[[], Spent]) -> AsyncGenerator[Attempt, None]:
    """The attempts as the page makes them; each that is asked for has failed, as its outcome says, unless it is the
    last. `spent` is asked when the call is over."""
    outcome = NO_OUTCOME
    try:
        while (attempt := await attempts.next(outcome)) is not None:
            try:
                yield attempt
            finally:
                attempt.end()
            outcome = attempt.outcome
    finally:
        attempts.close(spent())


class Noted(QueueEvents):
    """Writes down how many calls wait, and how those were held that are held no longer."""

    def __init__(self, queued: list[tuple[str, int, int]], ended: list[tuple[str, str, int]]) -> None:
        self._queued, self._ended = queued, ended

    def queued(self, route: str, calls: int, size: int) -> None:
        self._queued.append((route, calls, size))

    def hold_ended(self, route: str, outcome: str, seconds: float) -> None:
        self._ended.append((route, outcome, round(seconds)))


class World:
    """Routes as the gateway has them."""

    def __init__(
        self,
        text: str,
        *,
        limits: Limits | None = None,
        gateways: int = 1,
        policy: Policy | None = None,
        adapters: Callable[[str], Any] = lambda name: name,
    ) -> None:
        """With a `policy` all tiers have this one, whatever the table says. By default no call can really be made."""
        try:
            self.clock: Any = asyncio.get_running_loop().time
        except RuntimeError:
            self.clock = FixedClock()
        self.limits = limits or LocalStore(Path("/nowhere/state.json"), now=self.clock).limits
        self.queued: list[tuple[str, int, int]] = []
        self.holds: list[tuple[str, str, int]] = []
        self.builder = Builder(
            {},
            lambda name: Capabilities.of(adapters(name)),
            TargetSlots(self.limits, lambda: gateways),
            self.clock,
            policies=(lambda _: lambda *_: policy) if policy else registry.load,
            events=Noted(self.queued, self.holds),
        )
        self.routes = self.build(text)
        self.routes.open()
        self.spent = Spent()
        self.held: list[tuple[AsyncGenerator[Attempt, None], Attempt]] = []
        """Calls that a test leaves where they are."""

    def build(self, text: str, before: Routes | None = None) -> Routes:
        return self.builder.build(parse_table(text, "t", {})[0], "hash", before)

    def reload(self, text: str) -> Routes:
        """As the gateway does it; the routes before."""
        before = self.routes
        self.routes = self.build(text, before)
        self.routes.open(before)
        return before

    @property
    def route(self) -> Route:
        return next(iter(self.routes))

    def __getitem__(self, name: str) -> Target:
        return self.routes.targets[name]

    def attempts(
        self, of: Call | None = None, *, tokens: int = 10, who: KeyRecord | None = None, headers: Headers | None = None
    ) -> AsyncGenerator[Attempt, None]:
        """As the page asks for them."""
        of = of or call()
        route = self.routes.find(of.model, lambda *_: True)
        return tried_in_turn(self.routes.attempts(route, of, headers or {}, who or key(), tokens), lambda: self.spent)

    async def tried(self, of: Call | None = None, **named: Any) -> list[str]:
        """Where a call goes that fails everywhere."""
        async with aclosing(self.attempts(of, **named)) as attempts:
            return [attempt.target.name async for attempt in attempts]

    async def first(self, of: Call | None = None, **named: Any) -> tuple[AsyncGenerator[Attempt, None], Attempt]:
        """A call that stays where it was placed first, until its attempts are closed."""
        attempts = self.attempts(of, **named)
        return attempts, await anext(attempts)

    def idle(self) -> None:
        """Assert that nothing is held any more: no load, no retry, no place in a queue, no slot, no trial."""
        for target in self.routes.targets.values():
            load = target.load
            assert (load.prefill, load.waiting, load.running) == (0, 0, 0), target.name
            assert target.inflight.own == 0, target.name
            assert not target.breaker._trying, target.name  # type: ignore[attr-defined]
        for route in self.routes:
            assert (route.retries.in_flight, route.retries.retrying) == (0, 0), route.name
            assert (route.queue.waiting, route.queue.bytes, route.held.calls) == (0, 0, 0), route.name


def eject(*targets: Target) -> None:
    """Let their breakers open."""
    for target in targets:
        for _ in range(5):
            target.failed(False)
        assert not target.breaker.closed


PROMPT = Prompt(10)
