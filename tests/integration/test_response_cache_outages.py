"""The cache's Redis dies, hangs, is none, or is not fit: calls are answered all the same; at the start it is told."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from harness.gateway_process import GatewayProcess, gateway_process
from harness.link import link
from harness.redis_server import RedisServer, free_port, redis_server
from harness.redis_users import make_user, refused
from harness.upstream import DONE, Gate, Received, Script, Target, Upstream, answer, event, stream
from harness.upstream import whole as one_piece
from integration.client import ask, chat, eventually, get, request, samples, total, wire
from integration.test_response_cache import CACHE, KEPT, cached, kept, same

from gateway.cli import cli

HASTY = {"TRUNKLINE_REDIS_TIMEOUT": "0.25"}


def table(upstream: Upstream, wait: str = "50ms") -> str:
    targets = [{"name": "cache-outage", "backend": "openai", "url": upstream.target("cache-outage").url}]
    return json.dumps({"routes": {"m": {"targets": targets, "response_cache": {"wait": wait}}}})


@pytest.fixture(scope="module")
def cache() -> Iterator[RedisServer]:
    with redis_server(options=CACHE) as server:
        yield server


@pytest.fixture(scope="module")
def alone(upstream: Upstream, cache: RedisServer) -> Iterator[GatewayProcess]:
    """A gateway whose cache these tests may kill."""
    with gateway_process(table(upstream), env={"TRUNKLINE_CACHE_URL": cache.url, **HASTY}) as started:
        yield started


@pytest.fixture(scope="module")
def key(alone: GatewayProcess) -> str:
    return alone.issue().secret


@pytest.fixture
def target(upstream: Upstream) -> Target:
    found = upstream.target("cache-outage")
    found.restore()
    return found


@pytest.fixture
def whole(alone: GatewayProcess, key: str, cache: RedisServer, target: Target) -> Iterator[None]:
    """The cache works before, and again after, each test."""
    eventually(lambda: hits(alone, key), "the cache works")
    yield
    cache.thaw()
    if cache.process.poll() is not None:
        cache.restart()
    eventually(lambda: hits(alone, key), "the cache works again")


def hits(gateway: GatewayProcess, key: str) -> bool | None:
    reply = ask(gateway, same(seed=1), key)
    assert reply.status == 200
    return cached(reply) == "hit" or None


def looked(gateway: GatewayProcess, outcome: str) -> float:
    return total(samples(gateway), "response_cache_total", outcome=outcome)


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("streamed", [False, True])
def test_calls_go_to_targets_while_it_is_dead(
    alone: GatewayProcess, key: str, cache: RedisServer, target: Target, streamed: bool
) -> None:
    before = looked(alone, "unavailable")
    cache.process.kill()
    cache.process.wait()
    asked = len(target.calls)
    replies = [ask(alone, same(stream=streamed, seed=1), key) for _ in range(3)]
    assert [(reply.status, cached(reply)) for reply in replies] == [(200, "miss")] * 3
    assert len(target.calls) - asked == 3
    assert looked(alone, "unavailable") > before


@pytest.mark.usefixtures("whole")
def test_calls_go_to_targets_while_it_hangs(
    alone: GatewayProcess, key: str, cache: RedisServer, target: Target
) -> None:
    cache.freeze()
    replies = [ask(alone, same(seed=1), key) for _ in range(5)]
    assert [(reply.status, cached(reply)) for reply in replies] == [(200, "miss")] * 5


@pytest.mark.parametrize("trouble", ["slow", "cut off"])
def test_calls_go_to_targets_while_the_way_to_it_is_bad(upstream: Upstream, target: Target, trouble: str) -> None:
    """Its Redis answers, but late; or the connection ends within what it says."""
    with redis_server(options=CACHE) as cache, link(cache.port) as way:
        url = f"redis://127.0.0.1:{way.port}/0"
        env = {"TRUNKLINE_CACHE_URL": url, "TRUNKLINE_REDIS_TIMEOUT": "30"}
        with gateway_process(table(upstream), env=env) as gateway:
            key = gateway.issue().secret
            eventually(lambda: hits(gateway, key), "the cache works")
            good, before = ask(gateway, same(), key), looked(gateway, "unavailable")
            if trouble == "slow":
                way.delay(1.0)
            else:
                way.cut_after(100)  # an answer is longer
            replies = [ask(gateway, same(seed=1), key) for _ in range(4)]
            assert [(reply.status, cached(reply), reply.body) for reply in replies] == [(200, "miss", good.body)] * 4
            assert looked(gateway, "unavailable") - before == 4
            way.restore()
            eventually(lambda: hits(gateway, key), "the cache works again")


def test_no_call_is_answered_wrongly_whatever_dies(
    upstream: Upstream, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two gateways, many calls, and a cache that is killed and comes back empty in their midst."""

    def echo(received: Received) -> Script:
        if received.method == "GET":
            return one_piece({})
        asked = received.json()
        said = asked["messages"][0]["content"]
        if asked.get("stream"):
            return stream(event(said[:3]), event(said[3:]), event(finish="stop"), DONE)
        return one_piece(answer(said))

    monkeypatch.setattr(target, "answers", echo)
    with redis_server(options=CACHE) as cache, redis_server() as limits:
        env = {"TRUNKLINE_CACHE_URL": cache.url}
        with (
            gateway_process(table(upstream), redis_url=limits.url, env=env) as left,
            gateway_process(table(upstream), redis_url=limits.url, env=env) as right,
            ThreadPoolExecutor(8) as callers,
        ):
            key = left.issue().secret
            eventually(lambda: hits(left, key), "the cache works")
            eventually(lambda: hits(right, key), "for both")

            def call(number: int) -> str | None:
                said, streamed = f"question {number % 20}", number % 3 == 0
                body = same(messages=[{"role": "user", "content": said}], stream=streamed)
                reply = ask(left if number % 2 else right, body, key)
                assert reply.status == 200
                if streamed:
                    assert reply.body.endswith(DONE)
                    parts = [json.loads(data)["choices"][0]["delta"] for data in reply.data[:-1]]
                    assert "".join(part.get("content") or "" for part in parts) == said
                else:
                    assert reply.json()["choices"][0]["message"]["content"] == said
                return cached(reply)

            before = [*callers.map(call, range(120))]
            during = callers.map(call, range(240))
            cache.process.kill()
            cache.process.wait()
            assert next(during) in ("hit", "miss")
            cache.restart()
            assert {*before, *during} == {"hit", "miss"}
            eventually(lambda: call(0) == "hit" and call(1) == "hit", "both find answers again")


