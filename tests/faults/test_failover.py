"""Redis behind Sentinel and on Cluster, each flavour: the master changes, or the slot moves, while calls come in."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from faults.fleet import fleet, route, serving
from faults.outage import Story, check, keys
from faults.report import Report
from harness.redis_cluster import Cluster, redis_cluster
from harness.redis_flavours import flavours
from harness.redis_sentinel import Guarded, redis_sentinel, until
from harness.redis_server import RedisServer
from harness.upstream import Upstream

FLAVOURS = dict(flavours())
SLOT = "{tl}:complete"
"""A key of the slot that has all of ours."""


def tell(report: Report, name: str, story: Story, took: float) -> None:
    known = story.of("share", "narrow", "open", "free")
    failed = sum(call.status >= 500 for call in known)
    number = f"{took:.1f} s; p99 +{1000 * story.added(0.99):.0f} ms, well after {story.recovered():.1f} s"
    report.fault(17, name, len(story.calls), "0 5xx of known keys", f"{failed}", number)


async def lived_through(url: str, upstream: Upstream, begin: Callable[[], Any], end: Callable[[], Any]) -> Story:
    """Two gateways under load while this happens to their Redis."""
    serving(upstream, "m")
    with fleet({"routes": {"m": route(upstream, "m")}}, url, gateways=2, workers=1) as two:
        story = Story(two)
        await story.run(await keys(two), begin, end)
        check(story, degrades=False)
        return story


def failing_over(guarded: Guarded, how: Callable[[RedisServer], None]) -> tuple[Callable[[], None], list[float]]:
    took: list[float] = []
    return lambda: took.append(guarded.fail_over(how)), took


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_the_master_dies(upstream: Upstream, report: Report, flavour: str) -> None:
    with redis_sentinel(binary=FLAVOURS[flavour]) as guarded:
        begin, took = failing_over(guarded, RedisServer.stop)
        story = await lived_through(guarded.url, upstream, begin, lambda: None)
    tell(report, f"Sentinel, {flavour}: master killed", story, took[0])


async def test_the_master_freezes_and_wakes_up_as_a_replica(upstream: Upstream, report: Report) -> None:
    with redis_sentinel() as guarded:
        old = guarded.master
        begin, took = failing_over(guarded, RedisServer.freeze)
        story = await lived_through(guarded.url, upstream, begin, old.thaw)
    tell(report, "Sentinel: master frozen, thawed", story, took[0])


async def test_the_master_steps_down(upstream: Upstream, report: Report) -> None:
    """It goes on answering, but refuses to write."""
    with redis_sentinel() as guarded:
        begin, took = failing_over(guarded, lambda _: guarded.step_down())
        story = await lived_through(guarded.url, upstream, begin, lambda: None)
    tell(report, "Sentinel: master steps down", story, took[0])


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_the_slot_moves_to_another_node(upstream: Upstream, report: Report, flavour: str) -> None:
    with redis_cluster(binary=FLAVOURS[flavour]) as cluster:
        story = await lived_through(cluster.url, upstream, lambda: cluster.move(SLOT), lambda: cluster.move(SLOT))
    tell(report, f"Cluster, {flavour}: slot moves twice", story, story.ended - story.began)


async def test_the_slots_node_is_replaced(upstream: Upstream, report: Report) -> None:
    with redis_cluster(replica_of=SLOT) as cluster:
        took: list[float] = []
        story = await lived_through(cluster.url, upstream, lambda: took.append(replaced(cluster)), lambda: None)
    tell(report, "Cluster: node replaced by its replica", story, took[0])


def replaced(cluster: Cluster) -> float:
    """Kill the node that has our slot and wait for its replica to take over; how many seconds that took."""
    began = time.monotonic()
    cluster.owner(SLOT).server.stop()
    replica = cluster.replica
    assert replica is not None
    until(lambda: replica.server.ask("ROLE")[0] == "master", "the replica has taken over", 20)
    return time.monotonic() - began
