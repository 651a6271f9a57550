"""Endpoints beside chats, completions and embeddings, over real sockets: natively, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from harness.captures import GOLDEN, read_capture
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Act, Target, Upstream, event, stream, whole
from integration.client import Reply, ask, record

from gateway.core.types import Limit

MESSAGES = {"max_tokens": 8, "messages": [{"role": "user", "content": "Say hi."}]}
RESPONSES = {"input": "Say hi."}


@pytest.fixture(scope="module")
def others(upstream: Upstream) -> Iterator[GatewayProcess]:
    """Routes to a vLLM, a server of unknown kind, one that was said to rerank only, and both kinds."""

    def target(name: str, backend: str, **fields: Any) -> dict[str, Any]:
        return {"name": name, "backend": backend, "url": upstream.target(name).url, **fields}

    routes = {
        "native": {"targets": [target("native", "vllm", model="served")], "retry": {"attempts": 1}},
        "plain": {"targets": [target("plain", "openai")]},
        "tgi": {"targets": [target("counting", "tgi")]},
        "ranker": {"targets": [target("ranker", "openai", endpoints=["rerank"])]},
        "mixed": {"targets": [target("mixed-plain", "openai"), target("mixed-native", "vllm")]},
    }
    with gateway_process(json.dumps({"routes": routes})) as started:
        yield started


@pytest.fixture(scope="module")
def caller(others: GatewayProcess) -> str:
    return others.issue().secret


@pytest.fixture
def native(upstream: Upstream) -> Target:
    target = upstream.target("native")
    target.restore()
    return target


def recorded(name: str) -> bytes:
    return read_capture(GOLDEN / "vllm" / f"{name}.txt").body


@pytest.mark.parametrize(
    ("path", "reaches", "body", "answer", "tokens"),
    [
        ("/v1/messages", "/v1/messages", MESSAGES, "vllm-messages", (33, 8)),
        ("/v1/messages?beta=true", "/v1/messages", MESSAGES, "vllm-messages", (33, 8)),
        ("/v1/messages/count_tokens", "/v1/messages/count_tokens", MESSAGES, "vllm-messages-count-tokens", (0, 0)),
        ("/v1/responses", "/v1/responses", RESPONSES, "vllm-responses", (33, 8)),
        ("/v1/rerank", "/v1/rerank", {"query": "a", "documents": ["b", "c"]}, "vllm-pooling-rerank", (3, 0)),
        ("/rerank", "/v1/rerank", {"query": "a", "documents": ["b", "c"]}, "vllm-pooling-rerank", (3, 0)),
        ("/v2/rerank", "/v1/rerank", {"query": "a", "documents": ["b", "c"]}, "vllm-pooling-rerank", (3, 0)),
        ("/score", "/v1/score", {"text_1": "a", "text_2": "b"}, "vllm-pooling-score", (2, 0)),
        ("/v1/score", "/v1/score", {"text_1": "a", "text_2": "b"}, "vllm-pooling-score", (2, 0)),
        ("/tokenize", "/tokenize", {"prompt": "Hello world"}, "vllm-tokenize", (0, 0)),
        ("/detokenize", "/detokenize", {"tokens": [1, 2]}, "vllm-detokenize", (0, 0)),
    ],
)
def test_each_reaches_its_own_and_comes_back_as_it_was(
    others: GatewayProcess,
    caller: str,
    native: Target,
    path: str,
    reaches: str,
    body: dict[str, Any],
    answer: str,
    tokens: tuple[int, int],
) -> None:
    native.script = whole(recorded(answer))
    reply = ask(others, {"model": "native", **body}, caller, path)
    assert (reply.status, reply.body) == (200, recorded(answer))
    assert (native.calls[0].path, native.calls[0].json()["model"]) == (reaches, "served")
    line = record(others, reply.header("x-request-id"))
    used = line["usage"]
    assert line["endpoint"] == reaches.removeprefix("/v1/").removeprefix("/")
    assert (used["prompt_tokens"], used["completion_tokens"]) == tokens


@pytest.mark.parametrize(
    ("path", "body", "answer", "tokens"),
    [
        ("/v1/messages", MESSAGES, "vllm-messages-stream", (33, 4)),
        ("/v1/responses", RESPONSES, "vllm-responses-stream", (33, 4)),
    ],
)
def test_streams_come_back_as_they_were(
    others: GatewayProcess,
    caller: str,
    native: Target,
    path: str,
    body: dict[str, Any],
    answer: str,
    tokens: tuple[int, int],
) -> None:
    native.script = stream(recorded(answer))
    reply = ask(others, {"model": "native", "stream": True, **body}, caller, path)
    assert (reply.status, reply.body) == (200, recorded(answer))
    line = record(others, reply.header("x-request-id"))
    used = line["usage"]
    assert (used["prompt_tokens"], used["completion_tokens"], used["source"]) == (*tokens, "upstream")


def cut(answer: str, at: bytes) -> bytes:
    """A recorded stream without its events from the one of this type on."""
    return recorded(answer).partition(b"event: " + at)[0]


@pytest.mark.parametrize(
    ("path", "body", "answer", "last"),
    [
        ("/v1/messages", MESSAGES, "vllm-messages-stream", b"message_stop"),
        ("/v1/messages", MESSAGES, "vllm-messages-stream", b"content_block_stop"),
        ("/v1/responses", RESPONSES, "vllm-responses-stream", b"response.completed"),
        ("/v1/responses", RESPONSES, "vllm-responses-stream", b"response.output_text.done"),
    ],
)
@pytest.mark.parametrize("ending", ["well", "cut", "done"])
def test_a_stream_that_breaks_ends_in_an_error_of_its_dialect(
    others: GatewayProcess,
    caller: str,
    native: Target,
    path: str,
    body: dict[str, Any],
    answer: str,
    last: bytes,
    ending: str,
) -> None:
    sent = cut(answer, last)
    more = {"well": (), "cut": (Act.CUT,), "done": (b"data: [DONE]\n\n",)}[ending]
    native.script = stream(sent, *more)
    reply = ask(others, {"model": "native", "stream": True, **body}, caller, path)
    assert reply.body.startswith(sent)
    rest = reply.body[len(sent) :]
    assert rest.startswith(b"event: error\ndata: ") and b"DONE" not in rest
    error = json.loads(rest.partition(b"data: ")[2])
    assert error["type"] == "error" and error["error"]["message"]
    if path == "/v1/messages":
        assert error["error"]["type"] == "api_error"
    else:
        assert (error["code"], error["message"]) == ("upstream_disconnected", error["error"]["message"])


def test_an_error_event_before_output_is_a_status(others: GatewayProcess, caller: str, native: Target) -> None:
    start = cut("vllm-messages-stream", b"content_block_delta")
    failure = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n'
    native.scripts = [stream(start, failure)]
    reply = ask(others, {"model": "native", "stream": True, **MESSAGES}, caller, "/v1/messages")
    assert (reply.status, reply.json()["error"]["type"]) == (503, "overloaded_error")
    native.restore()


def last_data(reply: Reply) -> bytes:
    """The data of a stream's last event."""
    return reply.body.rstrip().rpartition(b"data: ")[2]


