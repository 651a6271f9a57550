"""Redis frozen, gone, slow, reset, emptied while two gateways are under load: known keys do not notice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
from faults.fleet import Fleet, fleet, route, serving
from faults.outage import NARROW, Story, check, keys
from faults.report import Report
from harness.link import Link, link
from harness.redis_server import RedisServer, redis_server
from harness.upstream import Upstream


class Place(NamedTuple):
    """A Redis behind a link, and the gateways that use it."""

    redis: RedisServer
    link: Link
    fleet: Fleet


@pytest.fixture(scope="module")
def place(upstream: Upstream) -> Iterator[Place]:
    with ExitStack() as stack:
        server = stack.enter_context(redis_server())
        wire = stack.enter_context(link(server.port))
        table = {"routes": {"m": route(upstream, "m")}}
        url = f"redis://127.0.0.1:{wire.port}/0"
        yield Place(server, wire, stack.enter_context(fleet(table, url, gateways=2)))


class Outage(NamedTuple):
    fault: int
    """Its number in the table of faults."""
    name: str
    begin: Callable[[Place], Any]
    end: Callable[[Place], Any]
    degrades: bool = True
    empties: bool = False
    """The counters are lost with it, and begin anew."""


class Backup:
    """The records as an operator would have kept them."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def keep(self, place: Place) -> None:
        with place.redis.raw() as raw:
            kinds = ("key:*", "keys", "tenant:*", "tenants", "epoch")
            self._kept = {name: raw.dump(name) for kind in kinds for name in raw.keys("{tl}:" + kind)}

    def bring_back(self, place: Place) -> None:
        with place.redis.raw() as raw:
            for name, content in self._kept.items():
                raw.restore(name, 0, content, replace=True)


class Resets:
    """The link's connections are reset again and again."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def begin(self, place: Place) -> None:
        self._over.clear()
        self._thread = threading.Thread(target=self._run, args=(place.link,))
        self._thread.start()

    def end(self, _: Place) -> None:
        self._over.set()
        self._thread.join()

    def _run(self, wire: Link) -> None:
        while not self._over.wait(0.4):
            wire.reset()


def restarted(place: Place) -> None:
    place.redis.restart()
    backup.bring_back(place)


def emptied(place: Place) -> None:
    backup.keep(place)
    place.redis.ask("FLUSHALL")


def killed(place: Place) -> None:
    backup.keep(place)
    place.redis.stop()


def slow(seconds: float) -> Callable[[Place], None]:
    """Answers come so many seconds late."""
    return lambda place: place.link.delay(seconds / 2)


def restored(place: Place) -> None:
    place.link.restore()


backup, resets = Backup(), Resets()
OUTAGES = (
    Outage(15, "frozen", lambda place: place.redis.freeze(), lambda place: place.redis.thaw()),
    Outage(15, "swallowed by the network", lambda place: place.link.black_hole(), restored),
    Outage(16, "20 ms away", slow(0.02), restored, degrades=False),
    Outage(16, "120 ms away", slow(0.12), restored),
    Outage(16, "400 ms away", slow(0.4), restored),
    Outage(15, "reset again and again", resets.begin, resets.end, degrades=False),
    Outage(15, "killed, started empty, records restored", killed, restarted, empties=True),
    Outage(18, "FLUSHALL, records restored", emptied, lambda place: backup.bring_back(place), empties=True),
    Outage(17, "SCRIPT FLUSH", lambda place: place.redis.ask("SCRIPT", "FLUSH"), lambda _: None, degrades=False),
)


@pytest.mark.parametrize("outage", OUTAGES, ids=lambda outage: outage.name.replace(" ", "-"))
async def test_redis_is(place: Place, upstream: Upstream, report: Report, outage: Outage) -> None:
    serving(upstream, "m")
    story = Story(place.fleet)
    await story.run(await keys(place.fleet), lambda: outage.begin(place), lambda: outage.end(place))
    known = story.of("share", "narrow", "open", "free")
    check(story, degrades=outage.degrades, empties=outage.empties)
    report.fault(
        outage.fault,
        outage.name,
        len(story.calls),
        "0 5xx of known keys",
        f"{sum(call.status >= 500 for call in known)}",
        f"p99 +{1000 * story.added(0.99):.0f} ms, well after {story.recovered():.1f} s",
    )
    alone = sum(call.status == 200 and call.degraded for call in story.of("narrow"))
    tries = len([call for call in story.of("narrow") if call.degraded])
    report.fault(
        outage.fault, f"{outage.name}: admitted meanwhile, limit {NARROW}/min", tries, f"<= {NARROW} + leak", f"{alone}"
    )