def test_an_answer_does_not_wait_until_it_is_kept(upstream: Upstream, target: Target) -> None:
    with redis_server(options=CACHE) as cache, ExitStack() as stack:
        env = {"TRUNKLINE_CACHE_URL": cache.url, "TRUNKLINE_REDIS_TIMEOUT": "30"}
        gateway = stack.enter_context(gateway_process(table(upstream, "1s"), env=env))
        key = gateway.issue().secret
        eventually(lambda: hits(gateway, key), "the cache works")
        before, gate = samples(gateway), Gate()
        target.script = stream(event("Hel"), gate, event("lo"), event(finish="stop"), DONE)
        with wire(gateway, request(same(stream=True), key)) as client:
            client.read_until(b"Hel")
            cache.freeze()
            stack.callback(cache.thaw)
            gate.open()
            client.read_until(DONE)
        name = "response_cache_answers_total"
        assert total(samples(gateway), name) == total(before, name), "nobody knows yet what becomes of it"
        cache.thaw()
        assert len(kept(cache, 2)) == 2


@pytest.mark.usefixtures("whole")
def test_one_that_no_longer_evicts_is_told_and_not_used(
    alone: GatewayProcess, key: str, cache: RedisServer, target: Target
) -> None:
    cache.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    cache.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    eventually(lambda: "has maxmemory-policy noeviction" in alone.stderr() or None, "the log tells")
    assert cached(ask(alone, same(seed=1), key)) == "miss"
    cache.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    cache.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


