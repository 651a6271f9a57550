"""The ledger of real gateways: every ended call is in it once, at its price; and it agrees with the engines."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer, redis_server
from harness.upstream import DONE, Act, Upstream, answer, event, head, stream, usage_event, whole
from integration.client import ask, chat, eventually, request, samples, total, wire
from redis import Redis

from backends.api import Target as Address
from backends.capabilities import Capabilities
from backends.llamacpp import LlamaCpp
from backends.openai import OpenAI
from backends.vllm import VLLM
from gateway.config import Timeouts
from gateway.core.types import Entry
from gateway.metering.reconcile import Reconciler
from gateway.store.local import LocalStore
from gateway.upstream import AnswerLimits, Forwarder

PRICE = {"input": 0.15, "cached": 0.075, "output": 0.60}


@pytest.fixture(scope="module")
def own() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def table(upstream: Upstream) -> str:
    def target(name: str) -> dict[str, Any]:
        return {"name": name, "backend": "openai", "url": upstream.target(name).url}

    routes = {
        "priced": {"aliases": ["gpt"], "targets": [target("priced")], "price": PRICE},
        "free": {"targets": [target("free")]},
    }
    return json.dumps({"routes": routes})


@pytest.fixture(scope="module")
def shared(upstream: Upstream, own: RedisServer) -> Iterator[GatewayProcess]:
    """Two workers on a Redis of their own."""
    with gateway_process(table(upstream), redis_url=own.url, workers=2) as started:
        yield started


@pytest.fixture
def client(own: RedisServer) -> Iterator[Redis]:
    with Redis.from_url(own.url, decode_responses=True) as connected:
        yield connected


def entries(client: Redis, count: int, since: str = "-") -> list[Entry]:
    """The entries after `since`, once there are `count` of them."""

    def look() -> Any:
        found: Any = client.xrange("{tl}:ledger", since)
        return found if len(found) >= count else None

    found = eventually(look, f"{count} entries in the ledger")
    assert len(found) == count
    return [msgspec.json.decode(fields["entry"], type=Entry) for _, fields in found]


def after_all(client: Redis) -> str:
    """Where the stream ends now."""
    last: Any = client.xrevrange("{tl}:ledger", count=1)
    return f"({last[0][0]}" if last else "-"


def test_every_call_is_in_the_ledger_at_its_price(shared: GatewayProcess, upstream: Upstream, client: Redis) -> None:
    target = upstream.target("priced")
    target.restore()
    counts = answer(prompt=1000, completion=200)
    counts["usage"]["prompt_tokens_details"] = {"cached_tokens": 400}
    target.scripts = [whole(counts), stream(event("a"), event(finish="stop"), usage_event(7, 1), DONE)]
    one, other = shared.issue(tenant="team-a"), shared.issue(tenant="team-b")
    since, before = after_all(client), samples(shared)

    assert ask(shared, chat("gpt"), one.secret).status == 200
    assert ask(shared, chat("priced", stream=True), other.secret).status == 200
    assert ask(shared, chat("free"), one.secret).status == 200
    assert ask(shared, chat("unknown"), one.secret).status == 404

    first, second, third = sorted(entries(client, 3, since), key=lambda each: each.time)
    cost = 600 * 150_000 + 400 * 75_000 + 200 * 600_000
    assert (first.key_id, first.tenant, first.route, first.target) == (one.record.id, "team-a", "priced", "priced")
    assert (first.input, first.cached, first.output, first.source) == (1000, 400, 200, "upstream")
    assert first.cost_micros == cost // 10**6 == 240
    assert (second.tenant, second.input, second.output, second.cost_micros) == ("team-b", 7, 1, 2), "1.65 rounded up"
    assert (third.route, third.input, third.output, third.cost_micros) == ("free", 5, 2, 0)
    assert abs(first.time - time.time()) < 30 and first.outcome == "answered" and first.endpoint == "chat/completions"

    found = shared.said("usage", "--by", "key,model", "--tenant", "team-a", "--key", one.record.id)
    numbers = {row["model"]: (row["calls"], row["input"], row["cost_micros"]) for row in found["rows"]}
    assert numbers == {"free": (1, 5, 0), "priced": (1, 1000, 240)}
    assert {row["name"] for row in found["rows"]} == {"test"}
    sources = {"route": "priced", "source": "upstream"}

    def grown(name: str, **labels: str) -> float:
        return total(samples(shared), name, **labels) - total(before, name, **labels)

    eventually(lambda: grown("usage_source_total", **sources) >= 2 or None, "both workers have told their calls")
    assert grown("usage_source_total", **sources) == 2
    assert grown("cost_micros_total", route="priced") == 242


def test_many_calls_of_two_workers_add_up(shared: GatewayProcess, upstream: Upstream, client: Redis) -> None:
    upstream.target("priced").restore()
    issued = shared.issue(tenant="crowd")
    since = after_all(client)
    with ThreadPoolExecutor(8) as callers:
        replies = list(callers.map(lambda _: ask(shared, chat("priced"), issued.secret), range(200)))
    assert {reply.status for reply in replies} == {200}
    found = entries(client, 200, since)
    assert {each.call_id for each in found} == {reply.header("x-request-id") for reply in replies}
    (row,) = shared.said("usage", "--tenant", "crowd")["rows"]
    assert (row["calls"], row["input"], row["output"], row["cost_micros"]) == (200, 1000, 400, 200 * 2)


def test_a_client_that_leaves_is_in_the_ledger(shared: GatewayProcess, upstream: Upstream, client: Redis) -> None:
    target = upstream.target("priced")
    target.restore()
    target.script = stream(*(event("a") for _ in range(7)), Act.STALL)
    issued = shared.issue()
    since = after_all(client)
    with wire(shared, request(chat("priced", stream=True), issued.secret)) as connection:
        connection.read_until(b'"a"')
    (found,) = entries(client, 1, since)
    target.restore()
    assert (found.outcome, found.source) == ("gone", "counted")
    assert 1 <= found.output <= 7 and found.cost_micros > 0


def test_calls_that_end_while_redis_is_frozen_are_written_once(upstream: Upstream) -> None:
    upstream.target("free").restore()
    soon = {"TRUNKLINE_REDIS_TIMEOUT": "0.25"}
    with redis_server() as server, gateway_process(table(upstream), redis_url=server.url, env=soon) as gateway:
        issued = gateway.issue()
        client = Redis.from_url(server.url, decode_responses=True)
        with ThreadPoolExecutor(4) as callers, client:
            replies = []
            for step in range(3):
                replies += list(callers.map(lambda _: ask(gateway, chat("free"), issued.secret), range(20)))
                if step < 2:
                    server.process.send_signal(signal.SIGSTOP)
                replies += list(callers.map(lambda _: ask(gateway, chat("free"), issued.secret), range(20)))
                time.sleep(0.5)
                server.process.send_signal(signal.SIGCONT)
            answered = {reply.header("x-request-id") for reply in replies if reply.status == 200}
            assert len(answered) == 120, {reply.status for reply in replies}
            assert {each.call_id for each in entries(client, 120)} == answered
            assert gateway.said("usage")["total"]["calls"] == 120


def test_without_redis_the_files_have_every_call_also_those_before_the_end(upstream: Upstream) -> None:
    upstream.target("free").restore()
    with gateway_process(table(upstream)) as gateway:
        issued = gateway.issue(tenant="team-a")
        assert ask(gateway, chat("free"), issued.secret).status == 200
        eventually(lambda: gateway.said("usage")["total"]["calls"] == 1 or None, "the first call")
        with ThreadPoolExecutor(4) as callers:
            list(callers.map(lambda _: ask(gateway, chat("free"), issued.secret), range(40)))
        gateway.stop()  # sooner than the next flush
        (row,) = gateway.said("usage", "--by", "tenant,model,key")["rows"]
        assert (row["tenant"], row["model"], row["key"], row["name"]) == ("team-a", "free", issued.record.id, "test")
        assert (row["calls"], row["input"], row["output"]) == (41, 205, 82)
        assert "missing" not in gateway.stderr()


def test_ledger_and_engine_agree_to_the_token(embedded: GatewayProcess) -> None:
    """The embedded model's server really counts: streams and whole answers, its prompt cache, embeddings."""
    issued = embedded.issue()
    children = psutil.Process(embedded.process.pid).children(recursive=True)
    (command,) = [words for words in (child.cmdline() for child in children) if "backends.embedded" in words]
    url = f"http://127.0.0.1:{command[command.index('--port') + 1]}/metrics"
    ledger = LocalStore(embedded.routing.parent / "keys.json").ledger

    def engine() -> tuple[int, int]:
        with urllib.request.urlopen(url, timeout=40) as text:
            counts = LlamaCpp().counters(text.read().decode())
        assert counts is not None
        return counts

    def mine() -> tuple[int, int]:
        return asyncio.run(ledger.by_target()).get("local", (0, 0))

    engine_before, mine_before = engine(), mine()
    for fields in ({"max_tokens": 8}, {"max_tokens": 8, "stream": True}, {"max_tokens": 3}, {"max_tokens": 8}):
        assert ask(embedded, chat("smollm2-135m", **fields), issued.secret).status == 200
    embeddings = {"model": "smollm2-135m", "input": "Once upon a time"}
    assert ask(embedded, embeddings, issued.secret, "/v1/embeddings").status == 200

    def agree() -> tuple[int, int] | None:
        theirs, ours = (
            [now - then for now, then in zip(*pair, strict=True)]
            for pair in ((engine(), engine_before), (mine(), mine_before))
        )
        return (ours[0], ours[1]) if theirs == ours and ours[0] > 50 else None

    read, made = eventually(agree, "engine and ledger have counted the same")
    assert 4 <= made <= 27 and read > 50


