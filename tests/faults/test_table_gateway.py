"""Faults 19, 23, 31 to 33: Redis without memory, clocks that jump, calls to elsewhere, keys that are none."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from faults.fleet import fleet, route, serving
from faults.kit import HASTY, asked, code, statuses
from faults.outage import Story, keys
from faults.report import Report
from faults.volley import Exchange, percentile, post
from harness.fake_backend import Fake, fake
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer, redis_server
from harness.upstream import Upstream
from integration.client import Wire, elsewhere, request

from gateway.auth import token
from gateway.core.types import Limit

PROXIED = {"TRUNKLINE_TRUSTED_PROXIES": "127.0.0.1/32"}


def one_route(*targets: Fake, **route: Any) -> dict[str, Any]:
    return {"routes": {"m": {"targets": [each.spec() for each in targets], "timeouts": HASTY, **route}}}


async def issue(gateway: GatewayProcess, **options: Any) -> Any:
    return await asyncio.to_thread(lambda: gateway.issue(**options))


async def test_19_redis_has_no_memory(upstream: Upstream, report: Report) -> None:
    """It answers, but to everything that writes with an error."""
    serving(upstream, "m")
    with redis_server() as redis, fleet({"routes": {"m": route(upstream, "m")}}, redis.url, gateways=1) as one:
        story = Story(one)
        await story.run(
            await keys(one),
            lambda: redis.ask("CONFIG", "SET", "maxmemory", "1"),
            lambda: redis.ask("CONFIG", "SET", "maxmemory", "0"),
        )
    known, closed = story.of("share", "narrow", "open", "free"), story.during("closed", "budget")
    failed = [call for call in known if call.status >= 500]
    report.fault(
        19, "noeviction", len(story.calls), "0 5xx of known keys, closed limits 503",
        f"{len(failed)}, {statuses(closed)}", f"well after {story.recovered():.1f} s",
    )  # fmt: skip
    assert not failed and {call.status for call in closed} == {503}
    assert not any(call.degraded for call in story.last)


SHIFTED = """
import os, time
_time, _file = time.time, os.environ["FAKE_SHIFT"]
def shifted():
    with open(_file) as file:
        return _time() + float(file.read() or 0)
