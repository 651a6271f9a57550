"""The same request straight to vLLM and through the gateway: the same bytes come back, ids and times aside."""

import json
import os
import re
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, NamedTuple

import httpx
import pytest
from harness.captures import GOLDEN, Capture, captures, read_capture

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400), pytest.mark.usefixtures("idle")]

NO_GATEWAY = os.environ.get("TEST_VLLM_THROUGH") == "direct"
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"

Json = dict[str, Any]


class Request(NamedTuple):
    body: bytes
    path: str = CHAT
    method: str = "POST"
    content_type: str | None = "application/json"


def chat(prompt: str = "Say hello in five words.", tokens: int = 6, **more: object) -> Request:
    messages = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": prompt}]
    body = {"model": "smollm2-135m", "messages": messages, "max_tokens": tokens, "temperature": 0, **more}
    return Request(json.dumps({name: value for name, value in body.items() if value is not ...}).encode())


def completion(prompt: object, tokens: int = 5, **more: object) -> Request:
    body = {"model": "smollm2-135m", "prompt": prompt, "max_tokens": tokens, "temperature": 0, **more}
    return Request(json.dumps(body).encode(), COMPLETIONS)


CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "Get the weather for a city", "parameters": CITY}
TOOLS: Json = {"tools": [{"type": "function", "function": WEATHER}]}
NAMED: Json = {**TOOLS, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}}
REQUIRED: Json = {**TOOLS, "tool_choice": "required"}
ASKED = "What is the weather in Paris?"
CALLED = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
TOOL_TURN = [
    {"role": "user", "content": ASKED},
    {"role": "assistant", "content": None, "tool_calls": [CALLED]},
    {"role": "tool", "tool_call_id": "call_1", "content": "18 degrees"},
]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMA: Json = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
}
SAMPLED: Json = {"temperature": 1, "seed": 7}
USAGE: Json = {"stream": True, "stream_options": {"include_usage": True}}
LAID_OUT = b"""\
{
  "max_tokens": 4,\t"temperature": 0, "stream" : true,
  "messages": [ {"content": "Gr\xc3\xbc\xc3\x9fe \\ud83d\\ude80 \\"model\\": \\"x\\"", "role": "user"} ],
  "metadata": {"model": "not this one", "stream": false, "stream_options": null},
  "model" : "smollm2-135m"
}
"""

CASES = {
    "chat": chat(),
    "chat, sampled": chat(**SAMPLED),
    "chat, max_completion_tokens": chat(max_tokens=..., max_completion_tokens=3),
    "chat, content parts": chat(messages=[{"role": "user", "content": [{"type": "text", "text": "Say hi"}]}]),
    "chat, unknown field": chat(an_unknown_field={"a": [1, None, "\u00fc"]}),
    "chat, ends by itself": chat("Say only: hi", tokens=40),
    "chat, n=2": chat(n=2, **SAMPLED),
    "chat, logprobs": chat(tokens=3, logprobs=True, top_logprobs=2),
    "chat, stop": chat(tokens=24, stop=["."]),
    "chat, tools auto": chat(ASKED, tokens=12, **TOOLS, tool_choice="auto"),
    "chat, tools required": chat(messages=TOOL_TURN[:1], tokens=96, **REQUIRED),
    "chat, tools named": chat(messages=TOOL_TURN[:1], tokens=64, **NAMED),
    "chat, tool result": chat(messages=TOOL_TURN, **TOOLS),
    "chat, json_object": chat("A person as JSON.", tokens=16, response_format={"type": "json_object"}),
    "chat, json_schema": chat("Give a person as JSON.", tokens=40, **SCHEMA),
    "chat, stream: false": chat(stream=False),
    "chat, token ids": chat(return_token_ids=True),
    "chat, numbers as vLLM takes them": chat(max_tokens="4", n=1.0, temperature="0"),
    "chat, large": chat(an_unknown_field="x" * 200_000),
    "stream": chat(stream=True),
    "stream, sampled": chat(stream=True, **SAMPLED),
    "stream, ends by itself": chat("Say only: hi", tokens=40, stream=True),
    "stream, stop": chat(tokens=24, stream=True, stop=["."]),
    "stream, usage": chat(**USAGE),
    "stream, usage refused": chat(stream=True, stream_options={"include_usage": False}),
    "stream, no options": chat(stream=True, stream_options={}),
    "stream, null options": chat(stream=True, stream_options=None),
    "stream, continuous usage": chat(
        stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}
    ),
    "stream, continuous usage alone": chat(stream=True, stream_options={"continuous_usage_stats": True}),
    "stream, n=2": chat(tokens=3, n=2, stream=True, **SAMPLED),
    "stream, n=2, usage": chat(tokens=3, n=2, **USAGE, **SAMPLED),
    "stream, logprobs": chat(tokens=3, stream=True, logprobs=True, top_logprobs=1),
    "stream, tools auto": chat(ASKED, tokens=12, stream=True, **TOOLS),
    "stream, tools required": chat(messages=TOOL_TURN[:1], tokens=96, stream=True, **REQUIRED),
    "stream, tools named, usage": chat(messages=TOOL_TURN[:1], tokens=64, **USAGE, **NAMED),
    "stream, json_schema": chat("Give a person as JSON.", tokens=40, stream=True, **SCHEMA),
    "stream, token ids": chat(stream=True, return_token_ids=True),
    "stream, body laid out otherwise": Request(LAID_OUT),
    "completions": completion("The capital of France is"),
    "completions, n=2": completion("The capital of France is", n=2, **SAMPLED),
    "completions, batch, logprobs": completion(["a b c", "1 2 3"], tokens=2, logprobs=1, echo=False),
    "completions, echo, logprobs": completion("The capital", tokens=1, logprobs=1, echo=True),
    "completions, token ids": completion([504, 3575, 282], tokens=2),
    "completions, stream": completion("The capital of France is", stream=True),
    "completions, stream, usage": completion("The capital of France is", **USAGE),
    "completions, stream, batch": completion(["a b c", "1 2 3"], tokens=1, stream=True),
    "embeddings": Request(b'{"model": "smollm2-135m", "input": ["hello world"]}', "/v1/embeddings"),
    "err, streamed, missing messages": Request(b'{"model": "smollm2-135m", "stream": true}'),
    "err, completions, missing prompt": Request(b'{"model": "smollm2-135m"}', COMPLETIONS),
}