async def test_drift_between_a_scripted_engine_and_the_ledger(
    upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = upstream.target("engine")
    target.restore()
    counters = 'vllm:prompt_tokens_total{{engine="0"}} {}\nvllm:generation_tokens_total{{engine="0"}} {}\n'
    served = [counters.format(1000, 100), counters.format(1500, 160)]
    monkeypatch.setattr(target, "answers", lambda _: whole(served.pop(0).encode(), content_type="text/plain"))
    ledger, adapter, forwarder = LocalStore(tmp_path / "keys.db").ledger, VLLM(), Forwarder(AnswerLimits(1000, 1000))
    address = Address("engine", target.url)
    drift: dict[str, tuple[int, float]] = {}

    async def look(_: str) -> tuple[int, int] | None:
        text = await forwarder.scrape(address, Capabilities.of(adapter), Timeouts())
        return None if text is None else adapter.counters(text)

    reconciler = Reconciler(
        lambda: {"engine": target.url}, look, ledger, lambda _, way, tokens, ratio: drift.update({way: (tokens, ratio)})
    )
    await reconciler.round()
    call = Entry(
        call_id="c", time=time.time(), key_id="k", tenant="t", route="r", target="engine", input=400, output=60
    )
    await ledger.append("b", [call])
    await reconciler.round()
    await forwarder.close()
    assert drift == {"in": (100, 0.2), "out": (0, 0.0)}


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (whole(b"a_total 1\n", content_type="text/plain"), "a_total 1\n"),
        (stream(b"a_total 1\n", b"b_total 2\n"), "a_total 1\nb_total 2\n"),
        (whole(b"\xff", content_type="text/plain"), "\ufffd"),
        (whole(b"no metrics here", 501), None),
        (whole(b"", 307, location="/elsewhere"), None),
        ([head(content_length=100) + b"half", Act.CUT], None),
        ([Act.RESET], None),
        ([Act.STALL], None),
        (whole(b"x" * (4 * 1024**2 + 1), content_type="text/plain"), None),
    ],
    ids=["text", "chunked", "no UTF-8", "501", "redirect", "cut", "reset", "stall", "too long"],
)
async def test_a_scrape_gives_the_text_or_nothing(
    upstream: Upstream, script: Any, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = upstream.target("scraped")
    target.restore()
    seen = []

    def answers(received: Any) -> Any:
        seen.append((received.method, received.path, received.header("authorization")))
        return script

    monkeypatch.setattr(target, "answers", answers)
    forwarder = Forwarder(AnswerLimits(1000, 1000))
    address, silent = Address("scraped", target.url, None, "upstream-secret"), Act.STALL in script
    assert await forwarder.scrape(address, Capabilities.of(VLLM()), Timeouts(connect=0.2 if silent else 20)) == text
    assert seen[0] == ("GET", "/metrics", "Bearer upstream-secret")
    seen.clear()
    assert await forwarder.scrape(address, Capabilities.of(OpenAI()), Timeouts()) is None and not seen
    await forwarder.close()
