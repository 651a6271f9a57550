"""While calls are held their targets are looked at more often, and the first that sleeps is woken: once, and again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from unit.gateway.app.servers import Servers
from unit.gateway.app.test_fleet import Bench, bench
from unit.gateway.routing.building import call, one, targets, virtual

from backends.capabilities import Capabilities


def asked(servers: Servers, host: str, path: str) -> int:
    return servers.asked.count((host, path))


def hold(of: Bench) -> asyncio.Task[str]:
    """A call, and where it goes."""

    async def ask() -> str:
        attempts, attempt = await of.of.first(call())
        await attempts.aclose()
        return attempt.target.name

    # As the app does it.
    of.of.route.held._queue._changed = lambda calls, size: of.fleet.waker.held(calls)
    return asyncio.create_task(ask())


@virtual
async def test_targets_that_held_calls_wait_for_are_probed_often(tmp_path: Path) -> None:
    async with bench(one("a", hold="60s"), tmp_path, "b") as of:
        await asyncio.sleep(20)
        waiting, before = hold(of), asked(of.servers, "a", "/health")
        await asyncio.sleep(10)
        assert 15 <= asked(of.servers, "a", "/health") - before <= 25
        of.servers.answers["a"] = {"/health": 200}
        began = of.clock.monotonic()
        assert await waiting == "a" and of.clock.monotonic() - began < 1
        before = asked(of.servers, "a", "/health")
        await asyncio.sleep(10)
        assert asked(of.servers, "a", "/health") - before <= 3, "nobody waits any more"
        assert not of.fleet.waker.wants("a")


@virtual
async def test_a_server_without_a_health_route_is_reached_for_while_calls_wait_for_it(tmp_path: Path) -> None:
    async with bench(one("a", hold="60s"), tmp_path, "a") as of:
        of.of["a"].capabilities = Capabilities.of(object())  # type: ignore[arg-type]
        del of.servers.answers["a"]
        await asyncio.sleep(6)
        assert of.of["a"].up is True, "nobody asks it anything"
        of.of["a"].miss()
        waiting = hold(of)
        await asyncio.sleep(3)
        assert (of.of["a"].up, of.of["a"].why) == (False, "unreachable")
        of.servers.answers["a"] = {}
        assert await waiting == "a" and of.of["a"].up is True
        before = len(of.servers.asked)
        await asyncio.sleep(20)
        assert len(of.servers.asked) == before, "nobody asks any more"


@virtual
async def test_one_that_a_call_has_missed_is_probed_soon_though_nobody_waits(tmp_path: Path) -> None:
    async with bench(one("a", "b"), tmp_path, "a", "b") as of:
        await asyncio.sleep(1)
        of.of["a"].miss()
        since = of.of["a"].since
        await asyncio.sleep(1.5)
        assert not of.of["a"].missed and of.of["a"].since == since, "it was there all the time"


@virtual
async def test_the_first_of_the_best_tier_that_sleeps_is_woken_once(tmp_path: Path) -> None:
    text = one("a", "b", fallback=targets("c"), hold="60s")
    async with bench(text, tmp_path, "a", "b", "c") as of:
        for name in "abc":
            of.servers.sleeper(name)
        await asyncio.sleep(5)
        assert not any(path == "/wake_up" for _, path in of.servers.asked), "nobody waits"
        assert of.state("a").why == "asleep"
        waiting = [hold(of) for _ in range(20)]
        assert {await each for each in waiting} == {"a"}
        assert [host for host, path in of.servers.asked if path == "/wake_up"] == ["a"]
        await asyncio.sleep(5)
        assert not of.of["a"].asleep and of.of["b"].asleep


@virtual
async def test_one_that_cannot_be_woken_is_told_again_later_and_the_next_meanwhile(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench(one("a", "b", hold="60s"), tmp_path, "a", "b") as of:
        for name in "ab":
            of.servers.sleeper(name, wakes=False)
        del of.servers.answers["b"]["/wake_up"]
        await asyncio.sleep(5)
        waiting = hold(of)
        await asyncio.sleep(20)
        tries = [host for host, path in of.servers.asked if path == "/wake_up"]
        assert 3 <= tries.count("a") <= 5 and 3 <= tries.count("b") <= 5
        assert "target a could not be woken: status 500" in caplog.text
        assert "target b could not be woken: status 404" in caplog.text, "its development routes are off"
        of.servers.sleeper("b")
        assert await waiting == "b"


@virtual
async def test_one_that_is_drained_is_not_woken(tmp_path: Path) -> None:
    async with bench(one("a", "b", hold="60s"), tmp_path, "a", "b") as of:
        for name in "ab":
            of.servers.sleeper(name)
        await of.order("a", "drained", 1)
        await asyncio.sleep(12)
        assert await hold(of) == "b"
        assert [host for host, path in of.servers.asked if path == "/wake_up"] == ["b"]


@virtual
async def test_what_is_being_woken_when_the_gateway_ends_is_left(tmp_path: Path) -> None:
    async with bench(one("a", hold="60s"), tmp_path, "a") as of:
        of.servers.sleeper("a")
        never = asyncio.Event()

        async def hangs(*_: object) -> str:
            await never.wait()
            return ""

        of.fleet.waker._forwarder.wake = hangs  # type: ignore[method-assign,assignment]
        await asyncio.sleep(5)
        waiting = hold(of)
        await asyncio.sleep(30)
        assert len(of.fleet.waker._waking) == 1
        waiting.cancel()
        await asyncio.wait([waiting])
    assert not of.fleet.waker._waking
