"""Keeps the targets of the table in force up to date, and tells what is known of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec
from msgspec import structs

from backends.api import Facts, Gauges
from gateway.app.hung import HungEngines
from gateway.app.unguarded import Unguarded
from gateway.app.waker import Waker
from gateway.core.clock import Clock
from gateway.core.types import Report, TargetCondition, TargetOrder, TargetState
from gateway.metering import Metrics
from gateway.routing import Gossip, Route, Routes
from gateway.routing.filters import refusal
from gateway.routing.policies.api import Prompt, ripe
from gateway.store import Store, StoreDown
from gateway.targets import Target
from gateway.targets.engines import FIELDS as FACTS
from gateway.targets.engines import Engines, differences
from gateway.targets.health import Prober
from gateway.targets.target import UNBOUNDED, WARNINGS
from gateway.upstream import Forwarder

log = logging.getLogger("trunkline.app")

PULSE_SECONDS = 1.0
ORDERS_TRIES, ORDERS_PAUSE = 20, 0.05
"""How often, and seconds between, a worker that starts asks the store for them before it serves without."""
ORDERS_SECONDS = 10.0
"""Between two readings of operators' orders that no notice asked for."""
TARGETS_A_TURN = 50
DEPARTED_SECONDS = 900.0
"""For so long what was counted of a target is shown after it has gone: whoever scrapes sees the last of it."""
_ANY_CALL = Prompt(tokens=1)
OUT = ("drained", "ejected")
"""Why a target that may be well gets no calls."""
_encoder = msgspec.msgpack.Encoder()