def anthropic_error(reply: Reply) -> tuple[int, str]:
    said = reply.json()
    assert said["type"] == "error" and said["error"]["message"]
    assert said["request_id"] == reply.header("request-id") == reply.header("x-request-id")
    return reply.status, said["error"]["type"]


def test_errors_are_anthropics_on_its_paths(others: GatewayProcess, caller: str, native: Target) -> None:
    path = "/v1/messages"
    assert anthropic_error(ask(others, {"model": "native"}, "tl_wrong", path)) == (401, "authentication_error")
    assert anthropic_error(ask(others, {"model": "none"}, caller, path)) == (404, "not_found_error")
    assert anthropic_error(ask(others, b"{", caller, path)) == (400, "invalid_request_error")
    assert anthropic_error(ask(others, None, caller, path, method="GET")) == (405, "invalid_request_error")
    limited = others.issue(limit=Limit(rpm=1)).secret
    ask(others, {"model": "native", **MESSAGES}, limited, path)
    assert anthropic_error(ask(others, {"model": "native", **MESSAGES}, limited, path)) == (429, "rate_limit_error")


def test_the_key_may_come_as_anthropics_clients_send_it(others: GatewayProcess, caller: str, native: Target) -> None:
    native.script = whole(recorded("vllm-messages"))
    headers = {"x-api-key": caller, "anthropic-version": "2026-10-21", "anthropic-beta": "no-such-beta-2026"}
    body = {"model": "native", **MESSAGES, "unknown_key": {"a": 1.50}}
    reply = ask(others, body, None, "/v1/messages?beta=true", headers=headers)
    assert (reply.status, native.calls[0].json()["unknown_key"]) == (200, {"a": 1.50})


def test_the_engines_own_refusal_goes_on(others: GatewayProcess, caller: str, native: Target) -> None:
    said = b'{"type":"error","error":{"type":"invalid_request_error","message":"max_tokens is required"}}'
    native.script = whole(said, 400)
    reply = ask(others, {"model": "native", **MESSAGES}, caller, "/v1/messages")
    assert (reply.status, reply.body) == (400, said)


def test_background_is_refused_by_name(others: GatewayProcess, caller: str, native: Target) -> None:
    reply = ask(others, {"model": "native", "background": True, **RESPONSES}, caller, "/v1/responses")
    assert (reply.status, reply.error["param"]) == (400, "background")
    assert not native.calls


