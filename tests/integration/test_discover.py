"""Servers behind a name come and go while a gateway serves: real servers, each on an address of its own."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness.fake_backend import fake
from harness.gateway_process import TRUNKLINE, gateway_process
from harness.in_process import InProcess
from harness.redis_server import free_port
from harness.upstream import Upstream, answer, event
from integration.client import ask, chat, eventually, request

from gateway.app import discovery, fleet
from gateway.upstream.dial import Address, Dialer

NAME = "engines.test"
A, B, C = "127.0.0.2", "127.0.0.3", "127.0.0.4"
PAUSE = 0.02


class Servers:
    """Model servers whose answers are their addresses, and the name that leads to them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.named: list[str] | Exception = []
        self.go_on = asyncio.Event()
        """Streams wait for it in their middle."""
        self._running: list[asyncio.Server] = []

    async def start(self, *hosts: str) -> None:
        for host in hosts:
            self._running.append(await asyncio.start_server(self._serve, host, self.port))

    async def resolve(self, host: str, port: int) -> list[Address]:
        assert (host, port) == (NAME, self.port)
        if isinstance(self.named, Exception):
            raise self.named
        if not self.named:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, (at, port)) for at in self.named]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        here = writer.get_extra_info("sockname")[0]
        with suppress(OSError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    (int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0
                )
                body = json.loads(await reader.readexactly(length) or b"{}")
                if body.get("stream"):
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
                    writer.write(event(here))
                    await self.go_on.wait()
                    writer.write(event(finish="stop") + b"data: [DONE]\n\n")
                    break
                text = json.dumps(answer(here)).encode()
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(text)
                )
                writer.write(text)
        writer.close()

    async def stop(self) -> None:
        for server in self._running:
            server.close()


@pytest.fixture
def servers() -> Servers:
    return Servers(free_port())


