"""Calls are held while no target is there: one that starts, starts anew, or sleeps; and are answered once one is up."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.supervised import alive
from harness.upstream import Gate, Received, Script, Target, Upstream, scripted_upstream, whole
from integration.client import Reply, ask, chat, eventually, record, samples, total, wire
from integration.client import request as posted
from integration.engine import sent, table, talk

AWAKE = 'vllm:num_requests_running 0.0\nvllm:engine_sleep_state{sleep_state="awake"} %d\n'


class Sleeper:
    """A vLLM that sleeps until it is told to wake; `wakes` answers that."""

    def __init__(self, target: Target) -> None:
        self.target, self.asleep = target, True
        self.woken: list[float] = []
        self.wakes: list[Script] = []
        self.served_asleep = self.looks = 0
        target.answers = self._answers  # type: ignore[method-assign]

    def known(self) -> bool | None:
        """The gateway knows that it sleeps: it has looked, and looks again."""
        return self.looks > 1 or None

    def _answers(self, received: Received) -> Script:
        if received.path == "/metrics":
            self.looks += 1
            return whole((AWAKE % (not self.asleep)).encode(), content_type="text/plain")
        if (received.method, received.path) == ("POST", "/wake_up"):
            self.woken.append(time.monotonic())
            if self.wakes:
                return self.wakes.pop(0)
            self.asleep = False
            return whole({})
        self.served_asleep += self.asleep and received.method == "POST"
        return Target.answers(self.target, received)


@pytest.fixture(scope="module")
def away() -> Iterator[Upstream]:
    """Servers that come and go."""
    with scripted_upstream() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(away: Upstream, upstream: Upstream) -> Iterator[GatewayProcess]:
    def late(name: str, backend: str = "vllm", **fields: Any) -> dict[str, Any]:
        return {"name": name, "backend": backend, "url": away.target("late").url, **fields}

    def there(name: str) -> dict[str, Any]:
        return {"name": name, "backend": "vllm", "url": upstream.target(name).url}

    routes = {
        "held": {"targets": [late("held-a"), late("held-b", model="b")], "hold": "10m"},
        "plain": {"targets": [late("plain", "openai")], "hold": "10m"},
        "brief": {"targets": [late("brief")], "hold": "1s"},
        "narrow": {"targets": [late("narrow")], "hold": "10m", "queue": {"calls": 2}},
        "fails": {"targets": [late("fails")]},
        "backed": {"targets": [late("backed")], "fallback": [there("spare")], "hold": "10m"},
        "chained": {"targets": [late("chained")], "fallback_route": "fails", "hold": "10m"},
        "sleepy": {"targets": [there("sleeper-a"), there("sleeper-b")], "hold": "10m"},
        "half": {"targets": [there("half-awake"), there("half-asleep")], "hold": "10m"},
        "stubborn": {"targets": [there("stubborn")], "hold": "10m"},
    }
    for name in ("sleeper-a", "sleeper-b", "half-asleep", "stubborn"):
        Sleeper(upstream.target(name))
    with gateway_process(table(routes)) as started:
        yield started


@pytest.fixture(scope="module")
def key(gateway: GatewayProcess) -> str:
    return gateway.issue().secret


@pytest.fixture
def vanished(away: Upstream) -> Iterator[Upstream]:
    """The servers are gone, until the test lets them listen."""
    away.vanish()
    yield away
    away.vanish()
    away.listen()


def held(gateway: GatewayProcess, route: str, calls: int) -> None:
    """Return when so many calls are held."""
    eventually(lambda: total(samples(gateway), "held_calls", route=route) == calls or None, f"{calls} held")


def idle(gateway: GatewayProcess) -> None:
    """Return when nothing is under way or waits."""

    def nothing() -> bool | None:
        found = samples(gateway)
        names = ("in_flight", "held_calls", "queue_calls", "target_running")
        return all(total(found, name) == 0 for name in names) or None

    eventually(nothing, "nothing is held any more")


def all_of(gateway: GatewayProcess, key: str, model: str, calls: int) -> list[Reply]:
    """The answers to so many calls at once, every other one a stream."""
    with ThreadPoolExecutor(calls) as clients:
        asked = [clients.submit(ask, gateway, talk(model, f"topic {n}", stream=n % 2 == 0), key) for n in range(calls)]
        return [each.result() for each in asked]


@pytest.mark.parametrize("model", ["held", "plain", "chained"])
def test_calls_are_answered_though_the_server_listens_only_later(
    gateway: GatewayProcess, key: str, vanished: Upstream, model: str
) -> None:
    begun, seen = time.monotonic(), threading.Event()

    def later() -> None:
        held(gateway, model, 20)
        seen.set()
        time.sleep(max(0.0, begun + 3 - time.monotonic()))
        vanished.listen()

    listener = threading.Thread(target=later)
    listener.start()
    replies = all_of(gateway, key, model, 20)
    listener.join()
    assert seen.is_set() and [reply.status for reply in replies] == [200] * 20, replies
    assert all(reply.data[-1] == b"[DONE]" for reply in replies[::2])
    waited = [float(reply.header("x-trunkline-held") or 0) for reply in replies]
    assert all(seconds > 1 for seconds in waited), "each says how long it was held"
    idle(gateway)
    assert total(samples(gateway), "hold_seconds_count", route=model, outcome="up") >= 20


def test_without_hold_they_fail_at_once(gateway: GatewayProcess, key: str, vanished: Upstream) -> None:
    for reply in all_of(gateway, key, "fails", 6):
        assert reply.status in (502, 503) and not reply.header("x-trunkline-held")
    assert total(samples(gateway), "held_calls", route="fails") == 0


def test_a_call_goes_to_a_fallback_rather_than_wait(gateway: GatewayProcess, key: str, vanished: Upstream) -> None:
    for _ in range(3):
        reply = ask(gateway, chat("backed"), key)
        assert (reply.status, reply.header("x-trunkline-target")) == (200, "spare")
        assert not reply.header("x-trunkline-held")


def test_a_hold_ends_with_words_that_name_the_route(gateway: GatewayProcess, key: str, vanished: Upstream) -> None:
    began = time.monotonic()
    reply = ask(gateway, chat("brief"), key)
    assert reply.status == 503 and time.monotonic() - began > 0.9
    assert reply.error["code"] == "no_target" and "'brief'" in reply.error["message"]
    assert int(reply.header("retry-after") or 0) >= 1
    assert record(gateway, reply.header("x-request-id"))["error_type"] == "gateway_no_target"
    idle(gateway)


def test_no_more_calls_are_held_than_may_wait(gateway: GatewayProcess, key: str, vanished: Upstream) -> None:
    with sent(gateway, [talk("narrow", f"t{n}") for n in range(2)], key) as clients:
        held(gateway, "narrow", 2)
        reply = ask(gateway, talk("narrow", "one more"), key)
        assert reply.status == 503 and "no more calls" in reply.error["message"]
        vanished.listen()
        assert [client.answer().status for client in clients] == [200, 200]
    idle(gateway)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_held_no_longer(
    gateway: GatewayProcess, key: str, vanished: Upstream, stream: bool
) -> None:
    with wire(gateway, posted(talk("held", "gone soon", stream=stream), key)) as client:
        held(gateway, "held", 1)
        before = total(samples(gateway), "hold_seconds_count", route="held", outcome="gone")
        client.leave()
        idle(gateway)
    assert total(samples(gateway), "hold_seconds_count", route="held", outcome="gone") == before + 1


def test_a_server_that_sleeps_is_woken_once(gateway: GatewayProcess, key: str, upstream: Upstream) -> None:
    pair = [Sleeper(upstream.target(f"sleeper-{name}")) for name in "ab"]
    for each in pair:
        eventually(each.known, "it sleeps")
    gate = Gate()
    for each in pair:
        each.wakes = [[gate, *whole({})]]
    answers: list[Reply] = []
    clients = threading.Thread(target=lambda: answers.extend(all_of(gateway, key, "sleepy", 20)))
    clients.start()
    held(gateway, "sleepy", 20)
    eventually(lambda: sum(len(each.woken) for each in pair) or None, "one is woken")
    for each in pair:
        each.asleep = not each.woken
    gate.open()
    clients.join()
    assert [reply.status for reply in answers] == [200] * 20
    assert sorted(len(each.woken) for each in pair) == [0, 1], "one suffices, told once"
    assert sum(each.served_asleep for each in pair) == 0
    idle(gateway)


def test_a_server_that_sleeps_beside_one_that_does_not_is_left_alone(
    gateway: GatewayProcess, key: str, upstream: Upstream
) -> None:
    sleeper = Sleeper(upstream.target("half-asleep"))
    eventually(sleeper.known, "it sleeps")
    for reply in all_of(gateway, key, "half", 10):
        assert (reply.status, reply.header("x-trunkline-target")) == (200, "half-awake")
    assert not sleeper.woken


def test_a_server_that_does_not_wake_is_told_again(gateway: GatewayProcess, key: str, upstream: Upstream) -> None:
    sleeper = Sleeper(upstream.target("stubborn"))
    eventually(sleeper.known, "it sleeps")
    sleeper.wakes = [whole({}, 500)]
    assert ask(gateway, chat("stubborn"), key).status == 200
    assert len(sleeper.woken) == 2 and sleeper.woken[1] - sleeper.woken[0] > 3, "no storm"
    assert "target stubborn could not be woken: status 500" in gateway.stderr()


SERVER = """
import http.server, json, os, signal, sys, time
while not os.path.exists(sys.argv[2]):
    time.sleep(0.02)