time.time = shifted
"""


async def test_23_the_gateways_clock_jumps(tmp_path: Path, redis: RedisServer, report: Report) -> None:
    """An hour on, and two back, while calls come in and a stream is under way."""
    (tmp_path / "sitecustomize.py").write_text(SHIFTED)
    shift = tmp_path / "shift"
    shift.write_text("0")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with fake("vllm", "one", interval=0.1) as slow, fake("vllm", "two") as fast:
        table = {
            "routes": {name: {"targets": [each.spec()], "timeouts": HASTY} for name, each in (("s", slow), ("m", fast))}
        }
        env = {"FAKE_SHIFT": str(shift), "PYTHONPATH": path}
        with gateway_process(json.dumps(table), redis_url=redis.url, env=env) as gateway:
            issued = await issue(gateway, limit=Limit(rpm=6000, concurrency=50))
            streams = asyncio.create_task(asked(gateway.port, issued.secret, "s", 10, 10, stream=True))
            calls: list[Exchange] = []
            for seconds in (0, 3600, -3600, 0):
                shift.write_text(str(seconds))
                calls += await asked(gateway.port, issued.secret, "m", 50, 4)
            long = await streams
            locked = await _after_redis_clock_went_back(gateway, redis)
    lost = [call for call in (*calls, *long) if call.status != 200 or code(call)]
    report.fault(
        23, "gateway +1 h, -1 h", len(calls) + len(long), "0 lost, 0 cut", f"{len(lost)}", "10 streams across it"
    )
    report.fault(23, "Redis 1 h back", 1, "no key locked > 60 s", f"retry-after {locked} s")
    assert not lost and locked <= 60


async def _after_redis_clock_went_back(gateway: GatewayProcess, redis: RedisServer) -> int:
    """A bucket that was filled an hour in the future, as if the clock had been right then; how long its key waits."""
    issued = await issue(gateway, limit=Limit(rpm=60))
    await asked(gateway.port, issued.secret, "m", 1)
    name = f"{{tl}}:rate:key:{issued.record.id}:rpm"
    redis.ask("SET", name, int((time.time() + 3600) * 1e6))
    (call,) = await asked(gateway.port, issued.secret, "m", 1)
    return 0 if call.status == 200 else int(call.headers["retry-after"])


def attacks(canary: Fake, secret: str) -> dict[str, bytes]:
    """Requests that try to have the gateway speak to somebody who is in no table."""
    there, good = canary.url.removeprefix("http://"), {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    image = [{"type": "image_url", "image_url": {"url": f"http://{there}/image.png"}}]
    plain = request(good, secret)
    bodies = {
        "image": {**good, "messages": [{"role": "user", "content": image}]},
        "base_url in the body": {**good, "base_url": f"http://{there}", "api_base": f"http://{there}", "url": there},
        "model is a URL": {**good, "model": f"http://{there}/v1"},
    }
    for status in ("307", "302"):
        bodies[f"redirect {status}"] = {**good, "x_fault": f"redirect=http://{there}/x"}
        bodies[f"redirect {status}, streamed"] = {**good, "stream": True, "x_fault": f"redirect=http://{there}/x"}
    lines = ("x-forwarded-host", "x-original-url", "x-rewrite-url", "forwarded", "x-host", "destination")
    return {
        "absolute form": plain.replace(b"POST /", f"POST http://{there}/".encode(), 1),
        "two slashes": plain.replace(b"POST /", f"POST //{there}/".encode(), 1),
        "userinfo": plain.replace(b"POST /", f"POST http://x@{there}/".encode(), 1),
        "dots": plain.replace(b"POST /v1/", f"POST /v1/../../{there}/v1/".encode(), 1),
        "host": plain.replace(b"host: x", f"host: {there}".encode(), 1),
        "connect": f"CONNECT {there} HTTP/1.1\r\nhost: {there}\r\n\r\n".encode(),
        **{name: request(good, secret, more=f"{name}: http://{there}/\r\n".encode()) for name in lines},
        **{name: request(body, secret) for name, body in bodies.items()},
    }


async def test_31_nobody_off_the_list_is_spoken_to(report: Report) -> None:
    # An address of its own: on 127.0.0.1 somebody may still look for a server whose port the canary has got.
    with fake("vllm", "canary", address=("127.31.31.31", 0)) as canary, fake("vllm", "real") as real:
        with gateway_process(json.dumps(one_route(real))) as gateway:
            tries = attacks(canary, (await issue(gateway)).secret)
            for name, raw in tries.items():
                opened = Wire(gateway.port)
                await asyncio.to_thread(opened.send, raw)
                seen = await asyncio.to_thread(opened.all_that_comes, 1.0)
                opened.leave()
                assert seen, name
        assert canary.backend.accepted == 0
        report.fault(31, "", len(tries), "0 connections off the list", f"{canary.backend.accepted}", "18 tricks")


def auc(one: Sequence[float], other: Sequence[float]) -> float:
    """How well the times tell which is which: 0.5 is not at all."""
    wins = sum((a > b) + 0.5 * (a == b) for a in one for b in other)
    return wins / (len(one) * len(other))


async def test_32_keys_cannot_be_enumerated(redis: RedisServer, report: Report) -> None:
    with (
        fake("vllm", "one") as target,
        gateway_process(json.dumps(one_route(target)), redis_url=redis.url, env=PROXIED) as gateway,
    ):
        good, gone, late = [await issue(gateway), await issue(gateway), await issue(gateway, lifetime=1.0)]
        await asyncio.to_thread(gateway.keys, "revoke", gone.record.id)
        presented = {
            "unknown": token("A" * 12, "b" * 43),
            "wrong secret": token(good.record.id, "c" * 43),
            "revoked": gone.secret,
            "expired": late.secret,
        }
        await asyncio.sleep(1.1)
        taken, shapes = await asyncio.to_thread(_timed, gateway, presented, 100)
        before = _commands(redis)
        await asyncio.to_thread(_timed, gateway, {"unknown": presented["unknown"]}, 100)
        commands = (_commands(redis) - before) / 100
        source, last, tries = elsewhere(), 0, 0
        while last != 429 and tries < 60:
            last, tries = await asyncio.to_thread(_once, gateway, presented["unknown"], source), tries + 1
    assert len(shapes) == 1, shapes
    areas = {name: auc(taken[name], taken["unknown"]) for name in presented if name != "unknown"}
    shown = ", ".join(f"{name} {area:.2f}" for name, area in areas.items())
    shown += f"; unknown takes {1000 * percentile(taken['unknown'], 0.5):.1f} ms, wrong secret "
    shown += f"{1000 * percentile(taken['wrong secret'], 0.5):.1f} ms"
    report.fault(32, "status, body, size", 400, "all the same", f"{len(shapes)} shape", f"AUC of times: {shown}")
    report.fault(32, "one source", tries, "throttled", f"429 after {tries}", f"{commands:.1f} Redis commands a key")
    assert last == 429 and commands < 4


def _timed(
    gateway: GatewayProcess, keys: dict[str, str], count: int
) -> tuple[dict[str, list[float]], set[tuple[int, int]]]:
    """Seconds of each call, by turns; and how the answers look."""
    taken: dict[str, list[float]] = {name: [] for name in keys}
    shapes = set()
    opened = Wire(gateway.port)
    for _ in range(count):
        for name, secret in keys.items():
            ((header, address),) = elsewhere().items()
            raw = request({"model": "m", "messages": []}, secret, more=f"{header}: {address}\r\n".encode())
            began = time.perf_counter()
            opened.send(raw)
            reply = opened.answer()
            taken[name].append(time.perf_counter() - began)
            shapes.add((reply.status, len(reply.body)))
    opened.leave()
    return taken, shapes


def _once(gateway: GatewayProcess, secret: str, source: dict[str, str]) -> int:
    opened = Wire(gateway.port)
    ((header, address),) = source.items()
    opened.send(request({"model": "m", "messages": []}, secret, more=f"{header}: {address}\r\n".encode()))
    status = opened.answer().status
    opened.leave()
    return status


def _commands(redis: RedisServer) -> int:
    return sum(each["calls"] for each in redis.ask("INFO", "commandstats").values())


async def test_33_a_flood_of_garbage_keys(redis: RedisServer, report: Report) -> None:
    garbage = ("tl_" + "A" * 12 + "_" + "b" * 49, "sk-" + "x" * 40)
    with (
        fake("vllm", "one") as target,
        gateway_process(json.dumps(one_route(target)), redis_url=redis.url, workers=2) as gateway,
    ):
        secret = (await issue(gateway)).secret
        calm = await asked(gateway.port, secret, "m", 200, 2)
        flooding, refused = True, 0

        async def flood(which: int) -> None:
            nonlocal refused
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            raw = post(b'{"model":"m","messages":[]}', garbage[which % 2])
            while flooding:
                writer.write(raw)
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith((b"HTTP/1.1 401", b"HTTP/1.1 429"))
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
                await reader.readexactly(int(length.split(b":")[1]))
                refused += 1
            writer.transport.abort()

        before, began = _commands(redis), time.monotonic()
        floods = [asyncio.create_task(flood(number)) for number in range(8)]
        busy = await asked(gateway.port, secret, "m", 200, 2)
        flooding = False
        await asyncio.gather(*floods)
        seconds, commands = time.monotonic() - began, _commands(redis) - before
    p99 = [percentile([call.seconds for call in calls], 0.99) for calls in (calm, busy)]
    report.fault(
        33, f"{refused / seconds:,.0f}/s", refused, "valid calls answered", f"{statuses(busy)}",
        f"their p99 {1000 * p99[0]:.0f} -> {1000 * p99[1]:.0f} ms; {commands / refused:.3f} Redis commands a key",
    )  # fmt: skip
    assert statuses(busy) == {200: 200} and refused > 200
    assert commands / refused < 0.5, "valid calls and what gateways exchange are all there is"