class Fleet:
    """Probes, engines' gauges and facts, operators' orders and other gateways' loads, brought to the targets.

    Every second it brings what is known of them to metrics, and to the store for operators.
    """

    def __init__(
        self,
        routes: Routes,
        store: Store,
        forwarder: Forwarder,
        metrics: Metrics,
        clock: Clock,
        boot: str,
        *,
        asks: bool = True,
    ) -> None:
        """`asks`: whether targets are asked once without their credential."""
        self.routes = routes
        self._store, self._forwarder, self._metrics, self._clock, self._boot = store, forwarder, metrics, clock, boot
        self._orders: dict[str, TargetOrder] = {}
        self._orders_at, self._asked = float("-inf"), asyncio.Event()
        self._route_of = _route_of(routes)
        self._warned: dict[tuple[str, str], str] = {}
        """The warnings of targets that the log has, by target and what they are about."""
        self._gone: dict[str, float] = {}
        """Since when targets are in no table any more."""
        self.departed: Callable[[set[str]], None] = lambda _: None
        """Called with targets that have gone for good."""
        self.prober = Prober(list(routes.targets), self._probe)
        self.engines = Engines(list(routes.targets), self, clock.monotonic)
        self.gossip = Gossip(store.board.exchange, routes, clock.monotonic)
        self.waker = Waker(routes, self.prober, self.engines, forwarder, clock.monotonic)
        self._unguarded = Unguarded(forwarder, asks=asks)
        self._hung = HungEngines(forwarder, metrics, clock)
        self._task: asyncio.Task[None] | None = None
        store.records.watch(self._changed)

    async def open(self) -> None:
        """Begin, with operators' orders known if the store answers soon: a drained target is to get no call."""
        for _ in range(ORDERS_TRIES):
            if await self._obey():
                break
            await asyncio.sleep(ORDERS_PAUSE)
        self.prober.open()
        self.engines.open()
        self.gossip.open()
        self.waker.open()
        self._task = asyncio.create_task(self._run(), name="fleet")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self.waker.close()
        await self.gossip.close()
        await self._unguarded.close()
        await self.engines.close()
        await self.prober.close()

    def adopt(self, routes: Routes) -> None:
        """Another table is in force: look after its targets from now on."""
        before, self.routes, self._route_of = self.routes, routes, _route_of(routes)
        self.gossip.routes = self.waker.routes = routes
        anew = [
            name
            for name, target in routes.targets.items()
            if name in before.targets and before.targets[name].address != target.address
        ]
        names = list(routes.targets)
        self.prober.replace(names, anew)
        self.engines.replace(names, anew)
        routes.ordered(self._orders, self._clock.now())
        for route in routes:
            old = before.get(route.name)
            if old is None or [target.spec for target in old.targets] != [target.spec for target in route.targets]:
                self._compare(route)

        self._warned = {place: why for place, why in self._warned.items() if place[0] in routes.targets}
        self._unguarded.keep(routes.targets)
        now = self._clock.monotonic()
        self._gone.update(dict.fromkeys(before.targets.keys() - routes.targets.keys(), now))
        self._keep()

    async def report(self) -> Report:
        """How each target stands with this gateway."""
        states = []
        for name in list(self.routes.targets):
            if name in self.routes.targets:  # not another table, meanwhile
                states.append(self.state(name))
            await _turn(len(states))
        return Report(gateway=self._boot, config_hash=self.routes.config_hash, targets=tuple(states))

    async def counters(self, name: str) -> tuple[int, int] | None:
        """Prompt and completion tokens that the target's engine has counted; None if it does not tell."""
        target = self.routes.targets.get(name)
        if target is None or (counted := target.capabilities.counted) is None:
            return None
        text = await self._forwarder.scrape(target.address, target.capabilities, target.timeouts)
        return None if text is None else counted.counters(text)

    async def _probe(self, name: str, thorough: bool) -> bool:
        """Ask a target, for its credential too if `thorough`, and keep on it what it says; whether it can serve."""
        try:
            why = await self._complaint(self.routes.targets[name], thorough)
        except Exception:  # a bug of ours, or an odd target
            log.exception("target %s could not be probed", name)
            why = "cannot be probed"
        if (target := self.routes.targets.get(name)) is None:
            return False
        self._metrics.target_up.labels(name).set(not why)
        if not why and target.up is False:
            self.engines.recovered(name)
        if target.up is None or target.why != why:
            log.log(logging.WARNING if why else logging.INFO, "target %s is %s", name, f"down: {why}" if why else "up")
        back = target.up is not True
        if target.up is None or target.why != why or target.missed:
            target.probed(why)
            self._route_of[name].freed()
        if not why and thorough:
            self._unguarded.look(target, back=back)
        return not why

    async def _complaint(self, target: Target, thorough: bool) -> str:
        """Why the target cannot serve; nothing if it can."""
        forwarder = self._forwarder
        if target.capabilities.probed is None and (self.waker.wants(target.name) or target.up is False):
            why = await forwarder.reach(target.address, target.timeouts)  # it has no health route
        else:
            why = await forwarder.probe(target.address, target.capabilities, target.timeouts)
        if not why and thorough:
            why = await forwarder.credential(target.address, target.capabilities, target.timeouts)
        return why

    async def read_gauges(self, name: str) -> Gauges | None:
        """Ask a target's engine for its load; None: it does not tell it now."""
        target = self.routes.targets[name]
        gauges = await self._forwarder.gauges(target.address, target.capabilities, target.timeouts)
        if (now := self.routes.targets.get(name)) is not None:  # perhaps of another table
            self._hung.look(now, gauges, self._route_of[name])
            if now.progress.doubtful:
                self.engines.doubt(name)
        return gauges

    async def read_facts(self, name: str) -> Facts | None:
        """Ask a target what it is; None: it does not tell it now."""
        target = self.routes.targets[name]
        return await self._forwarder.describe(target.address, target.capabilities, target.timeouts)

    def gauges_read(self, name: str, gauges: Gauges | None) -> None:
        """An engine has told its load, or tells it no longer."""
        if (target := self.routes.targets.get(name)) is None:
            return
        asleep = gauges is not None and gauges.asleep
        if asleep != target.asleep:
            target.sleeps(asleep)
        if gauges is None:
            return
        if gauges.kv_tokens is not None and gauges.kv_tokens != target.facts.kv_tokens:
            target.learned(structs.replace(target.facts, kv_tokens=gauges.kv_tokens))
        for gauge, value in (
            (self._metrics.engine_running, gauges.running),
            (self._metrics.engine_waiting, gauges.waiting),
            (self._metrics.engine_cache, gauges.kv_usage),
        ):
            if value is not None:
                gauge.labels(name).set(value)

    def facts_read(self, name: str, facts: Facts) -> None:
        """A target has told what it is."""
        if (target := self.routes.targets.get(name)) is None:
            return
        before, facts = target.facts, structs.replace(facts, kv_tokens=facts.kv_tokens or target.facts.kv_tokens)
        if facts == before:
            return
        target.learned(facts)
        target.lists_model()
        if changed := [field for field in FACTS if getattr(before, field) not in (None, getattr(facts, field))]:
            log.warning("target %s has changed: %s", name, ", ".join(changed))
        self._compare(self._route_of[name])

    def _compare(self, route: Route) -> None:
        """Look at what the route's targets tell of themselves: those of one tier should tell the same."""
        route.measure()
        differ: set[str] = set()
        for tier in route.tiers:
            differ.update(differences((each.spec.backend, each.facts) for each in tier.targets))
        for field in FACTS:
            self._metrics.route_drift.labels(route.name, field).set(field in differ)

    def _changed(self, name: str | None) -> None:
        if name is None or name.startswith("target:"):
            self._orders_at = float("-inf")
            self._asked.set()

    async def _run(self) -> None:
        while True:
            try:
                await self._obey()
                await self._show()
                with suppress(StoreDown):
                    await self._store.board.report(_encoder.encode(await self.report()))
            except Exception:  # a bug of ours; without this task no order would be heard any more
                log.exception("the targets could not be looked after")
            self._asked.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(PULSE_SECONDS):
                    await self._asked.wait()

    async def _obey(self) -> bool:
        """Apply operators' orders; those that end by themselves end here. Whether they are known."""
        now = self._clock.monotonic()
        if now - self._orders_at > ORDERS_SECONDS:
            with suppress(StoreDown):
                self._orders = {order.id: order for order in await self._store.records.all(TargetOrder)}
                self._orders_at = now
        self.routes.ordered(self._orders, self._clock.now())
        return self._orders_at > float("-inf")

    async def _show(self) -> None:
        metrics = self._metrics
        for number, name in enumerate(list(self.routes.targets)):
            await _turn(number)
            if (target := self.routes.targets.get(name)) is None:  # another table, meanwhile
                continue
            metrics.target_prefill.labels(name).set(target.load.prefill)
            metrics.target_running.labels(name).set(target.load.running)
            metrics.target_waiting.labels(name).set(target.load.waiting)
            refused = refusal(_ANY_CALL, target, self._clock.monotonic())
            for reason in OUT:
                metrics.target_out.labels(name, reason).set(refused == reason)
            if target.missed:
                self.prober.hurry(name)
            self._warn(target)
        self._keep()
        read_at = self.gossip.read_at
        metrics.load_age.set(-1 if read_at == float("-inf") else self._clock.monotonic() - read_at)

    def _warn(self, target: Target) -> None:
        """Tell what is wrong with a target that serves, once, and that it is no longer."""
        for about in WARNINGS:
            told, why = self._warned.get((target.name, about)), target.warnings.get(about, "")
            if told == why:
                continue
            self._metrics.target_warning.labels(target.name, about).set(bool(why))
            self._warned[target.name, about] = why
            if why:
                log.warning("target %s: %s", target.name, why)

    def _keep(self) -> None:
        """Show nothing of routes and targets that are in no table any more."""
        targets = {*self.routes.targets, *(route.shadow_target for route in self.routes)}
        self._metrics.keep({"route": {route.name for route in self.routes}, "target": targets})
        if not self._gone:
            return
        self._gone = {name: at for name, at in self._gone.items() if name not in targets}
        until = self._clock.monotonic() - DEPARTED_SECONDS
        if departed := {name for name, at in self._gone.items() if at <= until}:
            self.departed(departed)
            self._gone = {name: at for name, at in self._gone.items() if name not in departed}

    def state(self, name: str) -> TargetState:
        """How a target of the table in force stands."""
        route, target = self._route_of[name], self.routes.targets[name]
        now = self._clock.monotonic()
        refused = refusal(_ANY_CALL, target, now)
        state: TargetCondition = "unknown" if target.up is None else "up"
        if refused is not None:
            state = refused  # type: ignore[assignment] # but for too_long, which no call of one token is
        return TargetState(
            name=target.name,
            route=route.name,
            tier=target.tier,
            url=target.address.url,
            backend=target.spec.backend,
            state=state,
            why="; ".join(filter(None, [target.complaint, *target.warnings.values()])),
            order=target.order_version,
            weight=round(ripe(target, now), 4),
            running=target.load.running,
            waiting=target.load.waiting,
            prefill=target.load.prefill,
            attempts=target.attempts,
            max_inflight=target.max_inflight,
            context=None if target.context == UNBOUNDED else target.context,
            kv_tokens=target.spec.kv_tokens or target.facts.kv_tokens,
            version=target.facts.version or "",
        )


async def _turn(number: int) -> None:
    """Thousands of targets are gone through in many turns of the event loop: calls go on between them."""
    if number % TARGETS_A_TURN == TARGETS_A_TURN - 1:
        await asyncio.sleep(0)


def _route_of(routes: Routes) -> Mapping[str, Route]:
    return {target.name: route for route in routes for target in route.targets}