# Recorded errors that vLLM answers and the gateway passes on.
RECORDED = (
    "bad-role",
    "context-too-long",
    "context-too-long-stream",
    "empty-messages",
    "image-on-text-model",
    "json-schema-invalid",
    "max-tokens-too-large",
    "max-tokens-zero",
    "messages-bad-type",
    "missing-messages",
    "n-too-large",
    "no-content-type",
    "stream-options-without-stream",
    "temperature",
    "tool-choice-unknown",
    "top-logprobs",
)

# Recorded errors that the gateway answers itself, and the status it gives them.
OWN = {
    "unknown-model": 404,
    "unknown-model-stream": 404,
    "unknown-model-responses-api": 404,
    "unknown-model-messages-api": 404,
    "overload-messages-api": 404,  # not served, full or not
    "invalid-json": 400,
    "get-chat": 405,
}

# What the gateway has to read, it has to refuse when it is of another type, also where vLLM would guess what is meant.
UNREADABLE = {
    "stream is a number": chat(stream=1),
    "stream_options is a string": chat(stream=True, stream_options="yes"),
    "model is a list": chat(model=["smollm2-135m"]),
}

# With the engine full: test_overload.py.
ELSEWHERE = ("overload-queue-full", "overload-queue-full-stream")


def recorded(name: str) -> tuple[Capture, Request]:
    """A recorded exchange, and its request as it was sent: whole, and with its own content type."""
    path = GOLDEN / "vllm" / f"vllm-err-{name}.txt"
    capture = read_capture(path)
    method, target = capture.request_line.split()
    content_type = re.search(r"^> Content-Type: (.+)$", path.read_text(), re.MULTILINE)
    return capture, Request(uncut(capture.request), target, method, content_type and content_type[1])


def uncut(body: bytes) -> bytes:
    """Put back what was cut out of `word word word ...`."""
    cut = re.search(rb"\.\.\.\[(\d+) characters cut\]\.\.\.", body)
    if cut is None:
        return body
    before = body[: cut.start()]
    words = before[before.rindex(b'"') + 1 :]
    missing = (b"word " * (len(words) + int(cut[1])))[len(words) :][: int(cut[1])]
    return before + missing + body[cut.end() :]


def send(towards: httpx.Client, request: Request) -> httpx.Response:
    headers = {"content-type": request.content_type} if request.content_type else {}
    return towards.request(request.method, request.path, content=request.body, headers=headers)


def masked(body: bytes) -> bytes:
    """Ids by order of appearance, so that one id in all events of a stream still shows; times as zero."""
    names: dict[bytes, bytes] = {}

    def named(found: re.Match[bytes]) -> bytes:
        return names.setdefault(found[0], b'"id":"%s<%d>"' % (found[1], len(names)))

    body = re.sub(rb'"id":"(chatcmpl-tool-|chatcmpl-|cmpl-)[^"]*"', named, body)
    return re.sub(rb'"created":\d+', b'"created":0', body)


