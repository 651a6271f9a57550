"""Endpoints beside the common three, on what real servers said: bytes unchanged, usage, and how streams end."""

from __future__ import annotations

import json

import pytest
from harness.captures import GOLDEN, Capture, read_capture

from backends import sse
from backends.api import Adapter, Call, Chunk, RequestRefused, Target, UpstreamFault, Usage
from backends.asked import read
from backends.body import Body
from backends.capabilities import Capabilities, native
from backends.endpoints import PATHS, Endpoint
from backends.llamacpp import LlamaCpp
from backends.messages import Messages
from backends.native import natives
from backends.responses import Responses
from backends.vllm import VLLM

TARGET = Target("t", "http://t", model="served/name", api_key="secret-of-the-target")
ADAPTERS = {"vllm": VLLM(), "llamacpp": LlamaCpp()}
USAGE = {
    "vllm-messages": Usage(33, 8),
    "vllm-messages-stream": Usage(33, 4),
    "vllm-messages-count-tokens": Usage(),
    "vllm-responses": Usage(33, 8, 0),
    "vllm-responses-stream": Usage(33, 4, 0),
    "vllm-pooling-rerank": Usage(3, 0),
    "vllm-pooling-score": Usage(2, 0),
    "vllm-tokenize": Usage(),
    "vllm-tokenize-chat": Usage(),
    "vllm-detokenize": Usage(),
    "llamacpp-messages": Usage(33, 8, 32),
    "llamacpp-messages-stream": Usage(33, 4, 32),
    "llamacpp-messages-count-tokens": Usage(),
    "llamacpp-responses": Usage(33, 8, 26),
    "llamacpp-responses-stream": Usage(33, 4, 32),
    "llamacpp-tokenize": Usage(),
    "llamacpp-detokenize": Usage(),
}


def capture(name: str) -> Capture:
    return read_capture(GOLDEN / name.partition("-")[0] / f"{name}.txt")


def call_of(found: Capture) -> Call:
    endpoint = PATHS[found.request_line.split()[1]]
    return Call("call-1", endpoint, found.asked["model"], Body(found.request), stream=found.streamed)


def speaker(name: str, endpoint: Endpoint) -> Adapter:
    own = native(Capabilities.of(ADAPTERS[name.partition("-")[0]]))
    return own[endpoint].adapter if endpoint in own else natives(endpoint)[endpoint]


def chunks(reader: Messages | Responses, call: Call, stream: bytes) -> list[Chunk]:
    return [chunk for event in sse.Splitter().feed(stream) for chunk in reader.chunk(call, event)]


@pytest.mark.parametrize("name", [name for name in USAGE if "stream" not in name])
def test_a_whole_answer_goes_on_as_it_is(name: str) -> None:
    found = capture(name)
    call = call_of(found)
    reply = speaker(name, call.endpoint).reply(call, found.body)
    assert (reply.body, reply.usage) == (found.body, USAGE[name])


@pytest.mark.parametrize("name", [name for name in USAGE if "stream" in name])
def test_a_stream_goes_on_as_it_is(name: str) -> None:
    found = capture(name)
    call = call_of(found)
    seen = chunks(Messages() if call.endpoint == "messages" else Responses(), call, found.body)
    assert b"".join(chunk.data for chunk in seen) == found.body
    assert [chunk.usage for chunk in seen if chunk.usage][-1] == USAGE[name]
    assert sum(chunk.tokens for chunk in seen) == 4
    assert (seen[-1].done, sum(chunk.finished for chunk in seen)) == (True, 1)
    first = next(index for index, chunk in enumerate(seen) if chunk.tokens)
    assert all(chunk.opening for chunk in seen[:first])


@pytest.mark.parametrize("name", USAGE)
def test_only_the_model_is_written_anew(name: str) -> None:
    found = capture(name)
    call = call_of(found)
    asked = speaker(name, call.endpoint).request(call, TARGET)
    expected = {**found.asked, "model": "served/name"}
    if call.endpoint == "responses":
        expected["store"] = False
    assert json.loads(asked.body) == expected
    assert asked.headers["authorization"] == "Bearer secret-of-the-target"
    assert asked.path == ("/" if "tokenize" in call.endpoint else "/v1/") + call.endpoint


def event(kind: str, **fields: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), json.dumps({"type": kind, **fields}).encode())


A_CALL = Call("c", "messages", "m", Body(b'{"model":"m","stream":true}'), stream=True)


def test_a_message_without_its_last_event_has_not_ended() -> None:
    reader = Messages()
    seen = chunks(reader, A_CALL, event("message_delta", delta={"stop_reason": "end_turn"}))
    assert sum(chunk.finished for chunk in seen) == 0
    assert sum(chunk.finished for chunk in chunks(reader, A_CALL, event("message_stop"))) == 1


def test_a_last_event_without_a_reason_ends_nothing() -> None:
    (end,) = chunks(Messages(), A_CALL, event("message_stop"))
    assert (end.done, end.finished) == (True, 0)


def test_pings_promise_nothing() -> None:
    (ping,) = chunks(Messages(), A_CALL, event("ping"))
    assert ping.comment


