"""Two gateways on one Redis, one of them a long way off: whose slots are free when, and what Redis is asked for."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.link import Link, link
from harness.redis_server import RedisServer
from harness.upstream import DONE, Act, Gate, Target, Upstream, answer, event, stream, usage_event, whole
from integration.client import UNEXPIRED, Wire, ask, chat, eventually, request
from redis import Redis

from gateway.core.types import Allowance, Budget, Limit


@pytest.fixture(scope="module")
def far(redis: RedisServer) -> Iterator[Link]:
    """The way from one gateway to Redis, which a test can make long."""
    with link(redis.port) as made:
        yield made


@pytest.fixture(scope="module")
def pair(upstream: Upstream, redis: RedisServer, far: Link) -> Iterator[list[GatewayProcess]]:
    """Two gateways on one Redis, the first one over the long way; their table asks for the IETF's headers."""
    targets = [{"name": "pair", "backend": "openai", "url": upstream.target("pair").url}]
    table = json.dumps({"routes": {"m": {"targets": targets}}, "limits": {"ietf_headers": True}})
    long = f"redis://127.0.0.1:{far.port}/0"
    with gateway_process(table, redis_url=long) as one, gateway_process(table, redis_url=redis.url) as other:
        yield [one, other]


@pytest.fixture
def paired(upstream: Upstream, far: Link) -> Iterator[Target]:
    """The target of the pair's one route, as new; the way to Redis is short again after the test."""
    target = upstream.target("pair")
    target.restore()
    yield target
    far.restore()


@pytest.mark.parametrize("limit", [1, 8])
@pytest.mark.parametrize("streamed", [True, False])
def test_who_has_the_last_byte_finds_the_slot_free_at_any_gateway(
    pair: list[GatewayProcess], paired: Target, far: Link, limit: int, streamed: bool
) -> None:
    """Also if Redis hears of the end late, and if the slots became scarce only after the call had come."""
    issued = pair[0].issue(limit=Limit(concurrency=limit))
    gate = Gate()
    paired.scripts = [stream(event("Hi"), gate, event(finish="stop"), usage_event(), DONE)] * (limit - 1)
    others = [Wire(pair[1].port) for _ in range(limit - 1)]
    far.delay(0.01)
    first = Gate()
    reply: Any = [first, whole(answer())[0]]
    paired.scripts.insert(0, stream(first, event(finish="stop"), usage_event(), DONE) if streamed else reply)
    with ThreadPoolExecutor(1) as threads:
        calling = threads.submit(ask, pair[0], chat("m", stream=streamed), issued.secret)
        paired.wait_for_calls(1)
        for opened in others:
            opened.send(request(chat("m", stream=True), issued.secret))
        paired.wait_for_calls(limit)
        assert ask(pair[1], chat("m"), issued.secret).status == 429
        first.open()
        assert calling.result().status == 200
    statuses = [ask(pair[1], chat("m"), issued.secret).status]
    for turn in range(20):
        here, there = (pair[0], pair[1]) if turn % 2 else (pair[1], pair[0])
        statuses += [ask(each, chat("m", stream=streamed), issued.secret).status for each in (here, there)]
    gate.open()
    for opened in others:
        opened.read_until(b"[DONE]")
        opened.leave()
    assert statuses == [200] * 41


def test_who_has_an_error_finds_the_slot_free_at_any_gateway(
    pair: list[GatewayProcess], paired: Target, far: Link
) -> None:
    issued = pair[0].issue(limit=Limit(concurrency=1))
    far.delay(0.01)
    for script, status in ((whole({}, 400), 400), (whole({}, 500), 502), (stream(event("x"), Act.CUT), 200)) * 3:
        paired.scripts = [script]
        assert ask(pair[0], chat("m", stream=len(script) > 1), issued.secret).status == status
        assert ask(pair[1], chat("m"), issued.secret).status == 200


