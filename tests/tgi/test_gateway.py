"""The gateway's TGI adapter in front of the TGI under test, asked by the OpenAI SDK: every rewrite, both ways."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.lazily import Lazily
from standin.tgi import start_standin

if TYPE_CHECKING:
    import openai
else:
    openai = Lazily("openai")

MODEL = "served-by-tgi"
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]
CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Tell it", "parameters": CITY}}
TABLE = """
routes:
  served-by-tgi:
    targets: [{{name: tgi, backend: tgi, url: "{url}"}}]
    timeouts: {{connect: 2s, first_output: 40s, whole: 40s, idle: 20s}}
"""


@pytest.fixture(scope="module")
def gateway(tgi_url: str) -> Iterator[GatewayProcess]:
    with gateway_process(TABLE.format(url=tgi_url)) as running:
        yield running


@pytest.fixture(scope="module")
def sdk(gateway: GatewayProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=gateway.key()["secret"], max_retries=0) as client:
        yield client


def chat(sdk: openai.OpenAI, **more: Any) -> Any:
    return sdk.chat.completions.create(
        **{"model": MODEL, "messages": QUESTION, "max_tokens": 6, "temperature": 0, **more}
    )


def test_a_chat_has_an_id_and_a_finish_reason_that_sdks_know(sdk: openai.OpenAI) -> None:
    answer = chat(sdk)
    assert answer.id.startswith("chatcmpl-tl-")
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens == 6


@pytest.mark.parametrize(
    "more",
    [
        {"stop": "xyz"},
        {"top_p": 1},
        {"max_completion_tokens": 5},
        {"presence_penalty": 0},
        {"n": 1},
        {"logit_bias": {}},
        {"response_format": {"type": "text"}},
        {"tools": None, "tool_choice": None, "stop": None, "seed": None},
        {"parallel_tool_calls": False, "tools": [WEATHER], "tool_choice": "none"},
    ],
)
def test_what_tgi_refuses_but_means_nothing_special_is_rewritten(sdk: openai.OpenAI, more: dict[str, Any]) -> None:
    assert chat(sdk, **{name: value for name, value in more.items() if value is not None}).choices[0].message
    nulls = {name: None for name, value in more.items() if value is None}
    assert chat(sdk, extra_body=nulls).choices[0].message


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2),
        ("logit_bias", {"1": 2}),
        ("presence_penalty", 0.5),
        ("top_k", 5),
        ("min_tokens", 3),
        ("ignore_eos", True),
        ("guided_json", {}),
        ("structured_outputs", {"regex": "a"}),
    ],
)
def test_what_tgi_cannot_do_is_refused_by_name(sdk: openai.OpenAI, field: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        chat(sdk, extra_body={field: value})
    assert refused.value.param == field
    assert field in refused.value.message


def test_a_stop_text_ends_with_stop(sdk: openai.OpenAI) -> None:
    whole = chat(sdk, max_tokens=12).choices[0].message.content
    word = whole.split()[2]
    assert chat(sdk, max_tokens=12, stop=word).choices[0].finish_reason == "stop"


def test_json_schema_is_enforced(sdk: openai.OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": CITY}}
    answer = chat(sdk, max_tokens=40, response_format=wanted)
    assert set(json.loads(answer.choices[0].message.content)) == {"city"}


def test_json_object_without_a_schema_is_json(sdk: openai.OpenAI) -> None:
    answer = chat(sdk, max_tokens=40, response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.choices[0].message.content), dict)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_tool_calls_finish_as_tool_calls(sdk: openai.OpenAI, choice: Any) -> None:
    answer = chat(sdk, max_tokens=60, tools=[WEATHER], tool_choice=choice)
    (call,) = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.id.startswith("call_")
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}


def test_streamed_tool_calls_keep_one_id_and_finish_as_tool_calls(sdk: openai.OpenAI) -> None:
    deltas, reasons = [], []
    for chunk in chat(sdk, max_tokens=60, tools=[WEATHER], tool_choice="required", stream=True):
        deltas += chunk.choices[0].delta.tool_calls or []
        reasons.append(chunk.choices[0].finish_reason)
    assert [delta.id is not None for delta in deltas] == [True, *[False] * (len(deltas) - 1)]
    assert set(json.loads("".join(delta.function.arguments for delta in deltas))) == {"city"}
    assert [reason for reason in reasons if reason] == ["tool_calls"]


def test_what_openais_client_joins_of_a_stream_is_told_once(sdk: openai.OpenAI) -> None:
    asked = {"messages": QUESTION, "model": MODEL, "max_tokens": 60, "temperature": 0}
    with sdk.chat.completions.stream(**asked, tools=[WEATHER], tool_choice="required") as stream:
        message = stream.get_final_completion().choices[0].message
    (call,) = message.tool_calls
    assert (message.role, call.type, call.function.name) == ("assistant", "function", "get_weather")
    assert call.id.startswith("call_tl-") and call.id.count("call_") == 1
    with sdk.chat.completions.stream(model=MODEL, messages=QUESTION, max_tokens=4) as stream:
        roles = [event.chunk.choices[0].delta.role for event in stream if event.type == "chunk"]
    assert [role for role in roles if role] == ["assistant"]


def test_tools_without_parameters_and_a_history_with_text_and_calls(sdk: openai.OpenAI) -> None:
    history = [
        *QUESTION,
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "Thanks"},
    ]
    bare = {"type": "function", "function": {"name": "now"}}
    assert chat(sdk, messages=history, tools=[bare], tool_choice="auto", max_tokens=30).choices


def test_a_stream_has_one_id_and_usage_only_when_asked(sdk: openai.OpenAI) -> None:
    chunks = list(chat(sdk, stream=True))
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].id.startswith("chatcmpl-")
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    asked = list(chat(sdk, stream=True, stream_options={"include_usage": True}))
    assert asked[-1].choices == []
    assert asked[-1].usage.completion_tokens == 6


def test_completions(sdk: openai.OpenAI) -> None:
    asked = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    whole = sdk.completions.create(**asked)
    assert whole.id.startswith("cmpl-")
    chunks = list(sdk.completions.create(**asked, stream=True))
    assert all(chunk.usage is None for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] in ("length", "stop")
    assert {chunk.choices[0].finish_reason for chunk in chunks[:-1]} <= {None}
    told = list(sdk.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert told[-1].usage.completion_tokens == 4
    both = sdk.completions.create(**{**asked, "prompt": ["One, two,", "Red, green,"]})
    assert [choice.index for choice in both.choices] == [0, 1]


@pytest.mark.parametrize("field", ["suffix", "echo", "logprobs", "best_of"])
def test_what_completions_of_tgi_lack_is_refused(sdk: openai.OpenAI, field: str) -> None:
    value: Any = {"suffix": "x", "echo": True, "logprobs": 1, "best_of": 2}[field]
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.completions.create(model=MODEL, prompt="a", max_tokens=2, extra_body={field: value})
    assert refused.value.param == field


def test_embeddings_are_refused(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="embeddings"):
        sdk.embeddings.create(model=MODEL, input="a")


@pytest.mark.parametrize("stream", [False, True])
def test_tgis_validation_is_the_callers_fault_with_a_status_also_for_streams(sdk: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature"):
        list(chat(sdk, temperature=-1, stream=stream))


@pytest.mark.standin_only
@pytest.mark.parametrize("stream", [False, True])
def test_an_overloaded_tgi_is_a_503_also_for_streams(model_url: str, stream: bool) -> None:
    with (
        start_standin(model_url=model_url, max_concurrent_requests=1) as url,
        gateway_process(TABLE.format(url=url)) as gateway,
        openai.OpenAI(base_url=gateway.url + "/v1", api_key=gateway.key()["secret"], max_retries=0) as sdk,
    ):
        busy = chat(sdk, max_tokens=200, stream=True, messages=[{"role": "user", "content": "Count to a thousand."}])
        next(iter(busy))
        with pytest.raises(openai.InternalServerError) as refused:
            list(chat(sdk, stream=stream))
        busy.close()
        assert refused.value.status_code == 503
        assert refused.value.code == "upstream_busy"
