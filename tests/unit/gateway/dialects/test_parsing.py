"""Chats with tools at servers that leave calls in the model's text, whole and streamed."""

from __future__ import annotations

import json
from typing import Any, get_args, get_type_hints

import pytest
from harness.translated import DONE, USAGE, Written, a_call, answer, ask, capabilities, chat, cut, event, stream
from hypothesis import given
from hypothesis import strategies as st

from backends.openai import OpenAI
from gateway.config import TargetSpec
from gateway.core.errors import Disconnected
from gateway.dialects import FORMATS

ASKED: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "hi"}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}, {"type": "function"}],
}
STREAMED = {**ASKED, "stream": True, "stream_options": {"include_usage": True}}
HERMES = Written("hermes")
ARGUMENTS = '{"a": "\u00e9}"}'
CALLED = f'<tool_call>{{"name": "f", "arguments": {ARGUMENTS}}}</tool_call>'
CALL = {"id": "call_call-1_0", "type": "function", "function": {"name": "f", "arguments": ARGUMENTS}}
ROLE = event({"role": "assistant", "content": ""})
END = event({}, "stop") + event(usage=USAGE) + DONE


def pieces(text: str, size: int = 3) -> list[bytes]:
    return [event({"content": text[at : at + size]}) for at in range(0, len(text), size)]


def message(data: list[tuple[str, Any]]) -> tuple[dict[str, Any], str | None]:
    """What a client makes of a chat's events, and the reason for the end."""
    content, calls, finish = "", list[dict[str, Any]](), None
    for _, value in data:
        for choice in [] if value == "[DONE]" else value["choices"]:
            assert finish is None
            finish = choice["finish_reason"]
            content += choice["delta"].get("content") or ""
            for piece in choice["delta"].get("tool_calls", []):
                if piece["index"] == len(calls):
                    calls.append({"id": piece["id"], "type": piece["type"], "function": piece["function"]})
                else:
                    assert piece["index"] == len(calls) - 1
                    calls[-1]["function"]["arguments"] += piece["function"]["arguments"]
    return {"content": content, "tool_calls": calls}, finish


@pytest.mark.parametrize(
    ("server", "choice", "asked"),
    [
        (None, None, "none"),
        (None, "auto", "none"),
        (None, "required", "required"),
        (None, "none", "none"),
        (OpenAI(), None, None),
        (OpenAI(), "auto", "auto"),
    ],
)
def test_the_server_shows_the_tools_and_leaves_the_text(server: Any, choice: Any, asked: Any) -> None:
    """vLLM refuses tools without a parser of its own, unless none is to be called."""
    path, body = ask("chat/completions", ASKED | ({"tool_choice": choice} if choice else {}), Written("hermes", server))
    assert path == "/v1/chat/completions" and body["tools"] == ASKED["tools"]
    assert body.get("tool_choice") == asked


def test_a_whole_answer() -> None:
    said = answer("chat/completions", ASKED, chat({"content": f"So.\n{CALLED}\n"}), HERMES)
    (choice,) = said.pop("choices")
    told = {"role": "assistant", "content": "So.\n", "tool_calls": [CALL]}
    assert choice == {"index": 0, "message": told, "finish_reason": "tool_calls"}
    assert said == {name: value for name, value in chat({}).items() if name != "choices"}
    cut_off = answer("chat/completions", ASKED, chat({"content": CALLED}, "length"), HERMES)
    assert cut_off["choices"][0]["finish_reason"] == "length" and cut_off["choices"][0]["message"]["content"] is None


@pytest.mark.parametrize(
    ("asked", "body"),
    [
        (ASKED, json.dumps(chat({"content": f"So. {CALLED[:-15]}"}), indent=1)),
        (ASKED, json.dumps(chat({"content": "no call"}), indent=1)),
        (ASKED, json.dumps(chat({"content": CALLED, "tool_calls": [CALL]}), indent=1)),
        (ASKED, json.dumps(chat({"content": None}), indent=1)),
        (ASKED, '{"choices": [5]}'),
        ({**ASKED, "tool_choice": "none"}, json.dumps(chat({"content": CALLED}), indent=1)),
        ({**ASKED, "tools": []}, json.dumps(chat({"content": CALLED}), indent=1)),
    ],
)
def test_an_answer_without_a_call_stays_as_it_is_byte_for_byte(asked: dict[str, Any], body: str) -> None:
    adapter = capabilities("chat/completions", HERMES).adapter
    assert adapter.reply(a_call("chat/completions", asked), body.encode()).body == body.encode()


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_a_stream(size: int) -> None:
    text = f"So.\n{CALLED}\n{CALLED}"
    got = stream("chat/completions", STREAMED, [ROLE, *pieces(text, size), END], HERMES)
    assert got.done and got.failure is None and got.usage is not None
    told, finish = message(got.events)
    other = {**CALL, "id": "call_call-1_1"}
    assert told == {"content": "So.\n", "tool_calls": [CALL, other]} and finish == "tool_calls"
    assert got.data.startswith(ROLE) and got.data.endswith(event(usage=USAGE) + DONE)
    ids = {value["id"] for _, value in got.events if value != "[DONE]"}
    assert ids == {"c"}, "all events are of one answer"