def test_what_was_not_used_is_back_at_any_gateway(pair: list[GatewayProcess], paired: Target) -> None:
    issued = pair[0].issue(limit=Limit(tpm=10_000, budget=Budget(month=Allowance(tokens=10_000))))

    def granted(gateway: GatewayProcess) -> bool | None:
        return ask(gateway, chat("m", max_tokens=9000), issued.secret).status == 200 or None

    for gateway in pair * 5:  # an answer does not wait for ever for a settlement that is late
        eventually(lambda at=gateway: granted(at), "the tokens of the other gateway's call", UNEXPIRED)  # type: ignore[misc]


def test_the_ietfs_headers(pair: list[GatewayProcess], paired: Target) -> None:
    issued = pair[1].issue(limit=Limit(rpm=3, tpm=100_000))
    granted = ask(pair[1], chat("m", max_tokens=1000), issued.secret)
    assert granted.header("ratelimit-policy") == '"rpm";q=3;w=60, "tpm";q=100000;w=60'
    assert re.fullmatch(r'"rpm";r=2;t=20, "tpm";r=9\d{4};t=1', granted.header("ratelimit") or "")
    assert granted.header("x-ratelimit-limit-requests") == "3"
    for _ in range(2):
        ask(pair[1], chat("m", max_tokens=1), issued.secret)
    denied = ask(pair[1], chat("m", max_tokens=1), issued.secret)
    assert denied.status == 429
    assert re.fullmatch(r'"rpm";r=0;t=\d\d, "tpm";r=\d+;t=\d+', denied.header("ratelimit") or "")


@contextmanager
def overheard(redis: RedisServer) -> Iterator[list[str]]:
    """All that is asked of Redis meanwhile, without what a script does inside."""
    said: list[str] = []
    mark = f"end of watch {id(said)}"
    with Redis.from_url(redis.url) as client, client.monitor() as monitor:

        def listen() -> None:
            for each in monitor.listen():
                if mark in each["command"]:
                    return
                if each["client_type"] != "lua":
                    said.append(each["command"])

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield said
        finally:
            redis.ask("ECHO", mark)
            thread.join(30)


def test_a_key_without_limits_makes_no_redis_call(
    pair: list[GatewayProcess], paired: Target, redis: RedisServer
) -> None:
    """Of its calls Redis hears only afterwards, from the ledger, many at a time."""
    free, limited = pair[1].issue(), pair[1].issue(limit=Limit(rpm=1000))
    for issued in (free, limited):
        assert ask(pair[1], chat("m"), issued.secret).status == 200
    with overheard(redis) as said:
        replies = [ask(pair[1], chat("m", stream=i % 2 == 0), free.secret) for i in range(30)]
    assert [reply.status for reply in replies] == [200] * 30
    assert all("ratelimit" not in repr(reply.headers) for reply in replies)
    about = [line for line in said if free.record.id in line]
    assert all("{tl}:usage" in line or "ledger" in line for line in about), about[:3]
    assert len(about) <= len(replies), "at most one batch of the ledger a call, on a machine that is slow"
    with overheard(redis) as said:
        for _ in range(5):
            ask(pair[1], chat("m"), limited.secret)
    one_each = [line for line in said if line.startswith("EVALSHA") and f"rate:key:{limited.record.id}" in line]
    assert len(one_each) == 5, "one with limits makes one, and gives nothing back"


def test_a_call_with_many_limits_asks_redis_once(
    pair: list[GatewayProcess], paired: Target, redis: RedisServer
) -> None:
    """And once more when it has ended, which nobody waits for."""
    whole_limit = Limit(rpm=1000, tpm=1_000_000, budget=Budget(day=Allowance(tokens=10**9)), concurrency=20)
    issued = pair[1].issue(limit=whole_limit, model_limits={"m": whole_limit})
    assert ask(pair[1], chat("m"), issued.secret).status == 200
    with overheard(redis) as said:
        for _ in range(5):
            assert ask(pair[1], chat("m"), issued.secret).status == 200
    scripts = [line for line in said if line.startswith("EVALSHA") and f"rate:key:{issued.record.id}" in line]
    assert len(scripts) == 10
    others = [line for line in said if issued.record.id in line and line not in scripts]
    assert all("{tl}:usage" in line or "ledger" in line for line in others), others[:3]
