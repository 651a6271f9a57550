"""SIGTERM: not ready at once, accepting a while longer; what runs may finish, and what takes too long is told so."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer, redis_server
from harness.upstream import DONE, Act, Gate, Target, Upstream, answer, event, stream, usage_event, whole
from integration.client import Wire, ask, chat, eventually, get, request, samples, total, wire

from gateway.core.types import Limit

ENDED = "gateway_shutting_down"
SLOWLY = {"TRUNKLINE_DRAIN_ACCEPT": "30", "TRUNKLINE_GRACE": "30"}
"""No test waits for these."""
QUICKLY = {"TRUNKLINE_DRAIN_ACCEPT": "0", "TRUNKLINE_GRACE": "0.3"}


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """What is left in it is of this test's gateway."""
    with redis_server() as started:
        yield started


@contextmanager
def serving(
    upstream: Upstream, env: dict[str, str], *, max_inflight: int | None = None, **options: Any
) -> Iterator[tuple[GatewayProcess, Target, str]]:
    """A gateway with one target, and a key for it."""
    target = upstream.target("drain")
    target.restore()
    targets = [{"name": "drain", "backend": "openai", "url": target.url, "max_inflight": max_inflight}]
    with gateway_process(json.dumps({"routes": {"m": {"targets": targets}}}), env=env, **options) as gateway:
        yield gateway, target, gateway.issue(limit=Limit(concurrency=100)).secret


def workers(gateway: GatewayProcess) -> list[psutil.Process]:
    """Its serving processes."""
    return [child for child in psutil.Process(gateway.process.pid).children() if _serves(child)]


def _serves(process: psutil.Process) -> bool:
    try:
        return "serve" in process.cmdline()
    except psutil.Error:  # it is dead
        return False


def draining(gateway: GatewayProcess) -> bool | None:
    return get(gateway, "/ready").status == 503 or None


def terminate(gateway: GatewayProcess, number: signal.Signals = signal.SIGTERM) -> None:
    gateway.process.send_signal(number)


def test_it_is_not_ready_at_once_and_still_serves(upstream: Upstream, redis: RedisServer) -> None:
    """Both workers: each connection may get another one."""
    with serving(upstream, SLOWLY, redis_url=redis.url, workers=2) as (gateway, target, key):
        assert get(gateway, "/ready").status == 200
        before = ask(gateway, chat("m"), key)
        assert before.header("connection") is None
        target.script = stream(event("Hi"), gate := Gate(), event(finish="stop"), usage_event(), DONE)
        with wire(gateway, request(chat("m", stream=True), key)) as connection:
            connection.read_until(b"Hi")
            terminate(gateway)
            eventually(lambda: draining(gateway), "it is not ready")
            target.script = None
            for _ in range(20):
                told = get(gateway, "/ready")
                assert (told.status, told.json()["ready"], told.json()["detail"]) == (503, False, "draining")
                assert told.header("connection") == "close"
                reply = ask(gateway, chat("m"), key)
                assert (reply.status, reply.header("connection")) == (200, "close")
            assert get(gateway, "/health").status == 200
            gate.open()
            connection.read_until(b"[DONE]")
        terminate(gateway)  # the time for new calls is not what this is about
        assert gateway.process.wait(40) == 128 + signal.SIGTERM


def test_calls_that_wait_when_it_begins_close_their_connections(upstream: Upstream) -> None:
    with serving(upstream, SLOWLY) as (gateway, target, key):
        target.script = [gate := Gate(), *whole(answer())]
        with wire(gateway, request(chat("m"), key)) as connection:
            target.wait_for_calls()
            terminate(gateway)
            eventually(lambda: draining(gateway), "it is not ready")
            gate.open()
            reply = connection.answer()
            assert (reply.status, reply.header("connection")) == (200, "close")
        terminate(gateway)


def test_after_the_time_for_it_connections_are_refused_and_streams_go_on(upstream: Upstream) -> None:
    with serving(upstream, {"TRUNKLINE_DRAIN_ACCEPT": "0.4"}) as (gateway, target, key):
        target.script = stream(event("Hi"), gate := Gate(), event("there"), event(finish="stop"), usage_event(), DONE)
        idle = Wire(gateway.port)
        with wire(gateway, request(chat("m", stream=True), key)) as connection:
            connection.read_until(b"Hi")
            began = time.monotonic()
            terminate(gateway)
            assert idle.socket.recv(1) == b""  # closed, and not reset
            assert time.monotonic() - began >= 0.4
            eventually(lambda: refused(gateway), "connections are refused")
            gate.open()
            connection.read_until(b"[DONE]")
            assert connection.all_that_comes().endswith(b"0\r\n\r\n")
        assert gateway.process.wait(40) == 0
        assert [line["outcome"] for line in gateway.records()] == ["answered"]
        assert "Traceback" not in gateway.stderr()


def refused(gateway: GatewayProcess) -> bool | None:
    try:
        socket.create_connection(("127.0.0.1", gateway.port), timeout=40).close()
    except ConnectionRefusedError:
        return True
    return None


