"""The fault kit as operators use it: the real commands, and a real gateway in front of them."""

from __future__ import annotations

import http.client
import json
import signal
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness.fake_backend import FakeProcess, fake_process
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer, free_port
from integration.client import Reply, ask, chat, eventually

PORTS = {"vllm": free_port(), "tgi": free_port()}


def up(kit: FakeProcess) -> dict[str, Any]:
    """What a command told when it started."""

    def told() -> dict[str, Any] | None:
        assert kit.process.poll() is None, kit.errors()
        return next(iter(kit.told()), None)

    return eventually(told, "it listens")


@pytest.fixture(scope="module")
def kit() -> Iterator[dict[str, FakeProcess]]:
    """A fake backend of each of two dialects."""
    with ExitStack() as stack:
        started = {
            dialect: stack.enter_context(
                fake_process("fake-backend", "--dialect", dialect, "--port", str(port), "--name", dialect, "--json")
            )
            for dialect, port in PORTS.items()
        }
        for each in started.values():
            up(each)
        yield started


@pytest.fixture(scope="module")
def gateway(kit: dict[str, FakeProcess]) -> Iterator[GatewayProcess]:
    routes: dict[str, Any] = {}
    for name, port in PORTS.items():
        target = {"name": name, "backend": name, "url": f"http://127.0.0.1:{port}"}
        routes[name] = {"targets": [target]}
        hasty = {"first_output": "500ms", "whole": "500ms"}
        routes[f"hasty-{name}"] = {"targets": [{**target, "name": f"hasty-{name}"}], "timeouts": hasty}
    with gateway_process(json.dumps({"routes": routes})) as started:
        yield started


@pytest.fixture(scope="module")
def key(gateway: GatewayProcess) -> str:
    return gateway.issue().secret


def spoken(reply: Reply) -> str:
    """The text of a stream."""
    events = [json.loads(data) for data in reply.data if data.startswith(b"{")]
    return "".join(choice["delta"].get("content", "") for event in events for choice in event.get("choices", ()))


@pytest.mark.parametrize("dialect", PORTS)
def test_a_gateway_serves_from_it(gateway: GatewayProcess, key: str, dialect: str) -> None:
    reply = ask(gateway, chat(dialect, stream=True), key)
    assert reply.status == 200 and reply.data[-1] == b"[DONE]"
    assert spoken(reply) == " ".join(f"w{number}" for number in range(1, 17))


@pytest.mark.parametrize("dialect", PORTS)
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("hang", 504, "upstream_timeout"),
        ("reset=0", 502, "upstream_disconnected"),
        ("500", 502, "upstream_failed"),
        ("error200", 502, "upstream_failed"),
        ("html", 502, "upstream_bad_reply"),
    ],
)
def test_a_body_orders_a_fault_through_the_gateway(
    gateway: GatewayProcess, key: str, kit: dict[str, FakeProcess], dialect: str, fault: str, status: int, code: str
) -> None:
    model = f"hasty-{dialect}" if fault == "hang" else dialect
    reply = ask(gateway, chat(model, stream=True, x_fault=fault), key)
    assert (reply.status, reply.error["code"]) == (status, code)
    name = fault.partition("=")[0]
    eventually(lambda: [told for told in kit[dialect].told()[1:] if told["fault"].startswith(name)], "the call is told")


def test_a_cut_stream_is_told_at_both_ends(gateway: GatewayProcess, key: str, kit: dict[str, FakeProcess]) -> None:
    reply = ask(gateway, chat("vllm", stream=True, x_fault={"vllm": "cut=4", "tgi": "hang"}), key)
    assert spoken(reply) == "w1 w2 w3" and b"[DONE]" not in reply.body
    told = eventually(lambda: [each for each in kit["vllm"].told()[1:] if each["fault"] == "cut=4"], "it is told")
    assert (told[0]["outcome"], told[0]["events"]) == ("cut", 4)


def test_a_header_orders_a_fault_directly(kit: dict[str, FakeProcess]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", PORTS["vllm"], timeout=40)
    connection.request("POST", "/v1/chat/completions", b'{"messages": []}', {"x-fault": "status=429,retry_after=7"})
    response = connection.getresponse()
    assert (response.status, response.getheader("retry-after")) == (429, "7")
    connection.close()


def test_a_script_and_death(tmp_path: Path) -> None:
    script = tmp_path / "script.yaml"
    script.write_text("- {calls: 2, fault: status=503}\n- {calls: 2-, fault: die}\n")
    with fake_process("fake-backend", "--script", str(script), "--tokens", "2") as one:

        def url() -> str | None:
            assert one.process.poll() is None, one.errors()
            words = one.lines()[0].split() if one.lines() else []
            return next((word for word in words if word.startswith("http")), None)

        port = int(eventually(url, "it listens", 20).rpartition(":")[2])
        assert "curl http://127.0.0.1" in one.lines()[1]
        assert [_post(port) for _ in range(2)] == [200, 503]
        with pytest.raises(ConnectionError):
            _post(port)
        assert one.process.wait(40) == 1


def _post(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=40)
    try:
        connection.request("POST", "/v1/chat/completions", b'{"messages": []}')
        return connection.getresponse().status
    finally:
        connection.close()


def test_interrupted_it_ends_cleanly() -> None:
    with fake_process("fake-backend", "--json") as one:
        up(one)
        one.process.send_signal(signal.SIGINT)
        assert one.process.wait(40) == 0 and not one.errors()


def test_a_taken_port_is_told() -> None:
    with (
        fake_process("fake-backend", "--json") as one,
        fake_process("fake-backend", "--port", str(up(one)["port"])) as two,
    ):
        assert two.process.wait(40) == 1
        assert "cannot listen on 127.0.0.1" in two.errors()


def test_a_link_to_redis_takes_orders_while_it_runs(redis: RedisServer) -> None:
    with fake_process("fake-link", "--to", f"127.0.0.1:{redis.port}", "--delay", "0") as one:

        def listening() -> int | None:
            assert one.process.poll() is None, one.errors()
            first = one.lines()[0] if one.lines() else ""
            return int(first.partition(" to ")[0].rpartition(":")[2]) if "A link from" in first else None

        port = eventually(listening, "it listens")
        assert _ping(port) == b"+PONG\r\n"
        for line, wrong in (("black-hole", True), ("restore", False), ("cut-after 3", True), ("cut-after 0", False)):
            lines = len(one.lines())
            one.say(line)
            eventually(lambda n=lines: len(one.lines()) > n, f"{line} is confirmed")  # type: ignore[misc]
            assert (_ping(port) != b"+PONG\r\n") is wrong, line
        one.say("faster")
        eventually(lambda: "expected one of delay S" in one.errors(), "what would be right is told")
        one.process.send_signal(signal.SIGINT)
        assert one.process.wait(40) == 0


def _ping(port: int) -> bytes:
    import socket

    with socket.create_connection(("127.0.0.1", port), timeout=0.3) as opened:
        opened.sendall(b"PING\r\n")
        try:
            return opened.recv(100)
        except OSError:
            return b""


def test_a_link_to_a_fake_backend(kit: dict[str, FakeProcess]) -> None:
    with fake_process("fake-link", "--to", f"127.0.0.1:{PORTS['vllm']}", "--bandwidth", "1MiB") as one:
        first = eventually(lambda: one.lines()[:1], "it listens", 20)[0]
        url = f"http://127.0.0.1:{first.partition(' to ')[0].rpartition(':')[2]}/version"
        with urllib.request.urlopen(url, timeout=40) as answer:
            assert json.load(answer)["version"]
