"""The same request straight to vLLM and through the gateway: the same bytes come back, ids and times aside."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(300), pytest.mark.usefixtures("idle")]

GOLDEN = Path(__file__).parents[1] / "golden" / "vllm"
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
    "err, streamed, bad options": chat(stream=True, stream_options="yes"),
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

# With the engine full: test_overload.py.
ELSEWHERE = ("overload-queue-full", "overload-queue-full-stream")


class Capture(NamedTuple):
    request: Request
    status: int
    answer: bytes


def capture(name: str) -> Capture:
    """A recorded exchange, its request made whole again where the recording cut it."""
    sent, received = (GOLDEN / f"vllm-err-{name}.txt").read_bytes().split(b"\n< ", 1)
    head, _, body = sent.partition(b"\n>\n")
    method, path, *_ = head.decode().removeprefix("> ").split()
    content_type = re.search(r"^> Content-Type: (.+)$", head.decode(), re.MULTILINE)
    status, _, answer = received.partition(b"\n\n")
    request = Request(uncut(body.strip()), path, method, content_type and content_type[1])
    return Capture(request, int(status.split()[0]), answer.removesuffix(b"\n"))


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
    """What has to be the same; the events on their own, since they tell more in a failure than their bytes."""

    status: int
    content_type: str | None
    events: list[bytes]
    body: bytes


def compared(answer: httpx.Response) -> Answer:
    body = masked(answer.content)
    return Answer(answer.status_code, answer.headers.get("content-type"), body.split(b"\n\n"), body)


def compare(
    name: str, request: Request, vllm: httpx.Client, gateway: httpx.Client, record: Callable[..., None]
) -> None:
    expected = compared(send(vllm, request))
    got = compared(send(gateway, request))
    is_stream = str(expected.content_type).startswith("text/event-stream")
    if is_stream:
        assert expected.body.endswith(b"data: [DONE]\n\n")
    count = len(expected.events) - 1 if is_stream else ""
    verdict = "equal" if got == expected else "DIFFERENT"
    record("transparency", name, expected.status, len(expected.body), count, verdict)
    if got != expected:
        assert compared(send(vllm, request)) == expected, "vLLM itself answers differently from one time to the next"
    assert got == expected


@pytest.mark.parametrize("name", CASES)
def test_an_answer_is_passed_on_byte_for_byte(
    vllm: httpx.Client, gateway: httpx.Client, record: Callable[..., None], name: str
) -> None:
    compare(name, CASES[name], vllm, gateway, record)


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_error_is_passed_on_byte_for_byte(
    vllm: httpx.Client, gateway: httpx.Client, record: Callable[..., None], name: str
) -> None:
    recorded = capture(name)
    request = recorded.request
    if recorded.status == 200:  # not an error to vLLM after all: an answer, to be made repeatable
        request = request._replace(body=json.dumps({**json.loads(request.body), "temperature": 0}).encode())
    else:
        direct = send(vllm, request)
        assert (direct.status_code, direct.content) == (recorded.status, recorded.answer)
    compare(f"err-{name}", request, vllm, gateway, record)


@pytest.mark.parametrize("name", OWN)
def test_the_gateway_answers_what_never_reaches_vllm(
    vllm: httpx.Client, gateway: httpx.Client, record: Callable[..., None], name: str
) -> None:
    if gateway.base_url == vllm.base_url:
        pytest.skip("there is no gateway (TEST_VLLM_THROUGH=direct)")
    answer = send(gateway, capture(name).request)
    record("transparency", f"err-{name}", answer.status_code, len(answer.content), "", f"its own {answer.status_code}")
    assert answer.status_code == OWN[name], answer.content
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if name in ("unknown-model", "unknown-model-stream"):
        asked = json.loads(capture(name).request.body)["model"]
        assert asked in error["message"]
        assert "smollm2-135m" in error["message"]


def test_every_recorded_error_is_in_one_of_the_tables() -> None:
    recorded = {path.stem.removeprefix("vllm-err-") for path in GOLDEN.glob("vllm-err-*.txt")}
    assert recorded == {*RECORDED, *OWN, *ELSEWHERE}