def test_ctrl_c_accepts_no_more_calls_and_lets_streams_finish(upstream: Upstream) -> None:
    """A terminal sends the signal to every process of the gateway."""
    with serving(upstream, SLOWLY) as (gateway, target, key):
        target.script = stream(event("Hi"), gate := Gate(), event(finish="stop"), usage_event(), DONE)
        with wire(gateway, request(chat("m", stream=True), key)) as connection:
            connection.read_until(b"Hi")
            for worker in workers(gateway):
                worker.send_signal(signal.SIGINT)
            terminate(gateway, signal.SIGINT)
            eventually(lambda: refused(gateway), "connections are refused")
            gate.open()
            connection.read_until(b"[DONE]")
        assert gateway.process.wait(40) == 0


def test_signals_to_every_process_at_once_change_nothing(upstream: Upstream) -> None:
    """As systemd sends them, by default."""
    with serving(upstream, {"TRUNKLINE_DRAIN_ACCEPT": "0.3"}) as (gateway, target, key):
        target.script = stream(event("Hi"), gate := Gate(), event(finish="stop"), usage_event(), DONE)
        with wire(gateway, request(chat("m", stream=True), key)) as connection:
            connection.read_until(b"Hi")
            for worker in workers(gateway):
                worker.terminate()
            terminate(gateway)
            eventually(lambda: refused(gateway), "connections are refused")
            gate.open()
            connection.read_until(b"[DONE]")
        assert gateway.process.wait(40) == 0


def test_calls_longer_than_the_grace_end_in_an_error(upstream: Upstream, own_redis: RedisServer) -> None:
    with serving(upstream, QUICKLY, redis_url=own_redis.url, workers=2) as (gateway, target, key):
        target.script = stream(event("Hi"), Act.STALL)
        streams = [Wire(gateway.port) for _ in range(4)]
        for each in streams:
            each.send(request(chat("m", stream=True), key))
            each.read_until(b"Hi")
        target.script = [Act.STALL]
        late = Wire(gateway.port)
        late.send(request(chat("m", stream=True), key))
        target.wait_for_calls(5)
        waits = Wire(gateway.port)
        waits.send(request(chat("m"), key))
        target.wait_for_calls(6)
        body = Wire(gateway.port)
        body.send(request(b'{"model"', key, length=1000))
        terminate(gateway)
        for each in streams:
            said = each.all_that_comes(10)
            assert said.count(b"data: ") == 2 and ENDED.encode() in said.rpartition(b"data: ")[2]
            assert said.endswith(b"\n\n\r\n0\r\n\r\n") and b"[DONE]" not in said
        for each in (late, waits, body):
            reply = each.answer()
            assert (reply.status, reply.error["code"], reply.error["type"]) == (503, ENDED, "server_error")
            assert (reply.header("x-should-retry"), reply.header("connection")) == ("true", "close")
        assert gateway.process.wait(40) == 0
        assert "Traceback" not in gateway.stderr(), gateway.stderr()
        told = gateway.records()
        assert sorted(line["outcome"] for line in told) == ["broke"] * 4 + ["failed"] * 3
        assert {line["error_type"] for line in told} == {ENDED}
        assert {one["outcome"] for line in told for one in line["attempts"]} == {ENDED}
        nothing_is_left(own_redis, 6)


def test_calls_that_still_wait_for_a_target_get_an_error(upstream: Upstream) -> None:
    with serving(upstream, QUICKLY, max_inflight=1) as (gateway, target, key):
        target.script = [Act.STALL]
        first, second = Wire(gateway.port), Wire(gateway.port)
        first.send(request(chat("m"), key))
        target.wait_for_calls()
        second.send(request(chat("m", stream=True), key))
        eventually(lambda: total(samples(gateway), "queue_calls", route="m") == 1 or None, "one waits")
        terminate(gateway)
        for each in (first, second):
            reply = each.answer()
            assert (reply.status, reply.error["code"]) == (503, ENDED)
        assert gateway.process.wait(40) == 0
        assert len(target.calls) == 1


def test_clients_that_do_not_end_their_requests_hold_nothing_up(upstream: Upstream, own_redis: RedisServer) -> None:
    """The server would wait for them, and be killed before its leases are given back."""
    with serving(upstream, {"TRUNKLINE_GRACE": "30"}, redis_url=own_redis.url) as (gateway, _, key):
        head = Wire(gateway.port)
        head.send(b"POST /v1/chat/completions HTTP/1.1\r\nhos")
        assert ask(gateway, chat("m"), key).status == 200
        terminate(gateway)
        assert gateway.process.wait(9) == 0  # the server's own patience is 10 s
        nothing_is_left(own_redis, 1)


def nothing_is_left(redis: RedisServer, calls: int) -> None:
    """No lease is held, no worker says that it serves or what it has to do; the ledger has all admitted calls."""
    for name in redis.ask("KEYS", "*"):
        for kind, size in (("lease:", "ZCARD"), ("load:", "HLEN"), ("workers", "ZCARD"), ("reports", "HLEN")):
            if name.startswith("{tl}:" + kind):
                assert redis.ask(size, name) == 0, name
    assert redis.ask("XLEN", "{tl}:ledger") == calls
