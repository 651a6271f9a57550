"""What gateways publish for each other: applied once, forgotten when it is old, read again when it matters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import pytest
from harness.clock import FixedClock
from harness.routing import Gateway, Replica, key

from gateway.routing.gossip import GatewayReport, Gossip, RouteGossip
from gateway.routing.policies.api import Note, Policy, Prompt, Score
from gateway.routing.policies.registry import load
from gateway.store import StoreDown
from gateway.targets.load import LoadReport, Share
from gateway.targets.target import Inflight

NOW = 1000.0
ON_THE_WIRE = bytes.fromhex(
    "9581a8687474703a2f2f6194cd01f40102cd3039229294a567726f7570cfffffffffffffffffa161cd080094a463616c6c07a162cd0bb803"
    "81a16102"
)
"""What a gateway of fbac326 publishes where a gateway of today has `REPORT`."""
REPORT = GatewayReport(
    {"http://a": LoadReport(500, 1, 2, 12345)},
    34,
    (Note("group", (1 << 64) - 1, "a", 2048), Note("call", 7, "b", 3000)),
    3,
    {"a": 2},
)


class Listens:
    """A policy that keeps what it hears and tells what it is given."""

    def __init__(self) -> None:
        self.heard_notes: list[Note] = []
        self.to_tell: list[Note] = []

    def notes(self) -> list[Note]:
        notes, self.to_tell = self.to_tell, []
        return notes

    def heard(self, notes: list[Note], targets: object) -> None:
        self.heard_notes += notes

    def score(self, prompt: Prompt, targets: object, usable: object, now: float) -> list[Score]:
        raise NotImplementedError

    def pick(self, scores: object) -> Score:
        raise NotImplementedError


@dataclass
class Bounded(Replica):
    """A target whose calls may be counted for all gateways."""

    max_inflight: int | None = None
    inflight: Inflight = field(default_factory=Inflight)


class OneTier:
    """A route with one tier of one server."""

    def __init__(self, policy: Policy | None = None, names: tuple[str, ...] = ("a", "b")) -> None:
        self.name, self.tiers, self.waiting, self.others_waiting = "r", (self,), 0, 0
        self.policy = self.gossips = policy or Listens()
        self.names, self.targets = list(names), [Bounded(name) for name in names]

    def gossip(self) -> RouteGossip:
        return RouteGossip(self, {each.name: each.load for each in self.targets})  # type: ignore[arg-type]


class OneRoute:
    """The routes of a table that has one."""

    def __init__(self, gossip: RouteGossip) -> None:
        self.gossip, self.freed_times = {"r": gossip}, 0

    def freed(self) -> None:
        self.freed_times += 1


def note(n: int, target: str = "a") -> Note:
    return Note("call", key(n), target, n)


def busy(gossip: RouteGossip, tokens: int = 100) -> None:
    for load_of in gossip.loads.values():
        Share(load_of, tokens).end()


def published(gossip: RouteGossip, now: float) -> bytes:
    report = gossip.publish(now)
    assert report is not None
    return report


def test_a_rolling_upgrade_reads_and_is_read() -> None:
    """Gateways of before share the boards with those of now: neither may take the other for dead, or for idle."""
    assert msgspec.msgpack.encode(REPORT) == ON_THE_WIRE
    assert msgspec.msgpack.decode(ON_THE_WIRE, type=GatewayReport) == REPORT


def test_a_later_version_may_add_fields_at_the_end() -> None:
    load, *rest = msgspec.msgpack.decode(ON_THE_WIRE)
    later = msgspec.msgpack.encode([{url: [*fields, "more"] for url, fields in load.items()}, *rest, {"more": 1}])
    assert msgspec.msgpack.decode(later, type=GatewayReport) == REPORT


def test_loads_are_reported_by_server() -> None:
    mine, theirs = OneTier(), OneTier()
    Share(mine.targets[0].load, 500)
    theirs.gossip().apply({"g": (published(mine.gossip(), NOW), 0.1)}, NOW)
    other = theirs.targets[0].load
    assert (other.others_prefill, other.others_waiting, other.others_running) == (500, 1, 1)
    assert theirs.targets[1].load.others_running == 0


def test_notes_are_applied_once_however_often_they_are_read() -> None:
    mine, theirs = OneTier(), OneTier()
    writes, reads = mine.gossip(), theirs.gossip()
    for step in range(5):
        busy(writes)
        mine.policy.to_tell = [note(2 * step), note(2 * step + 1)]
        report = published(writes, NOW + step)
        for _ in range(3):
            reads.apply({"g": (report, 0.0)}, NOW + step)
    assert theirs.policy.heard_notes == [note(n) for n in range(10)]


def test_a_reader_that_missed_much_has_the_newest_32() -> None:
    mine, theirs = OneTier(), OneTier()
    writes, reads = mine.gossip(), theirs.gossip()
    busy(writes)
    for step in range(10):
        mine.policy.to_tell = [note(10 * step + n) for n in range(10)]
        report = published(writes, NOW)
        if step == 0:
            reads.apply({"g": (report, 0.0)}, NOW)
    reads.apply({"g": (report, 0.0)}, NOW)
    assert theirs.policy.heard_notes == [note(n) for n in (*range(10), *range(68, 100))]
    assert len(report) < 2000


def test_a_gateway_that_was_silent_for_a_while_tells_nothing_twice() -> None:
    """Its route was quiet there, or the store was away: old notes must not look new when it is back."""
    mine, theirs = OneTier(), OneTier()
    writes, reads = mine.gossip(), theirs.gossip()
    busy(writes)
    mine.policy.to_tell = [note(n) for n in range(5)]
    reads.apply({"g": (published(writes, NOW), 0.0)}, NOW)
    for step in range(1, 30):  # the store leaves reports out that are older than two seconds
        reads.apply({}, NOW + step)
    busy(writes)
    mine.policy.to_tell = [note(5)]
    reads.apply({"g": (published(writes, NOW + 30), 0.0)}, NOW + 30)
    assert theirs.policy.heard_notes == [note(n) for n in range(6)]


def test_what_a_gateway_charged_while_it_was_not_heard_counts_when_it_is() -> None:
    mine, theirs = OneTier(), OneTier()
    writes, reads = mine.gossip(), theirs.gossip()
    busy(writes, 1000)
    reads.apply({"g": (published(writes, NOW), 0.0)}, NOW)
    before = theirs.targets[0].load.clock
    reads.apply({}, NOW + 3)
    busy(writes, 70_000)
    reads.apply({"g": (published(writes, NOW + 4), 0.0)}, NOW + 4)
    assert theirs.targets[0].load.clock == before + 70_000


def test_gateways_that_never_come_back_are_forgotten_in_the_end() -> None:
    """Each worker has a name of its own: whatever is kept of the silent ones is bounded."""
    theirs = OneTier()
    reads = theirs.gossip()
    report = msgspec.msgpack.encode(GatewayReport({}, 3, (note(1),)))
    for n in range(5000):
        reads.apply({f"g{n}": (report, 0.0)}, NOW + 10.0 * n)
    assert len(reads._applied) <= 1024


def test_a_restarted_gateway_is_heard() -> None:
    first, again, theirs = OneTier(), OneTier(), OneTier()
    reads = theirs.gossip()
    for route, notes in ((first, range(20)), (again, range(20, 23))):
        gossip = route.gossip()
        busy(gossip)
        route.policy.to_tell = [note(n) for n in notes]
        reads.apply({"g": (published(gossip, NOW), 0.0)}, NOW)
    assert theirs.policy.heard_notes == [note(n) for n in range(23)]


def test_a_dead_gateways_load_is_gone_with_its_word() -> None:
    mine, theirs = OneTier(), OneTier()
    Share(mine.targets[0].load, 500)
    reads = theirs.gossip()
    reads.apply({"g": (published(mine.gossip(), NOW), 0.0)}, NOW)
    reads.apply({}, NOW + 2.1)
    assert theirs.targets[0].load.others_running == 0


def test_words_that_cannot_be_read_harm_nobody() -> None:
    mine, theirs = OneTier(), OneTier()
    Share(mine.targets[0].load, 500)
    reports = {
        "newer": (msgspec.msgpack.encode({"another": "form"}), 0.0),
        "empty": (b"", 0.0),
        "torn": (published(mine.gossip(), NOW)[:-3], 0.0),
        "good": (published(mine.gossip(), NOW), 0.0),
    }
    theirs.gossip().apply(reports, NOW)
    assert theirs.targets[0].load.others_running == 1


@pytest.mark.parametrize("odd", [Note("call", -1, "a", 5), Note("group", -5, "a"), Note("call", 5, "a", 2**63)])
def test_notes_that_cannot_be_do_not_end_the_exchange(odd: Note) -> None:
    route = OneTier(load("home-cost")(["a", "b"], 0))
    Share(route.targets[0].load, 1)
    report = msgspec.msgpack.encode(GatewayReport({}, 1, (odd,)))
    route.gossip().apply({"g": (report, 0.0)}, NOW)


def test_a_target_only_others_have_is_passed_over() -> None:
    theirs = OneTier()
    report = msgspec.msgpack.encode(GatewayReport({}, 2, (note(1, "elsewhere"), note(2, "b"))))
    theirs.gossip().apply({"g": (report, 0.0)}, NOW)
    assert theirs.policy.heard_notes == [note(2, "b")]


def test_a_quiet_route_keeps_no_old_load_of_others() -> None:
    """Otherwise a target that others had filled stays full here: no call goes there, so nobody asks again."""
    mine, theirs = OneTier(), OneTier()
    reads = theirs.gossip()
    busy(reads)
    for _ in range(64):
        Share(mine.targets[0].load, 500)
    published(reads, NOW)
    reads.apply({"g": (published(mine.gossip(), NOW), 0.0)}, NOW)
    assert theirs.targets[0].load.others_running == 64
    now = NOW
    while now < NOW + 60 and reads.publish(now) is not None:
        now += 0.2
        reads.apply({"g": (published(mine.gossip(), now), 0.0)}, now)
    if now < NOW + 60:  # it asks no more
        for _ in range(20):
            now += 0.2
            reads.publish(now)
        assert theirs.targets[0].load.others_running == 0


def test_a_call_that_waits_here_keeps_the_route_listening() -> None:
    """It has charged nothing, and waits for what others say."""
    route = OneTier()
    gossip = route.gossip()
    busy(gossip)
    published(gossip, NOW)
    assert gossip.publish(NOW + 30) is None
    route.waiting = 1
    assert gossip.publish(NOW + 60) is not None


def test_a_route_whose_servers_another_route_tells_of_has_notes_to_tell() -> None:
    """Several routes on one server: the load is the server's, the tables are each route's own."""
    mine = OneTier()
    gossip = RouteGossip(mine, {})  # type: ignore[arg-type]
    for step in range(100):
        Share(mine.targets[0].load, 100).end()
        mine.policy.to_tell = [note(step)]
        report = gossip.publish(NOW + step * 0.2)
    assert report is not None, "20 s of calls later it is still not quiet"
    assert msgspec.msgpack.decode(report, type=GatewayReport).count == 100


def test_slots_and_queues_are_reported_by_target_and_route() -> None:
    mine, theirs, third = OneTier(), OneTier(), OneTier()
    for route in (mine, theirs, third):
        route.targets[0].max_inflight = 10
    mine.targets[0].inflight.own, mine.waiting = 6, 2
    third.targets[0].inflight.own, third.waiting = 1, 1
    theirs.waiting = 3
    reads = theirs.gossip()
    reports = {name: (published(route.gossip(), NOW), 0.0) for name, route in (("g", mine), ("h", third))}
    reads.apply(reports, NOW)
    assert (theirs.targets[0].inflight.others, theirs.targets[0].inflight.all) == (7, 7)
    assert theirs.others_waiting == 3 and theirs.targets[1].inflight.all == 0
    reads.apply({}, NOW + 2.1)
    assert (theirs.targets[0].inflight.others, theirs.others_waiting, theirs.targets[0].inflight.reserve) == (0, 0, 0)


@pytest.mark.parametrize(
    ("theirs_run", "theirs_wait", "ours_wait", "reserve"),
    [(0, 0, 5, 0), (0, 3, 3, 3), (5, 3, 3, 0), (4, 3, 3, 1), (0, 1, 9, 1), (9, 50, 0, 1), (0, 50, 0, 10)],
)
def test_others_who_wait_have_a_right_to_their_part_of_the_slots(
    theirs_run: int, theirs_wait: int, ours_wait: int, reserve: int
) -> None:
    mine, theirs = OneTier(), OneTier()
    for route in (mine, theirs):
        route.targets[0].max_inflight = 10
    theirs.targets[0].inflight.own, theirs.waiting, mine.waiting = theirs_run, theirs_wait, ours_wait
    busy(theirs_gossip := theirs.gossip())
    mine.gossip().apply({"g": (published(theirs_gossip, NOW), 0.0)}, NOW)
    assert mine.targets[0].inflight.reserve == reserve


def test_a_quiet_route_reserves_nothing() -> None:
    route = OneTier()
    route.targets[0].max_inflight = 10
    gossip = route.gossip()
    busy(gossip)
    published(gossip, NOW)
    route.targets[0].inflight.others = route.targets[0].inflight.reserve = 3
    assert gossip.publish(NOW + 6) is None
    assert (route.targets[0].inflight.others, route.targets[0].inflight.reserve, route.others_waiting) == (0, 0, 0)


def test_a_reload_goes_on_where_the_gossip_was() -> None:
    mine, theirs = OneTier(), OneTier()
    old, reads = mine.gossip(), theirs.gossip()
    busy(old)
    mine.policy.to_tell = [note(1), note(2)]
    reads.apply({"g": (published(old, NOW), 0.0)}, NOW)
    new, reader = mine.gossip(), theirs.gossip()
    new.inherit(old)
    reader.inherit(reads)
    mine.policy.to_tell = [note(3)]
    reader.apply({"g": (published(new, NOW), 0.0)}, NOW)
    assert theirs.policy.heard_notes == [note(1), note(2), note(3)]


async def test_without_a_store_what_was_reported_counts_for_two_seconds() -> None:
    mine, theirs, clock = OneTier(), OneTier(), FixedClock(NOW)
    Share(mine.targets[0].load, 500)
    Share(theirs.targets[1].load, 5)
    gossip, up = theirs.gossip(), True

    async def exchange(reports: Mapping[str, bytes]) -> dict[str, dict[str, tuple[bytes, float]]]:
        if not up:
            raise StoreDown("away")
        return {name: {"g": (published(mine.gossip(), NOW), 0.0)} for name in reports}

    of = Gossip(exchange, OneRoute(gossip), clock)
    await of.once()
    assert theirs.targets[0].load.others_running == 1
    up = False
    clock.advance(1.9)
    await of.once()
    assert theirs.targets[0].load.others_running == 1
    clock.advance(0.2)
    await of.once()
    assert theirs.targets[0].load.others_running == 0
    up = True
    await of.once()
    assert theirs.targets[0].load.others_running == 1


def test_gateways_follow_each_others_exceptions_by_gossip() -> None:
    """The policy itself, its reports as they cross the wire."""
    gateways = [Gateway(load("home-cost"), [Bounded(name) for name in ("a", "b", "c")]) for _ in range(2)]
    routes = []
    for gateway in gateways:
        route = OneTier(gateway.policy, ("a", "b", "c"))
        route.targets = gateway.replicas
        routes.append(route)
    prompt = Prompt(3000, key("c"))
    at = gateways[0].scores(prompt)[0].index
    gateways[0].replicas[at].load.prefill += 10**6
    away = gateways[0].serve(prompt).score.index
    gateways[0].replicas[at].load.prefill -= 10**6
    assert away != at
    routes[1].gossip().apply({"g": (published(routes[0].gossip(), NOW), 0.0)}, NOW)
    found = gateways[1].place(Prompt(3500, key("c"), follow_up=True), NOW).score
    assert (found.index, found.reason, found.cached) == (away, "exception", 3000)
