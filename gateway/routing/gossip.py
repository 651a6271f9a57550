"""What gateways tell each other of the load they have put on targets, five times a second.

One board in the store for each route, and on it one report of each gateway: absolute numbers, so that a lost report or
a dead gateway harms nobody for long. The report also has the last notes of the route's policies, counted, so that a
reader applies each once though it reads most of them several times.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Protocol

import msgspec
from msgspec import Struct

from gateway.routing.policies.api import Note
from gateway.routing.tier import Tier
from gateway.store import StoreDown
from gateway.targets.load import KNOWN_GATEWAYS, STALE_SECONDS, Load, LoadReport
from gateway.targets.target import Target

log = logging.getLogger("trunkline.routing")

SECONDS: Final = 0.2
RING: Final = 32
QUIET_SECONDS: Final = 5.0
"""A board is read for so long after its route was last busy here."""

Reports = Mapping[str, tuple[bytes, float]]
"""By gateway: its encoded `GatewayReport` and how old that is, in seconds."""


class GatewayReport(Struct, frozen=True, array_like=True):
    """What one gateway publishes on a route's board. Gateways of other versions read it: fields may only be added, with
    a default, at the end, where those who do not know them leave them out."""

    loads: dict[str, LoadReport]
    """By the server's URL."""
    count: int = 0
    """Notes ever written; the last ones are in `notes`."""
    notes: tuple[Note, ...] = ()
    waiting: int = 0
    """Calls in the route's queue."""
    inflight: dict[str, int] = {}
    """Calls at targets with `max_inflight`, by name."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(GatewayReport)


class GossipingRoute(Protocol):
    """A route, as its gossip needs it."""

    others_waiting: int
    """Calls in other gateways' queues, as they last reported."""

    @property
    def name(self) -> str:
        """The board's."""

    @property
    def waiting(self) -> int:
        """Calls in its queue."""

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Whose policies may have notes."""


class RouteGossip:
    """One route's part: what is published of it, and how others' reports are applied to it."""

    def __init__(self, route: GossipingRoute, loads: Mapping[str, Load]) -> None:
        """`loads` are those of servers which no earlier route lists, by URL."""
        self.route, self.loads = route, loads
        self._bounded = [target for tier in route.tiers for target in tier.targets if target.max_inflight is not None]
        self._all = [target.load for tier in route.tiers for target in tier.targets]
        self._written = 0
        self._ring: deque[Note] = deque(maxlen=RING)
        self._applied: dict[str, int] = {}
        """By gateway: the count of its notes that were applied."""
        self._alone = False
        """Nobody else had published anything when the board was last read."""
        self._charged, self._busy, self._quiet = -1, float("-inf"), False

    def inherit(self, predecessor: RouteGossip | None) -> None:
        """Go on where the same route's gossip of the table before has left off."""
        if predecessor is not None:
            self._written, self._ring, self._applied = predecessor._written, predecessor._ring, predecessor._applied

    def publish(self, now: float) -> bytes | None:
        """This gateway's report; None: the route is quiet, and its board need not even be read."""
        for tier in self.route.tiers:
            if tier.gossips is not None:
                notes = tier.gossips.notes()
                self._ring.extend(notes)
                self._written += len(notes)
        charged = sum(load.charged for load in self._all)
        if charged != self._charged or self.route.waiting or any(load.running for load in self._all):
            self._charged, self._busy, self._quiet = charged, now, False
        if now - self._busy > QUIET_SECONDS:
            if self._quiet:
                return None
            self._quiet = True
            self._forget_others(now)
            return None
        report = GatewayReport(
            {url: load.report() for url, load in self.loads.items() if load.charged},
            self._written,
            tuple(self._ring),
            self.route.waiting,
            {target.name: target.inflight.own for target in self._bounded if target.inflight.own},
        )
        return _encoder.encode(report)

    def apply(self, reports: Reports, now: float) -> None:
        """Take in what others published. A report that cannot be read is left out: for a while there may be some of
        another version."""
        if self._alone and not reports:
            return
        self._alone = not reports
        loads: dict[str, dict[str, tuple[LoadReport, float]]] = {url: {} for url in self.loads}
        self.route.others_waiting = 0
        inflight: Counter[str] = Counter()
        for gateway, (raw, age) in reports.items():
            try:
                report = _decoder.decode(raw)
            except (msgspec.DecodeError, ValueError):
                continue
            for url, load_report in report.loads.items():
                if url in loads:
                    loads[url][gateway] = load_report, age
            self._apply_notes(gateway, report)
            self.route.others_waiting += report.waiting
            inflight.update(report.inflight)
        for url, load in self.loads.items():
            load.apply(loads[url], now)
        for target in self._bounded:
            target.inflight.others = inflight[target.name]
            target.inflight.reserve = self._reserve(target)
        while len(self._applied) > KNOWN_GATEWAYS:  # one that was only silent goes on where it was
            del self._applied[next(iter(self._applied))]

    def _forget_others(self, now: float) -> None:
        """Nobody reads the board any more: what was last read would stay for ever."""
        self.route.others_waiting = 0
        for target in self._bounded:
            target.inflight.others = target.inflight.reserve = 0
        for load in self.loads.values():
            load.apply({}, now)

    def _reserve(self, target: Target) -> int:
        """Slots of the target that others' waiting calls are still to get: as their part of all that wait."""
        theirs, ours = self.route.others_waiting, self.route.waiting
        if not theirs or target.max_inflight is None:
            return 0
        part = max(1, target.max_inflight * theirs // (theirs + ours))
        return min(theirs, max(0, part - target.inflight.others))

    def _apply_notes(self, gateway: str, report: GatewayReport) -> None:
        before = self._applied.pop(gateway, 0)
        fresh = report.count - before if report.count >= before else report.count  # it has been restarted
        self._applied[gateway] = report.count
        notes = [note for note in report.notes[-fresh:] if _is_possible(note)] if fresh else []
        for tier in self.route.tiers if notes else ():
            if tier.gossips is not None:
                tier.gossips.heard([note for note in notes if note.target in tier.names], tier.targets)


def _is_possible(note: Note) -> bool:
    """Other gateways may be of another version."""
    return 0 < note.key < 1 << 64 and 0 <= note.tokens < 1 << 60


class GossipingRoutes(Protocol):
    """The routes of a table, as gossip needs them."""

    gossip: Mapping[str, RouteGossip]
    """By the name of the route."""

    def freed(self) -> None:
        """There may be room anywhere."""


class Gossip:
    """Publishes and applies as long as it is open. While the store is down each gateway is on its own."""

    def __init__(
        self,
        exchange: Callable[[Mapping[str, bytes]], Awaitable[Mapping[str, Reports]]],
        routes: GossipingRoutes,
        clock: Callable[[], float],
    ) -> None:
        """`exchange` is the store's: it publishes a report of each route, by name, and returns what others have there.
        `clock` is monotonic, in seconds."""
        self._exchange, self._clock = exchange, clock
        self.routes = routes
        """Those of the table in force."""
        self._task: asyncio.Task[None] | None = None
        self.read_at = float("-inf")
        """When others' reports were last read, by the clock."""

    def open(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="gossip")

    async def close(self) -> None:
        """End; the store takes back what was published."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def once(self) -> None:
        """Publish and apply for all routes that are in use."""
        routes, now = self.routes, self._clock()
        mine = {name: report for name, each in routes.gossip.items() if (report := each.publish(now)) is not None}
        if not mine:
            return
        try:
            others = await self._exchange(mine)
            self.read_at = self._clock()
        except StoreDown:
            others = {}  # what was read last grows old and counts no more
            if self._clock() - self.read_at < STALE_SECONDS:
                return
        for name in mine:
            routes.gossip[name].apply(others.get(name, {}), self._clock())
        self.routes.freed()

    async def _run(self) -> None:
        while True:
            try:
                await self.once()
            except Exception:  # a bug of ours; without gossip each gateway would be on its own for good
                log.exception("what gateways tell each other could not be exchanged")
            await asyncio.sleep(SECONDS * random.uniform(0.9, 1.1))  # noqa: S311 - jitter
