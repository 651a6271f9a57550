"""What the official `openai` package raises, and what it makes of tools, when the upstream is scripted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.gateway_process import GatewayProcess
from harness.lazily import Lazily
from harness.upstream import DONE, Act, Script, Target, Upstream, answer, event, stream, whole

from gateway.core.types import Limit

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletionMessageParam
else:
    openai = Lazily("openai")

GOLDEN = Path(__file__).parents[1] / "golden" / "vllm"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


def sdk(gateway: GatewayProcess, key: str, max_retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=gateway.url + "/v1", api_key=key, max_retries=max_retries, timeout=40)


@pytest.fixture
def client(gateway: GatewayProcess, key: str) -> Iterator[openai.OpenAI]:
    with sdk(gateway, key) as opened:
        yield opened


def captured(name: str) -> tuple[bytes, bytes]:
    """The request's and the answer's body of a recorded exchange."""
    sent, received = (GOLDEN / name).read_bytes().split(b"\n< ", 1)
    head, _, body = received.partition(b"\n\n")
    length = next((int(line[18:]) for line in head.split(b"\n") if line.startswith(b"< content-length: ")), None)
    return sent.partition(b"\n>\n")[2], body[:length]


@pytest.mark.parametrize(
    ("model", "script", "kind", "status"),
    [
        (
            "solo",
            whole({"error": {"message": "no", "type": "x", "param": "n", "code": 400}}, 400),
            "BadRequestError",
            400,
        ),
        ("solo", whole({"error": {"message": "no"}}, 422), "UnprocessableEntityError", 422),
        ("solo", whole({}, 500), "InternalServerError", 502),
        ("solo", whole({}, 503), "InternalServerError", 503),
        ("hasty", [Act.STALL], "InternalServerError", 504),
        ("dead", whole({}), "InternalServerError", 502),
        ("no-such", whole({}), "NotFoundError", 404),
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_errors_have_their_types(
    client: openai.OpenAI, upstream: Upstream, model: str, script: Script, kind: str, status: int, streamed: bool
) -> None:
    target = upstream.target(model)
    target.restore()
    target.script = script
    with pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(model=model, messages=MESSAGES, stream=streamed)
    error = raised.value
    assert type(error).__name__ == kind
    assert error.status_code == status
    assert error.request_id is not None
    assert error.request_id.startswith("tl-")
    assert error.message


def test_a_bad_key(gateway: GatewayProcess) -> None:
    with sdk(gateway, "sk-wrong") as client, pytest.raises(openai.AuthenticationError) as raised:
        client.chat.completions.create(model="solo", messages=MESSAGES)
    assert raised.value.code == "invalid_api_key"
    with sdk(gateway, "sk-wrong") as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_a_model_that_is_not_the_keys(gateway: GatewayProcess) -> None:
    issued = gateway.issue(models=("good",))
    with sdk(gateway, issued.secret) as client, pytest.raises(openai.PermissionDeniedError) as raised:
        client.embeddings.create(model="solo", input="x")
    assert raised.value.code == "model_not_allowed"


def test_a_limit(gateway: GatewayProcess, solo: Target) -> None:
    issued = gateway.issue(limit=Limit(rpm=1))
    with sdk(gateway, issued.secret) as client:
        granted = client.chat.completions.with_raw_response.create(model="solo", messages=MESSAGES)
        assert granted.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as raised:
            client.chat.completions.create(model="solo", messages=MESSAGES)
    assert raised.value.code == "rate_limit_exceeded"
    assert raised.value.type == "rate_limit_error"


def test_the_sdk_waits_as_told_and_comes_through(gateway: GatewayProcess, solo: Target) -> None:
    issued = gateway.issue(limit=Limit(rpm=120))
    with sdk(gateway, issued.secret, max_retries=3) as client:
        for _ in range(125):
            assert client.chat.completions.create(model="solo", messages=MESSAGES).choices
    assert len(solo.calls) == 125


@pytest.mark.parametrize("script", [whole({"error": {"message": "no"}}, 400)])
def test_the_sdk_does_not_repeat_what_is_useless(
    gateway: GatewayProcess, key: str, solo: Target, script: Script
) -> None:
    solo.script = script
    with sdk(gateway, key, max_retries=3) as client, pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="solo", messages=MESSAGES)
    assert len(solo.calls) == 1


@pytest.mark.parametrize(
    "end", [Act.CUT, b"data: {nonsense\n\n", b'data: {"error": {"message": "x", "code": 500}}\n\n']
)
def test_a_broken_stream_raises(client: openai.OpenAI, solo: Target, end: bytes | Act) -> None:
    solo.script = stream(event("Hel"), event("lo"), end, DONE)
    said = []
    with pytest.raises(openai.APIError) as raised:  # noqa: SIM117 - the events before the error matter
        with client.chat.completions.create(model="solo", messages=MESSAGES, stream=True) as events:
            for piece in events:
                said.append(piece.choices[0].delta.content)  # noqa: PERF401 - it ends in an error
    assert said == ["Hel", "lo"]
    assert "model server" in raised.value.message


def test_tools(client: openai.OpenAI, vllm: Target) -> None:
    asked, answered = captured("vllm-chat-tools-required.txt")
    vllm.script = whole(answered)
    fields = {name: value for name, value in json.loads(asked).items() if name != "model"}
    done = client.chat.completions.create(model="vllm", **fields)
    assert done.choices[0].message.tool_calls is not None
    called = done.choices[0].message.tool_calls[0]
    assert called.type == "function"
    assert called.function.name == "get_weather"
    assert json.loads(called.function.arguments) == "Paris"
    assert vllm.calls[0].json() == {**fields, "model": "Served/Name"}


def test_streamed_tools(client: openai.OpenAI, vllm: Target) -> None:
    asked, answered = captured("vllm-chat-tools-required-stream.txt")
    vllm.script = stream(*[part + b"\n\n" for part in answered.split(b"\n\n") if part])
    fields = {name: value for name, value in json.loads(asked).items() if name not in ("model", "stream")}
    arguments = ""
    with client.chat.completions.create(model="vllm", **fields, stream=True) as events:
        for piece in events:
            for call in piece.choices[0].delta.tool_calls or ():
                arguments += (call.function.arguments or "") if call.function else ""
    assert json.loads(arguments) == "Paris"


def test_scripted_embeddings(client: openai.OpenAI, solo: Target) -> None:
    data = [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}]
    counts = {"prompt_tokens": 2, "total_tokens": 2}
    solo.script = whole({"object": "list", "model": "m", "data": data, "usage": counts})
    found = client.embeddings.create(model="solo", input="x", encoding_format="float")
    assert found.data[0].embedding == [0.5, -0.25]
    assert solo.calls[0].path == "/v1/embeddings"


def test_extra_fields_and_headers_of_the_sdk(client: openai.OpenAI, solo: Target) -> None:
    solo.script = whole({**answer("Hello"), "reasoning": {"effort": 1}})
    done = client.chat.completions.create(
        model="solo", messages=MESSAGES, extra_body={"guided_regex": "[a-z]+"}, extra_query={"a": "b"}
    )
    assert solo.calls[0].json()["guided_regex"] == "[a-z]+"
    assert done.model_extra == {"reasoning": {"effort": 1}}
