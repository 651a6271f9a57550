"""10,000 clients that leave at random moments: nothing is left, targets know at once, every call is counted once."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from faults.fleet import Fleet, fleet
from faults.leftovers import descriptors, leftovers, megabytes
from faults.lingering import prepare
from faults.report import Report
from faults.volley import Exchange, percentile, post
from harness.redis_server import RedisServer, redis_server
from harness.upstream import Received, Upstream
from integration.client import samples, total

from gateway.core.types import Allowance, Budget, Limit

LEAVES, CLIENTS, WARM = 10_000, 64, 1_000
SOON = 0.1
"""Seconds; the median must keep this: two cores serve gateways, targets and clients, and all of them wait at times."""
SPARE_DESCRIPTORS = 16
"""Connections to Redis and logs come and go."""
LIMIT = Limit(concurrency=200, tpm=10**9, budget=Budget(month=Allowance(tokens=10**12)))
DIALECTS = ("openai", "vllm", "tgi")
ROUTES = (*DIALECTS, "full", "flaky")
"""The last two: one call at a time, the others wait; and a target that fails every other call, before one that works.
"""
ENDPOINTS = {"chat/completions": "messages", "completions": "prompt", "embeddings": "input"}


TAGS = itertools.count()


class Left(NamedTuple):
    """A client that left before its answer was whole, and what its body can be told by."""

    tag: str
    at: float
    unheard: bool
    """It reset its connection before it had heard anything: the gateway may never have read its request."""


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def two(upstream: Upstream, own_redis: RedisServer) -> Iterator[Fleet]:
    def spec(name: str, backend: str = "vllm", **fields: Any) -> dict[str, Any]:
        return {"name": f"leave-{name}", "backend": backend, "url": upstream.target(f"leave-{name}").url, **fields}

    routes: dict[str, Any] = {dialect: {"targets": [spec(dialect, dialect)]} for dialect in DIALECTS}
    routes["full"] = {"targets": [spec("full", max_inflight=1)], "queue": {"wait": "1s"}}
    routes["flaky"] = {"targets": [spec("flaky")], "fallback": [spec("spare")]}
    with fleet({"routes": routes}, own_redis.url, gateways=2) as started:
        yield started


@pytest.mark.timeout(900)
async def test_nothing_is_left_of_clients_that_left(
    two: Fleet, own_redis: RedisServer, upstream: Upstream, report: Report
) -> None:
    chance, secret = random.Random(5), (await two.issue(limit=LIMIT)).secret
    calls = prepare(upstream, (*DIALECTS, "full", "flaky", "spare"), chance)
    await run(two, secret, chance, WARM)
    assert not any((await leftovers(two, own_redis, upstream)).values())
    before, files, began = counted(two), descriptors(two), time.monotonic()
    left, made = await run(two, secret, chance, LEAVES // 2)
    memory = megabytes(two)
    later, more = await run(two, secret, chance, LEAVES // 2)
    left, made = left + later, made + more
    seconds = time.monotonic() - began
    remains = await leftovers(two, own_redis, upstream)
    assert not any(remains.values()), remains
    await few_descriptors(two, files + SPARE_DESCRIPTORS)
    counts = counted(two) - before
    assert counts["aborts"] == counts["gone"] == counts["timed"], counts
    unread = made - sum(counts[outcome] for outcome in OUTCOMES)
    assert 0 <= unread <= sum(each.unheard for each in left) / 50, (made, counts)
    said = "".join(gateway.stderr() for gateway in two.gateways)
    assert "a bug of ours" not in said and "Traceback" not in said, said[said.find("Traceback") - 500 :][:3000]
    took = told(left, calls)
    assert statistics.median(took) < SOON
    slope = (megabytes(two) - memory) / more * 1000
    report.fault(
        14,
        f"left: {', '.join(remains)}",
        LEAVES,
        "all 0",
        ", ".join(f"{count:.0f}" for count in remains.values()),
        f"{counts['gone']:,} aborts + {made - counts['gone'] - unread:,} answered or failed + {unread} never read "
        f"= {made:,} calls, {made / seconds:,.0f}/s, "
        f"{descriptors(two) - files:+d} descriptors, {slope:+.2f} MB per 1,000 in all workers",
    )
    report.fault(
        14,
        "until the target's connection is closed",
        len(took),
        "< 100 ms",
        f"p50 {percentile(took, 0.5) * 1e3:.1f} ms, p99 {percentile(took, 0.99) * 1e3:.1f} ms",
        f"of these in the gateway, from word of it to all given back: {within(two)}",
    )
    report.fault(14, "phases", counts["gone"], "all", f"{phases(two)}")


OUTCOMES = ("answered", "refused", "shed", "failed", "broke", "gone")


def counted(two: Fleet) -> Counter[str]:
    """What the gateways have counted so far."""
    counts = Counter[str]()
    for found in map(samples, two.gateways):
        for outcome in OUTCOMES:
            counts[outcome] += int(total(found, "requests_total", outcome=outcome))
        counts["aborts"] += int(total(found, "aborts_total"))
        counts["timed"] += int(total(found, "abort_seconds_count"))
    return counts


def phases(two: Fleet) -> dict[str, int]:
    """Aborts by phase."""
    found = Counter[str]()
    for (name, labels), value in [item for gateway in two.gateways for item in samples(gateway).items()]:
        if name == "trunkline_aborts_total":
            found[dict(labels)["phase"]] += int(value)
    assert len(found) == 6, found
    return dict(found)


def within(two: Fleet) -> str:
    """Which part of aborts the gateways themselves say was done in how much time."""
    metrics = [samples(gateway) for gateway in two.gateways]
    parts = {le: sum(total(found, "abort_seconds_bucket", le=le) for found in metrics) for le in ("0.001", "0.1")}
    every = sum(total(found, "abort_seconds_count") for found in metrics)
    return ", ".join(f"{part / every:.2%} within {float(le) * 1e3:g} ms" for le, part in parts.items())


async def few_descriptors(two: Fleet, most: int) -> None:
    """Wait until idle connections are gone, and assert that they go."""
    for _ in range(100):
        if descriptors(two) <= most:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{descriptors(two)} descriptors, expected at most {most}")


async def run(two: Fleet, secret: str, chance: random.Random, leaves: int) -> tuple[list[Left], int]:
    """Have so many clients leave before they had their answers; those, and how many calls that took."""
    left, made = list[Left](), 0

    async def client() -> None:
        nonlocal made
        while len(left) < leaves:
            made, tag = made + 1, f"tag-{next(TAGS)}"
            call = Exchange(random_call(chance, secret, tag))
            await until_it_leaves(call, chance.choice(two.ports), chance)
            reset = chance.random() < 0.3
            if not call.whole:
                left.append(Left(tag, time.monotonic(), unheard=reset and not call.seen))
            call.leave(reset=reset)

    before = sum(counted(two)[outcome] for outcome in OUTCOMES)
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    await settled(two, before + made)
    return left, made


async def settled(two: Fleet, calls: int) -> None:
    """Give calls that were just left the time to be counted; those that were never read are never counted."""
    seen = -1
    for _ in range(50):
        if (now := sum(counted(two)[outcome] for outcome in OUTCOMES)) in (calls, seen):
            return
        seen = now
        await asyncio.sleep(1)


def random_call(chance: random.Random, secret: str, tag: str) -> bytes:
    """A call of any route, endpoint and kind; its text is `tag`."""
    endpoint = chance.choice(("chat/completions", "chat/completions", "completions", "embeddings"))
    text: Any = [{"role": "user", "content": tag}] if endpoint == "chat/completions" else tag
    body: dict[str, Any] = {"model": chance.choice(ROUTES), ENDPOINTS[endpoint]: text}
    if endpoint != "embeddings":
        body |= {"stream": chance.random() < 0.6, "max_tokens": 50}
    return post(json.dumps(body).encode(), secret, endpoint)


async def until_it_leaves(call: Exchange, port: int, chance: random.Random) -> None:
    """Send a call, or a part of its body, and wait for a random moment or byte of its answer."""
    way = chance.choice(("body", "time", "time", "time", "byte", "byte"))
    if way == "body":
        at = call.raw.index(b"\r\n\r\n") + 4
        call.raw = call.raw[: chance.randrange(at, len(call.raw))]
    await call.join(port)
    call.send()
    if way == "byte":
        await bytes_seen(call, chance.randrange(1, 4000))
    else:
        await asyncio.wait([call.end], timeout=chance.uniform(0, 0.2))


async def bytes_seen(call: Exchange, size: int) -> None:
    """Until so many bytes of the answer have come, or all, or it takes long."""
    for _ in range(100):
        if len(call.seen) >= size or call.end.done():
            return
        await asyncio.sleep(0.005)


def told(left: list[Left], calls: dict[str, Received]) -> list[float]:
    """Seconds until the targets that were at work knew that their client had left."""
    found = [(calls[each.tag], each.at) for each in left if each.tag in calls]
    return [call.closed_at - at for call, at in found if call.closed_at is not None and call.closed_at >= at]