WHOLE = b"".join((ROLE, *pieces(f"So. {CALLED}", 4), END))


@given(st.lists(st.integers(0, len(WHOLE)), max_size=30))
def test_any_blocks_make_the_same_calls(places: list[int]) -> None:
    got = stream("chat/completions", STREAMED, cut(WHOLE, places), HERMES)
    assert got.done and message(got.events) == ({"content": "So. ", "tool_calls": [CALL]}, "tool_calls")


def test_events_without_a_call_stay_as_they_are_byte_for_byte() -> None:
    data = b"".join((b": hi\n\n", ROLE, *pieces("Hello < there", 4), event({"reasoning": "<tool_call>"}), END))
    assert stream("chat/completions", STREAMED, [data], HERMES).data == data
    plain = {**STREAMED, "tools": []}
    called = b"".join((ROLE, *pieces(CALLED), END))
    assert stream("chat/completions", plain, [called], HERMES).data == called


def test_what_turns_out_to_be_no_call_is_said_at_the_end() -> None:
    got = stream("chat/completions", STREAMED, [ROLE, *pieces("So <tool_call>f(1)"), *pieces(" <tool_"), END], HERMES)
    assert message(got.events) == ({"content": "So <tool_call>f(1) <tool_", "tool_calls": []}, "stop")


def test_the_first_arguments_come_with_the_event_that_brings_them() -> None:
    call = a_call("chat/completions", STREAMED)
    stateful = capabilities("chat/completions", HERMES).stateful
    assert stateful is not None
    reader = stateful.open(call)
    for text in ("<tool_call>", '{"name": "f", ', '"arguments": '):
        (chunk,) = reader.chunk(call, event({"content": text}))
        assert chunk.data == b"" and chunk.tokens == 1
    (chunk,) = reader.chunk(call, event({"content": '{"a'}))
    (delta,) = [choice["delta"] for choice in json.loads(chunk.data[6:])["choices"]]
    assert delta["tool_calls"] == [
        {"index": 0, "id": CALL["id"], "type": "function", "function": {"name": "f", "arguments": '{"a'}}
    ]


def test_the_end_and_the_last_text_in_one_event() -> None:
    last = event({"content": CALLED}, "stop", logprobs={"content": []})
    got = stream("chat/completions", STREAMED, [ROLE, last, DONE], HERMES)
    assert message(got.events) == ({"content": "", "tool_calls": [CALL]}, "tool_calls")
    assert got.done


def test_choices_have_calls_of_their_own() -> None:
    both = [event({"content": "x"}).replace(b'"index": 0', b'"index": 1'), *pieces(CALLED)]
    ends = [event({}, "stop"), event({}, "stop").replace(b'"index": 0', b'"index": 1')]
    got = stream("chat/completions", {**STREAMED, "n": 2}, [ROLE, *both, *ends, DONE], HERMES)
    reasons = {c["index"]: c["finish_reason"] for _, v in got.events[:-1] for c in v["choices"] if c["finish_reason"]}
    assert got.done and reasons == {0: "tool_calls", 1: "stop"}


def test_a_stream_that_ends_badly_has_no_end() -> None:
    got = stream("chat/completions", STREAMED, [ROLE, *pieces(CALLED)], HERMES)
    assert isinstance(got.failure, Disconnected) and not got.done and DONE not in got.data


@pytest.mark.parametrize(
    ("parser", "text"), [("llama", '{"name": "f", "parameters": {}}'), ("mistral", "[TOOL_CALLS]f{}")]
)
def test_other_formats(parser: str, text: str) -> None:
    said = answer("chat/completions", ASKED, chat({"content": text}), Written(parser))
    (made,) = said["choices"][0]["message"]["tool_calls"]
    assert made["function"] == {"name": "f", "arguments": "{}"}
    got = stream("chat/completions", STREAMED, [ROLE, *pieces(text), END], Written(parser))
    assert message(got.events)[0]["tool_calls"] == [made]


def test_a_client_of_another_dialect_gets_the_calls_in_its_own() -> None:
    asked = {"model": "m", "max_tokens": 5, "messages": ASKED["messages"], "tools": [{"name": "f", "input_schema": {}}]}
    assert ask("messages", asked, HERMES)[1]["tool_choice"] == "none"
    said = answer("messages", asked, chat({"content": CALLED}), HERMES)
    tool_use = {"type": "tool_use", "id": "call_call-1_0", "name": "f", "input": {"a": "\u00e9}"}}
    assert said["content"] == [tool_use] and said["stop_reason"] == "tool_use"
    got = stream("messages", {**asked, "stream": True}, [ROLE, *pieces(f"So. {CALLED} Yes."), END], HERMES)
    fragments = [
        v["delta"]["partial_json"] for _, v in got.events if v.get("delta", {}).get("type") == "input_json_delta"
    ]
    texts = [v["delta"]["text"] for _, v in got.events if v.get("delta", {}).get("type") == "text_delta"]
    assert got.done and json.loads("".join(fragments)) == {"a": "\u00e9}"} and "".join(texts) == "So.  Yes."


def test_the_table_knows_the_formats_that_there_are() -> None:
    written = get_type_hints(TargetSpec)["tool_parser"]
    assert set(get_args(get_args(written)[0])) == set(FORMATS)