class Answer(NamedTuple):
    """What has to be the same."""

    status: int
    content_type: str | None
    body: bytes

    @property
    def events(self) -> list[bytes]:
        is_stream = str(self.content_type).startswith("text/event-stream")
        return self.body.split(b"\n\n") if is_stream else []


def compared(answer: httpx.Response) -> Answer:
    return Answer(answer.status_code, answer.headers.get("content-type"), masked(answer.content))


def difference(expected: Answer, got: Answer) -> str:
    """The heads, or the first event that differs, or the bodies."""
    if got[:2] != expected[:2]:
        return f"vLLM:    {expected}\ngateway: {got}"
    pairs = zip_longest(expected.events or [expected.body], got.events or [got.body])
    number, (theirs, ours) = next((number, pair) for number, pair in enumerate(pairs) if pair[0] != pair[1])
    return f"part {number}:\nvLLM:    {theirs!r}\ngateway: {ours!r}"


def compare(
    name: str, request: Request, vllm: httpx.Client, gateway: httpx.Client, record: Callable[..., None]
) -> None:
    expected = compared(send(vllm, request))
    got = compared(send(gateway, request))
    if expected.events:
        assert expected.body.endswith(b"data: [DONE]\n\n")
    verdict = "equal" if got == expected else "equal but for the fingerprint" if got == bare(expected) else "DIFFERENT"
    record("transparency", name, expected.status, len(expected.body), len(expected.events[1:]) or "", verdict)
    if verdict == "DIFFERENT":
        again = compared(send(vllm, request))
        assert again == expected, "vLLM itself answers differently from one time to the next"
        pytest.fail(difference(expected, got), pytrace=False)


def bare(expected: Answer) -> Answer:
    """The one known loss: the fingerprint, in streams of several choices whose client did not ask for the usage.

    vLLM puts it beside each finish_reason, unless a chunk with the usage will follow: then there. The gateway, which
    meters, has that chunk follow in every stream and takes it out again; it puts the fingerprint back where there is
    one choice, as the end of one of several cannot wait for the end of the others.
    """
    if not expected.events or b'"choices":[]' in expected.body or b'"index":1' not in expected.body:
        return expected
    return expected._replace(body=re.sub(rb',"system_fingerprint":"[^"]*"', b"", expected.body))


@pytest.mark.parametrize("name", CASES)
def test_an_answer_is_passed_on_byte_for_byte(
    vllm: httpx.Client, gateway: httpx.Client, record: Callable[..., None], name: str
) -> None:
    compare(name, CASES[name], vllm, gateway, record)


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_error_is_passed_on_byte_for_byte(
    vllm: httpx.Client, gateway: httpx.Client, record: Callable[..., None], name: str
) -> None:
    capture, request = recorded(name)
    if capture.status == 200:  # not an error to vLLM after all: an answer, to be made repeatable
        request = request._replace(body=json.dumps({**capture.asked, "temperature": 0}).encode())
    else:
        direct = send(vllm, request)
        assert (direct.status_code, direct.content) == (capture.status, capture.body)
    compare(f"err-{name}", request, vllm, gateway, record)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.skipif(NO_GATEWAY, reason="TEST_VLLM_THROUGH=direct")
def test_the_gateway_answers_what_never_reaches_vllm(
    gateway: httpx.Client, record: Callable[..., None], name: str
) -> None:
    capture, request = recorded(name)
    message = refused(f"err-{name}", send(gateway, request), OWN[name], record)
    if name in ("unknown-model", "unknown-model-stream"):
        assert capture.asked["model"] in message
        assert "smollm2-135m" in message


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.skipif(NO_GATEWAY, reason="TEST_VLLM_THROUGH=direct")
def test_the_gateway_refuses_what_it_cannot_read(gateway: httpx.Client, record: Callable[..., None], name: str) -> None:
    refused(f"err, {name}", send(gateway, UNREADABLE[name]), 400, record)


def refused(name: str, answer: httpx.Response, status: int, record: Callable[..., None]) -> str:
    """An error in OpenAI's envelope; its message is returned."""
    record("transparency", name, answer.status_code, len(answer.content), "", f"its own {answer.status_code}")
    assert answer.status_code == status, answer.content
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return str(error["message"])


def test_every_recorded_error_is_in_one_of_the_tables() -> None:
    names = {capture.name.removeprefix("vllm-err-") for capture in captures("vllm/vllm-err-*")}
    assert names == {*RECORDED, *OWN, *ELSEWHERE}