@pytest.mark.parametrize(
    ("model", "path"),
    [("plain", "/v1/rerank"), ("plain", "/tokenize"), ("ranker", "/v1/chat/completions"), ("ranker", "/v1/score")],
)
def test_what_no_target_can_do_is_refused_by_name(
    others: GatewayProcess, caller: str, upstream: Upstream, model: str, path: str
) -> None:
    target = upstream.target(model)
    target.restore()
    reply = ask(others, {"model": model}, caller, path)
    assert (reply.status, reply.error["code"]) == (404, "endpoint_not_served")
    assert repr(model) in reply.error["message"]
    assert repr(path.removeprefix("/v1").removeprefix("/")) in reply.error["message"]
    assert not target.calls


def test_an_endpoint_that_the_table_names_is_asked_for(others: GatewayProcess, caller: str, upstream: Upstream) -> None:
    target = upstream.target("ranker")
    target.restore()
    target.script = whole(recorded("vllm-pooling-rerank"))
    reply = ask(others, {"model": "ranker", "query": "a", "documents": ["b", "c"]}, caller, "/rerank")
    assert (reply.status, target.calls[0].path) == (200, "/v1/rerank")


def test_a_call_goes_only_where_it_can_be_answered(others: GatewayProcess, caller: str, upstream: Upstream) -> None:
    plain, able = upstream.target("mixed-plain"), upstream.target("mixed-native")
    plain.restore()
    able.restore()
    able.script = whole(recorded("vllm-tokenize"))
    for number in range(6):
        assert ask(others, {"model": "mixed", "prompt": f"{number}"}, caller, "/tokenize").status == 200
    assert (len(plain.calls), len(able.calls)) == (0, 6)


def test_keys_are_for_endpoints_too(others: GatewayProcess, native: Target) -> None:
    narrow = others.issue(endpoints=("messages*",)).secret
    native.script = whole(recorded("vllm-messages-count-tokens"))
    counted = ask(others, {"model": "native", **MESSAGES}, narrow, "/v1/messages/count_tokens")
    refused = ask(others, {"model": "native", **RESPONSES}, narrow, "/v1/responses")
    assert (counted.status, refused.status, refused.error["code"]) == (200, 403, "endpoint_not_allowed")


def test_tokens_are_counted_by_servers_that_tokenize_chats(
    others: GatewayProcess, caller: str, upstream: Upstream
) -> None:
    target = upstream.target("counting")
    target.restore()
    target.script = whole({"tokenize_response": [{"id": 1}] * 7, "templated_text": "x"})
    reply = ask(others, {"model": "tgi", **MESSAGES}, caller, "/v1/messages/count_tokens")
    assert (reply.status, reply.json(), target.calls[0].path) == (200, {"input_tokens": 7}, "/chat_tokenize")
    line = record(others, reply.header("x-request-id"))
    assert (line["usage"]["prompt_tokens"], line["usage"]["source"]) == (0, "upstream")
    refused = ask(others, {"model": "plain", **MESSAGES}, caller, "/v1/messages/count_tokens")
    assert (refused.status, refused.json()["error"]["type"]) == (404, "not_found_error")


@pytest.fixture
def plain(upstream: Upstream) -> Target:
    target = upstream.target("plain")
    target.restore()
    return target


@pytest.mark.parametrize(("path", "body"), [("/v1/messages", MESSAGES), ("/v1/responses", RESPONSES)])
def test_a_server_without_the_endpoint_is_asked_for_a_chat(
    others: GatewayProcess, caller: str, plain: Target, path: str, body: dict[str, Any]
) -> None:
    whole_reply = ask(others, {"model": "plain", **body}, caller, path)
    streamed = ask(others, {"model": "plain", "stream": True, **body}, caller, path)
    assert (whole_reply.status, streamed.status) == (200, 200)
    assert {call.path for call in plain.calls} == {"/v1/chat/completions"}
    said = whole_reply.json()
    part = said["content"][0] if path == "/v1/messages" else said["output"][0]["content"][0]
    assert part["text"] == "Hello"
    assert (said["usage"]["input_tokens"], said["usage"]["output_tokens"]) == (5, 2)
    last = json.loads(last_data(streamed))
    assert last["type"] == ("message_stop" if path == "/v1/messages" else "response.completed")
    line = record(others, streamed.header("x-request-id"))
    assert (line["usage"]["prompt_tokens"], line["endpoint"]) == (5, path.removeprefix("/v1/"))


@pytest.mark.parametrize(("path", "body"), [("/v1/messages", MESSAGES), ("/v1/responses", RESPONSES)])
def test_a_translated_stream_that_breaks_ends_in_an_error_of_its_dialect(
    others: GatewayProcess, caller: str, plain: Target, path: str, body: dict[str, Any]
) -> None:
    plain.script = stream(event("Hel"), event("lo"), Act.CUT)
    reply = ask(others, {"model": "plain", "stream": True, **body}, caller, path)
    last = json.loads(last_data(reply))
    assert last["type"] == "error" and last["error"]["message"]