def test_it_may_come_later(upstream: Upstream, target: Target, tmp_path: Path) -> None:
    port = free_port()
    env = {"TRUNKLINE_CACHE_URL": f"redis://127.0.0.1:{port}/0"}
    with gateway_process(table(upstream), env=env) as gateway:
        assert "answers are kept as soon as it is there" in gateway.stderr()
        key = gateway.issue().secret
        assert cached(ask(gateway, same(), key)) == "miss"
        server = RedisServer(str(tmp_path), port, options=CACHE)
        try:
            eventually(lambda: hits(gateway, key), "the cache works")
        finally:
            server.stop()


def test_a_user_with_the_documented_rules_is_enough(upstream: Upstream, target: Target) -> None:
    with redis_server(options=CACHE) as server:
        env = {"TRUNKLINE_CACHE_URL": make_user(server, "answers")}
        with gateway_process(table(upstream, "1s"), env=env) as gateway:
            key = gateway.issue().secret
            eventually(lambda: hits(gateway, key), "the cache works")
            assert refused(server) == []
            assert len(server.keys(KEPT)) == 1


UNFIT: dict[str, tuple[tuple[str, ...], str]] = {
    "noeviction": (("--maxmemory", "64mb"), "has maxmemory-policy noeviction"),
    "no bound": (("--maxmemory-policy", "allkeys-lru"), "has no 'maxmemory'"),
    "of the limits": (CACHE, "is that of limits and records"),
    "another database": (CACHE, "is the server of limits and records"),
}


@pytest.mark.parametrize("unfit", UNFIT)
def test_a_redis_that_is_not_fit_is_refused_in_one_line(
    upstream: Upstream, unfit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, told = UNFIT[unfit]
    routing = tmp_path / "routing.yaml"
    routing.write_text(table(upstream))
    with redis_server(options=options) as server:
        url = server.url.replace("/0", "/1") if unfit == "another database" else server.url
        limits = server.url if unfit in ("of the limits", "another database") else None
        monkeypatch.setenv("TRUNKLINE_CACHE_URL", url)
        if limits:
            monkeypatch.setenv("TRUNKLINE_REDIS_URL", limits)
        for command in ("serve", "check"):
            result = CliRunner().invoke(cli, [command, str(routing)])
            assert result.exit_code in (1, 2)
            (line,) = [line for line in result.stderr.splitlines() if "TRUNKLINE_CACHE_URL" in line]
            assert told in line and "maxmemory-policy allkeys-lru" in line


def test_check_tells_where_answers_are_kept(
    upstream: Upstream, cache: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    routing = tmp_path / "routing.yaml"
    routing.write_text(table(upstream))
    monkeypatch.setenv("TRUNKLINE_CACHE_URL", cache.url)
    result = CliRunner().invoke(cli, ["check", str(routing)])
    assert result.exit_code == 0 and f"response cache: {cache.url}" in result.stdout
    monkeypatch.delenv("TRUNKLINE_CACHE_URL")
    result = CliRunner().invoke(cli, ["check", str(routing)])
    assert result.exit_code == 0 and "'response_cache', which needs TRUNKLINE_CACHE_URL" in result.stderr


@pytest.mark.parametrize("url", ["", "http://cache:6379"])
def test_a_table_that_keeps_answers_needs_a_place_for_them(
    upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    routing = tmp_path / "routing.yaml"
    routing.write_text(table(upstream))
    monkeypatch.setenv("TRUNKLINE_CACHE_URL", url)
    result = CliRunner().invoke(cli, ["serve", str(routing)])
    assert result.exit_code == 2 and "TRUNKLINE_CACHE_URL" in result.stderr


def test_a_newer_table_that_keeps_answers_is_not_used_without_one(upstream: Upstream) -> None:
    good: dict[str, Any] = json.loads(table(upstream))
    del good["routes"]["m"]["response_cache"]
    with gateway_process(json.dumps(good)) as gateway:
        gateway.routing.write_text(table(upstream))
        gateway.process.send_signal(signal.SIGHUP)
        eventually(lambda: total(samples(gateway), "config_refused") == 1 or None, "it is refused")
        assert "needs TRUNKLINE_CACHE_URL" in gateway.stderr()
        assert cached(ask(gateway, chat("m", temperature=0), gateway.issue().secret)) is None
        assert get(gateway, "/ready").status == 200