@pytest.fixture
def gateway(
    servers: Servers, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[InProcess]:
    monkeypatch.setattr(discovery, "PAUSE_SECONDS", PAUSE)
    target = {"name": "engine", "backend": "openai", "discover": {"dns": f"{NAME}:{servers.port}"}}
    table = json.dumps({"routes": {"m": {"policy": "round-robin", "targets": [target]}}})
    started = InProcess(table, tmp_path, upstream)
    started._gateway.forwarder._pool._dialer = Dialer()  # real sockets
    started._gateway.reloader.discovery.resolve = servers.resolve
    servers.named = [A, B]
    try:
        started.run(servers.start(A, B, C))
        started.open()
        yield started
    finally:
        servers.go_on.set()
        started.run(servers.stop())
        started.close()


def targets(gateway: InProcess) -> list[str]:
    return list(gateway._gateway.plane.parts.routes.targets)


def until(gateway: InProcess, *wanted: str) -> None:
    """Let the gateway go on until these are its targets."""

    async def wait() -> None:
        async with asyncio.timeout(60):
            while targets(gateway) != list(wanted):
                await asyncio.sleep(PAUSE)

    gateway.run(wait())


def answering(gateway: InProcess, secret: str, times: int = 6) -> set[str]:
    """Which servers answer calls."""
    found = set()
    for _ in range(times):
        with gateway.client(request(chat("m"), secret)) as client:
            status, _, body = client.answer()
        assert status == 200, body
        found.add(json.loads(body)["choices"][0]["message"]["content"])
    return found


def test_servers_come_and_go(gateway: InProcess, servers: Servers) -> None:
    assert targets(gateway) == [f"engine@{A}", f"engine@{B}"], "known before the first call"
    secret = gateway.issue().secret
    assert answering(gateway, secret) == {A, B}
    servers.named = [C, B, A]
    until(gateway, f"engine@{A}", f"engine@{B}", f"engine@{C}")
    assert answering(gateway, secret) == {A, B, C}
    servers.named = [C]
    until(gateway, f"engine@{C}")
    assert answering(gateway, secret) == {C}
    assert "2 addresses: +127.0.0.2, +127.0.0.3" in gateway.stderr()
    assert "1 address: -127.0.0.2, -127.0.0.3" in gateway.stderr()


def test_what_was_counted_of_servers_that_have_gone_does_not_pile_up(
    gateway: InProcess, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = gateway.issue().secret
    assert answering(gateway, secret) == {A, B}
    servers.named = [B]
    until(gateway, f"engine@{B}")
    shown = gateway.metrics()
    assert f'trunkline_upstream_attempts_total{{outcome="ok",route="m",target="engine@{A}"}}' in shown, (
        "a scrape may see it"
    )
    monkeypatch.setattr(fleet, "DEPARTED_SECONDS", 0.0)
    gateway._gateway.fleet._keep()
    shown = gateway.metrics()
    assert f'target="engine@{A}"' not in shown
    assert f'target="engine@{B}"' in shown
    servers.named = [A]
    until(gateway, f"engine@{A}")
    assert answering(gateway, secret, 3) == {A}
    assert re.search(rf'trunkline_upstream_attempts_total{{.*target="engine@{A}"}} 3\.0', gateway.metrics())


def test_a_call_at_a_server_that_has_left_the_name_goes_on_to_its_end(gateway: InProcess, servers: Servers) -> None:
    secret = gateway.issue().secret
    servers.named = [A]
    until(gateway, f"engine@{A}")
    with gateway.client(request(chat("m", stream=True), secret)) as client:
        assert A.encode() in client.until(A.encode())
        servers.named = [B]
        until(gateway, f"engine@{B}")
        assert answering(gateway, secret) == {B}
        servers.go_on.set()
        assert client.rest().endswith(b"data: [DONE]\n\n")


def test_what_stays_keeps_what_is_known_of_it(gateway: InProcess, servers: Servers) -> None:
    before = dict(gateway._gateway.plane.parts.routes.targets)
    servers.named = [A, B, C]
    until(gateway, f"engine@{A}", f"engine@{B}", f"engine@{C}")
    after = gateway._gateway.plane.parts.routes.targets
    for name, target in before.items():
        assert after[name].load is target.load
        assert after[name].breaker is target.breaker


def test_a_resolver_that_fails_takes_nothing_away(gateway: InProcess, servers: Servers) -> None:
    secret = gateway.issue().secret
    servers.named = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    async def told() -> None:
        async with asyncio.timeout(60):
            while "cannot be looked up" not in gateway.stderr():
                await asyncio.sleep(PAUSE)

    gateway.run(told())
    assert targets(gateway) == [f"engine@{A}", f"engine@{B}"]
    assert answering(gateway, secret) == {A, B}


def test_a_name_without_addresses_is_a_target_that_is_down_until_one_comes(
    gateway: InProcess, servers: Servers
) -> None:
    secret = gateway.issue().secret
    servers.named = []
    until(gateway, "engine")
    with gateway.client(request(chat("m"), secret)) as client:
        status, _, body = client.answer()
    assert status in (502, 503), body
    servers.named = [B]
    until(gateway, f"engine@{B}")
    assert answering(gateway, secret, 2) == {B}


def test_a_held_call_waits_for_a_server_to_come(gateway: InProcess, servers: Servers, tmp_path: Path) -> None:
    secret = gateway.issue().secret
    servers.named = []
    target = {"name": "cold", "backend": "openai", "discover": {"dns": f"{NAME}:{servers.port}"}}
    table = json.dumps({"routes": {"m": {"targets": [target], "hold": "60s"}}})
    (tmp_path / "fresh.yaml").write_text(table)
    (tmp_path / "fresh.yaml").replace(tmp_path / "routing.yaml")
    gateway._gateway.watcher.reload()
    until(gateway, "cold")
    with gateway.client(request(chat("m"), secret)) as client:

        async def held() -> None:
            async with asyncio.timeout(60):
                while not any(route.held.calls for route in gateway._gateway.plane.parts.routes):
                    await asyncio.sleep(PAUSE)

        gateway.run(held())
        servers.named = [B]
        status, _, body = client.answer()
    assert status == 200 and B in body.decode()


def test_another_table_may_discover_others(gateway: InProcess, servers: Servers, tmp_path: Path) -> None:
    secret = gateway.issue().secret
    target = {"name": "replica", "backend": "openai", "discover": {"dns": f"{NAME}:{servers.port}"}}
    fresh = tmp_path / "fresh.yaml"
    fresh.write_text(json.dumps({"routes": {"m": {"policy": "round-robin", "targets": [target]}}}))
    fresh.replace(tmp_path / "routing.yaml")
    gateway._gateway.watcher.reload()
    until(gateway, f"replica@{A}", f"replica@{B}")
    assert answering(gateway, secret) == {A, B}


def test_operators_know_servers_by_their_addresses() -> None:
    with fake("vllm", "engine") as server:
        target = {"name": "engine", "backend": "vllm", "discover": {"dns": f"localhost:{server.port}"}}
        routing = json.dumps({"routes": {"m": {"targets": [target]}}})
        with gateway_process(routing) as gateway:
            assert ask(gateway, chat("m"), gateway.issue().secret).status == 200
            member = "engine@127.0.0.1"

            def listed() -> dict[str, Any]:
                shown = gateway.said("targets", "list", "--routing", str(gateway.routing))
                return {each["name"]: each for each in shown}

            def told() -> dict[str, Any] | None:
                found = listed()
                return found if member in found else None

            shown = eventually(told, "the gateway reports")
            assert list(shown) == [member], "the name itself is none"
            assert shown[member]["listed"] and shown[member]["url"] == f"http://127.0.0.1:{server.port}"
            gateway.said("targets", "drain", member, "--routing", str(gateway.routing))
            eventually(lambda: listed()[member]["state"] == "drained" or None, "the order is obeyed")
            answer = gateway.said("explain", "--model", "m", "--routing", str(gateway.routing))
            assert [each["target"] for each in answer["candidates"]] == [member]
            with pytest.raises(subprocess.CalledProcessError):
                gateway.said("targets", "drain", "other@127.0.0.1", "--routing", str(gateway.routing))


def test_check_probe_asks_each_server(tmp_path: Path) -> None:
    with fake("vllm", "engine") as server:
        found = {"name": "engine", "backend": "vllm", "discover": {"dns": f"localhost:{server.port}"}}
        none = {"name": "none", "backend": "vllm", "discover": {"dns": "no-such-name.invalid:80"}}
        (tmp_path / "routing.yaml").write_text(json.dumps({"routes": {"m": {"targets": [found, none]}}}))
        command = [*TRUNKLINE, "check", "--probe", "--json", str(tmp_path / "routing.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    said = {each["target"]: each["verdict"] for each in json.loads(done.stdout)["targets"]}
    assert said == {"engine@127.0.0.1": "warning", "none": "wrong"}