def test_a_tool_that_is_called_is_output() -> None:
    (start,) = chunks(Messages(), A_CALL, event("content_block_start", content_block={"type": "tool_use", "id": "t"}))
    (item,) = chunks(Responses(), A_CALL, event("response.output_item.added", item={"type": "function_call"}))
    assert not start.opening and not item.opening


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"type": "overloaded_error", "message": "m"}, 503),
        ({"type": "rate_limit_error", "message": "m"}, 429),
        ({"type": "invalid_request_error", "message": "m"}, 400),
        ({"message": "m", "type": "InternalServerError", "code": 500}, 500),
    ],
)
def test_errors_within_messages(error: object, status: int) -> None:
    with pytest.raises(UpstreamFault) as fault:
        chunks(Messages(), A_CALL, event("error", error=error))
    assert (fault.value.status, fault.value.message) == (status, "m")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (event("response.failed", response={"error": {"code": "server_error", "message": "m"}}), 500),
        (event("response.failed", response={"error": {"code": "rate_limit_exceeded", "message": "m"}}), 429),
        (event("error", code="server_error", message="m"), 500),
        (event("error", error={"code": "invalid_prompt", "message": "m"}), 400),
        (b'data: {"error": {"message": "m", "code": 500}}\n\n', 500),
    ],
)
def test_errors_within_responses(data: bytes, status: int) -> None:
    with pytest.raises(UpstreamFault) as fault:
        chunks(Responses(), A_CALL, data)
    assert (fault.value.status, fault.value.message) == (status, "m")


def test_a_response_that_failed_is_no_answer() -> None:
    call = Call("c", "responses", "m", Body(b'{"model":"m"}'))
    failed = {"status": "failed", "error": {"code": "server_error", "message": "m"}, "output": []}
    with pytest.raises(UpstreamFault):
        natives("responses")["responses"].reply(call, json.dumps(failed).encode())


def test_work_in_the_background_is_refused_by_name() -> None:
    call = Call("c", "responses", "m", Body(b'{"model":"m","background":true}'))
    with pytest.raises(RequestRefused) as refused:
        natives("responses")["responses"].request(call, TARGET)
    assert refused.value.param == "background"


def test_what_is_kept_at_the_server_is_what_the_client_says() -> None:
    call = Call("c", "responses", "m", Body(b'{"model":"m","store":true}'))
    asked = natives("responses")["responses"].request(call, Target("t", "http://t"))
    assert asked.body == b'{"model":"m","store":true}'


def test_a_server_without_the_endpoint_is_named() -> None:
    found = capture("vllm-rerank")
    status, body = natives("rerank")["rerank"].refusal(call_of(found), 404, found.body)  # type: ignore[attr-defined]
    assert status == 404 and b"rerank" in body


def test_a_refusal_in_openais_words_is_put_into_anthropics() -> None:
    said = b'{"error":{"message":"no messages","type":"Bad Request","param":null,"code":400}}'
    status, body = natives("messages")["messages"].refusal(A_CALL, 400, said)  # type: ignore[attr-defined]
    assert json.loads(body) == {"type": "error", "error": {"type": "invalid_request_error", "message": "no messages"}}
    assert status == 400


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 9000}}


@pytest.mark.parametrize(
    ("endpoint", "body", "media", "most_text"),
    [
        ("messages", {"messages": [{"role": "user", "content": [IMAGE]}]}, 1, 300),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [IMAGE]}]}]},
            1,
            300,
        ),
        (
            "responses",
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:," + "A" * 9000}]}]},
            1,
            300,
        ),
        ("rerank", {"query": "q", "documents": ["a", "b"]}, 0, 300),
    ],
)
def test_images_are_no_text(endpoint: str, body: object, media: int, most_text: int) -> None:
    raw = Body(json.dumps(body).encode())
    asked = read(endpoint, len(raw.raw), raw.fields)
    assert asked.media == media and asked.text < most_text


@pytest.mark.parametrize(
    ("endpoint", "body"),
    [
        ("messages", {"system": "s", "messages": [{"role": "user", "content": "q"}], "max_tokens": 7}),
        ("responses", {"instructions": "s", "input": [{"role": "user", "content": "q"}], "max_output_tokens": 7}),
    ],
)
def test_a_conversation_is_known_by_its_beginning(endpoint: Endpoint, body: dict[str, object]) -> None:
    raw = json.dumps(body).encode()
    call = Call("c", endpoint, "m", Body(raw))
    assert call.conversation.shared is not None and b'"s"' in call.conversation.shared
    assert (call.conversation.question, call.asked.output) == (b'"q"', 7)


@pytest.mark.parametrize("reader", [Messages, Responses])
@pytest.mark.parametrize(
    "usage",
    [
        *({"input_tokens": 3, "output_tokens": count} for count in (-1, 1 << 60, 1 << 80, 1.5, "x", [])),
        {"input_tokens": 1 << 60, "output_tokens": 3},
        {
            "input_tokens": 3,
            "output_tokens": 3,
            "cache_read_input_tokens": -1,
            "input_tokens_details": {"cached_tokens": -1},
        },
        *(None, [], "", False, {}),
    ],
)
def test_counts_that_no_answer_can_have_are_none(reader: type[Messages | Responses], usage: object) -> None:
    assert reader.usage_of(json.dumps({"usage": usage}).encode()) is None
