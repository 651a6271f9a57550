"""One attempt, over real sockets: what is sent, and what becomes of connections when it fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from harness.peer import Listener, Peer
from harness.redis_server import free_port
from harness.upstream import event, head, scripted_upstream, whole

from backends import registry
from backends.api import Call, Target
from backends.body import Body
from backends.capabilities import Capabilities
from backends.openai import OpenAI
from gateway.config import Timeouts, parse_table
from gateway.core.errors import (
    BadReply,
    Disconnected,
    TookTooLong,
    Unreachable,
    UpstreamError,
    UpstreamFailed,
    UpstreamTimeout,
)
from gateway.upstream import AnswerLimits, Forwarder

STREAM = head(content_type="text/event-stream", transfer_encoding="chunked")
FEW = [event(f"word {n}") for n in range(40)]
WHOLE = b'{"choices":[]}'
FINISH = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\n'
OPENAI = Capabilities.of(OpenAI())


@pytest.fixture
async def forwarder() -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(AnswerLimits(1024, 1024))
    yield forwarder
    await forwarder.close()


def a_call(stream: bool) -> Call:
    return Call("c", "chat/completions", "m", Body(b'{"model":"m","messages":[]}'), stream=stream)


async def nobody_reads() -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)


async def answers(listener: Listener, sent: bytes, *, close: bool = False, reset: bool = False) -> Peer:
    peer = await listener.peer()
    await peer.request()
    peer.send(sent)
    if close:
        peer.close()
    if reset:
        peer.reset()
    return peer


async def test_what_an_attempt_sends(forwarder: Forwarder, listener: Listener) -> None:
    address = Target("t", f"http://127.0.0.1:{listener.port}/prefix", "served", "the-credential")

    attempting = asyncio.create_task(
        forwarder.send(a_call(False), address, OPENAI, Timeouts(), {"x-request-id": "c-1"})
    )
    peer = await listener.peer()
    lines, body = await peer.request()
    peer.send(b"".join(step for step in whole(WHOLE) if isinstance(step, bytes)))
    (await attempting).close()
    assert lines[0] == "POST /prefix/v1/chat/completions HTTP/1.1"
    assert {"authorization: Bearer the-credential", "x-request-id: c-1", "accept-encoding: identity"} < set(lines)
    assert b'"model":"served"' in body and f"content-length: {len(body)}" in lines


async def test_headers_that_the_table_names_go_on_and_no_others(forwarder: Forwarder, listener: Listener) -> None:
    url = f"http://127.0.0.1:{listener.port}"
    target = {"name": "t", "backend": "openai", "url": url, "headers": {"x-team": "search"}}
    route = {"targets": [target], "forward_headers": ["X-Data-Parallel-Rank", "x-absent"]}
    route["session_headers"] = ["X-Correlation-ID"]
    forwarder.origins.bind(parse_table(json.dumps({"routes": {"m": route}}))[0])
    callers = {b"x-data-parallel-rank": b"3", b"x-other": b"4", b"authorization": b"Bearer tl_key"}
    callers[b"x-correlation-id"] = b"5"

    async def attempt() -> None:
        (await forwarder.send(a_call(False), Target("t", url), OPENAI, Timeouts(), {}, callers)).close()

    attempting = asyncio.create_task(attempt())
    peer = await listener.peer()
    lines, _ = await peer.request()
    peer.send(head(content_length=len(WHOLE)) + WHOLE)
    await attempting
    seen = [line for line in lines if line.startswith(("x-", "auth"))]
    assert seen[0] == "x-team: search" and set(seen[1:]) == {"x-data-parallel-rank: 3", "x-correlation-id: 5"}


@pytest.mark.parametrize(
    ("sent", "close", "reset", "kind"),
    [
        pytest.param(b"nonsense\r\n\r\n", False, False, BadReply, id="no HTTP"),
        pytest.param(head(content_encoding="gzip", content_length=2) + b"ok", False, False, BadReply, id="compressed"),
        pytest.param(b"", True, False, Disconnected, id="closed"),
        pytest.param(b"", False, True, Disconnected, id="reset"),
        pytest.param(head(content_length=100) + b"{", True, False, Disconnected, id="short"),
        pytest.param(head(500, content_length=2) + b"no", False, False, UpstreamFailed, id="500"),
        pytest.param(b"", False, False, TookTooLong, id="silent"),
        pytest.param(head(content_length=100) + b"{", False, False, UpstreamTimeout, id="stalled"),
    ],
)
async def test_failures_and_that_their_connections_are_closed(
    forwarder: Forwarder, listener: Listener, sent: bytes, close: bool, reset: bool, kind: type[UpstreamError]
) -> None:
    address = Target("t", f"http://127.0.0.1:{listener.port}")
    silent = Timeouts(whole=0.2, idle=0.1) if issubclass(kind, UpstreamTimeout) else Timeouts()
    answering = asyncio.create_task(answers(listener, sent, close=close, reset=reset))
    with pytest.raises(kind) as caught:
        exchange = await forwarder.send(a_call(False), address, OPENAI, silent, {})
        try:
            await exchange.next()
        finally:
            exchange.close()
    assert type(caught.value) is kind
    peer = await answering
    if b"content-length: 2\r\n" not in sent or kind is BadReply:
        await peer.ended.wait()


async def test_a_target_that_is_not_there(forwarder: Forwarder) -> None:
    with pytest.raises(Unreachable, match="No such file"):
        await forwarder.send(a_call(False), Target("t", "unix:///no/such/socket"), OPENAI, Timeouts(), {})


@pytest.mark.parametrize(
    ("backend", "statuses", "found"),
    [
        ("openai", {}, []),
        ("openai", {"/v1/chat/completions": 400}, ["/v1/chat/completions"]),
        ("openai", {"/v1/chat/completions": 403, "/v1/embeddings": 200}, ["/v1/embeddings"]),
        (
            "vllm",
            {"/invocations": 415, "/tokenize": 422, "/pooling": 404, "/score": 405},
            ["/invocations", "/tokenize"],
        ),
        ("vllm", {"/invocations": 503, "/tokenize": 422}, ["/tokenize"]),
        ("vllm", {"/invocations": 503}, None),
        ("openai", {"/v1/embeddings": 429}, None),
        ("openai", {"/v1/embeddings": 500}, []),
        ("tgi", {"/invocations": 422}, ["/invocations"]),
        ("sglang", {"/generate": 400}, ["/generate"]),
    ],
)
async def test_what_a_target_takes_without_its_credential(
    forwarder: Forwarder, backend: str, statuses: dict[str, int], found: list[str] | None
) -> None:
    with scripted_upstream() as upstream:
        target = upstream.target("t")
        target.open_paths = statuses
        address = Target("t", target.url, "served", "the-credential")
        assert await forwarder.open_paths(address, registry.capabilities(backend), Timeouts()) == found
        assert {probe.header("content-type") for probe in target.probes} == {"application/json"}
        assert {probe.header("authorization") for probe in target.probes} == {None} and not target.calls


async def test_a_target_that_is_not_there_tells_nothing_of_what_it_takes(forwarder: Forwarder) -> None:
    address = Target("t", f"http://127.0.0.1:{free_port()}", "served", "the-credential")
    assert await forwarder.open_paths(address, registry.capabilities("openai"), Timeouts()) is None