class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def say(self, body, kind="application/json"):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.say(str(os.getpid()).encode())
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "die" in str(asked) and not os.path.exists(sys.argv[3]):
            open(sys.argv[3], "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        message = {"role": "assistant", "content": "Hello"}
        usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
        self.say(json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "usage": usage,
                             "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode())
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Server).serve_forever()
"""


def launched(folder: Path, **route: Any) -> str:
    """A table whose target is a process that listens once `loaded` is there, and dies of the first call for that."""
    argv = [sys.executable, "-S", "-c", SERVER, "{port}", str(folder / "loaded"), str(folder / "died")]
    return table({"m": {"targets": [{"name": "child", "backend": "vllm", "launch": {"argv": argv}}], **route}})


def test_a_launched_server_is_waited_for_at_the_start_and_when_it_is_killed(tmp_path: Path) -> None:
    loaded = tmp_path / "loaded"
    with gateway_process(launched(tmp_path, hold="10m")) as gateway:
        key = gateway.issue().secret
        for killed in (False, True, True):
            if killed:
                loaded.unlink()
                _kill(gateway)
            with ThreadPoolExecutor(10) as clients:
                asked = [clients.submit(ask, gateway, chat("m"), key) for _ in range(10)]
                try:
                    held(gateway, "m", 10)
                finally:
                    loaded.touch()
                assert [each.result().status for each in asked] == [200] * 10
        idle(gateway)


def test_a_call_whose_server_dies_of_it_is_tried_once_more_when_it_is_back(tmp_path: Path) -> None:
    (tmp_path / "loaded").touch()
    with gateway_process(launched(tmp_path, hold="10m")) as gateway:
        key = gateway.issue().secret
        reply = ask(gateway, talk("m", "die"), key)
        assert reply.status == 200 and reply.header("x-trunkline-attempts") not in (None, "1")
        idle(gateway)


def _kill(gateway: GatewayProcess) -> None:
    """Kill the launched server, and wait until it is dead: on a busy machine it could still take calls."""
    pid = _pid(gateway)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid), "it is dead")


def _pid(gateway: GatewayProcess) -> int:
    """Of the launched server, whose command line is in the list of processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(stat[1]) == gateway.process.pid and b"http.server" in (folder / "cmdline").read_bytes():
                return int(folder.name)
    raise AssertionError("no launched server runs")
