"""A chat's stream as Anthropic's events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from harness.captures import captures
from harness.translated import DONE, USAGE, Streamed, a_call, call_piece, capabilities, cut, event, stream
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.errors import BadReply, Disconnected, UpstreamFailed

ASKED: dict[str, Any] = {
    "model": "m",
    "max_tokens": 5,
    "messages": [{"role": "user", "content": "hi"}],
    "stream": True,
}
ROLE = event({"role": "assistant", "content": ""})
STOP = event({}, "stop")
COUNTED = event(usage=USAGE)
WHOLE = b"".join(
    (
        ROLE,
        event({"reasoning": "Hm"}),
        event({"reasoning_content": ", so."}),
        event({"content": "I "}),
        event({"content": 'say "\u00e9\n\ud83d'}),
        event(call_piece(0, id="t1", name="f")),
        event(call_piece(0, arguments='{"a": ')),
        event(call_piece(0, arguments='"\u00e9"}')),
        event(call_piece(1, id="t2", name="g", arguments="{}")),
        event({}, "tool_calls"),
        COUNTED,
        DONE,
    )
)


def told(*events: bytes, **more: Any) -> Streamed:
    return stream("messages", {**ASKED, **more}, [b"".join(events)])


def message(events: list[tuple[str, Any]]) -> dict[str, Any]:
    """What a client makes of the events; each must come where it may."""
    names = [name for name, _ in events]
    assert names[0] == "message_start" and names[-2:] == ["message_delta", "message_stop"]
    whole, inputs = dict[str, Any](), dict[int, str]()
    opened: int | None = None
    for name, value in events:
        assert value["type"] == name
        if name == "message_start":
            assert not whole
            whole = value["message"]
        elif name == "content_block_start":
            assert opened is None and value["index"] == len(whole["content"])
            opened = value["index"]
            whole["content"].append(value["content_block"])
        elif name == "content_block_delta":
            assert value["index"] == opened
            delta = value["delta"]
            kind = delta.pop("type").removesuffix("_delta")
            block = whole["content"][opened]
            if kind == "input_json":
                assert block["type"] == "tool_use"
                inputs[opened] = inputs.get(opened, "") + delta["partial_json"]
            else:
                assert block["type"] == ("thinking" if kind == "signature" else kind)
                block[kind] += delta[kind]
        elif name == "content_block_stop":
            assert value["index"] == opened
            if opened in inputs:
                whole["content"][opened]["input"] = json.loads(inputs[opened])
            opened = None
        elif name == "message_delta":
            assert opened is None
            whole |= value["delta"] | {"usage": {**whole["usage"], **value["usage"]}}
    return whole


def test_the_events_of_a_text() -> None:
    got = told(ROLE, event({"content": "Hi"}), event({"content": "!"}), STOP, COUNTED, DONE)
    usage = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    assert got.events == [
        (
            "message_start",
            {
                "type": "message_start",
                "message": {
                    "id": "msg_call-1",
                    "type": "message",
                    "role": "assistant",
                    "model": "served/name",
                    "content": [],
                    "stop_reason": None,
                    "stop_sequence": None,
                    "usage": {"input_tokens": 0, "output_tokens": 0, **usage},
                },
            },
        ),
        (
            "content_block_start",
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        ),
        (
            "content_block_delta",
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        ),
        (
            "content_block_delta",
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "!"}},
        ),
        ("content_block_stop", {"type": "content_block_stop", "index": 0}),
        (
            "message_delta",
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {
                    "input_tokens": 20,
                    "cache_creation_input_tokens": 0,
                    "cache_read_input_tokens": 10,
                    "output_tokens": 8,
                },
            },
        ),
        ("message_stop", {"type": "message_stop"}),
    ]
    assert got.done and got.failure is None and got.usage is not None and got.usage.completion_tokens == 8


@given(st.lists(st.integers(0, len(WHOLE)), max_size=40))
def test_any_blocks_make_the_same_message(places: list[int]) -> None:
    got = stream("messages", ASKED, cut(WHOLE, places))
    assert got.done and got.failure is None
    assert message(got.events) == {
        "id": "msg_call-1",
        "type": "message",
        "role": "assistant",
        "model": "served/name",
        "content": [
            {"type": "thinking", "thinking": "Hm, so.", "signature": "msg_call-1"},
            {"type": "text", "text": 'I say "\u00e9\n '},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "\u00e9"}},
            {"type": "tool_use", "id": "t2", "name": "g", "input": {}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 20,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 10,
            "output_tokens": 8,
        },
    }


def test_thoughts_that_nobody_wants_to_see() -> None:
    got = told(WHOLE, thinking={"type": "disabled"})
    assert [block["type"] for block in message(got.events)["content"]] == ["text", "tool_use", "tool_use"]


def test_arguments_that_are_no_object_reach_the_client_as_one() -> None:
    pieces = [
        event(call_piece(0, id="t", name="f")),
        *(event(call_piece(0, arguments=part)) for part in (" ", '"Pa', 'ris"')),
    ]
    said = message(told(ROLE, *pieces, event({}, "tool_calls"), DONE).events)
    assert said["content"][0]["input"] == {"INVALID_JSON": '"Paris"'}


def test_each_event_is_told_with_the_one_that_brings_it() -> None:
    call = a_call("messages", ASKED)
    stateful = capabilities("messages").stateful
    assert stateful is not None
    reader = stateful.open(call)
    (opening,) = reader.chunk(call, ROLE)
    assert opening.opening and not opening.tokens and b"message_start" in opening.data
    (first,) = reader.chunk(call, event({"content": "Hi"}))
    assert first.tokens == 1 and not first.opening and b'"text":"Hi"' in first.data
    (begun,) = reader.chunk(call, event(call_piece(0, id="t", name="f", arguments='{"a')))
    assert b'"partial_json":"{\\"a"' in begun.data
    (ended,) = reader.chunk(call, STOP)
    assert ended.finished == 1 and b"content_block_stop" in ended.data and b"message_stop" not in ended.data


def test_comments_go_on() -> None:
    assert told(b": ping\n\n", ROLE, event({"content": "Hi"}), STOP, DONE).data.startswith(b": ping\n\nevent: ")


@pytest.mark.parametrize(
    ("reason", "more", "told_as"),
    [
        ("stop", {"stop_reason": "END"}, ("stop_sequence", "END")),
        ("length", {}, ("max_tokens", None)),
        ("content_filter", {}, ("refusal", None)),
    ],
)
def test_why_it_ended(reason: str, more: dict[str, Any], told_as: tuple[str, str | None]) -> None:
    said = message(told(ROLE, event({"content": "x"}), event({}, reason, **more), DONE).events)
    assert (said["stop_reason"], said["stop_sequence"]) == told_as


def test_a_refusal_is_text() -> None:
    said = message(told(ROLE, event({"refusal": "No."}), STOP, DONE).events)
    assert said["content"] == [{"type": "text", "text": "No."}] and said["stop_reason"] == "refusal"


@pytest.mark.parametrize(
    ("end", "failure"),
    [
        (b"", Disconnected),  # the connection closed
        (DONE, Disconnected),  # the terminator, without a reason
        (b'data: {"error":{"message":"EngineCore","code":500}}\n\n' + DONE, UpstreamFailed),
        (event({}, "abort") + DONE, UpstreamFailed),
        (b"data: {", Disconnected),
        (b"data: nonsense\n\n", BadReply),
        (event(call_piece(0, arguments="{}")), BadReply),  # a call without a name
        (STOP + b"data: {", Disconnected),
    ],
)
def test_a_stream_that_ends_badly_has_no_end(end: bytes, failure: type[Exception]) -> None:
    got = told(ROLE, event({"content": "Hi"}), end)
    assert isinstance(got.failure, failure) and not got.done
    assert "message_stop" not in [name for name, _ in got.events] and b"text_delta" in got.data


def test_a_server_that_closes_instead_of_a_terminator_has_ended_well() -> None:
    got = told(ROLE, event({"content": "Hi"}), STOP)
    assert got.done and message(got.events)["stop_reason"] == "end_turn"
    assert DONE not in got.data


def test_calls_that_are_mixed_are_not_taken_for_others() -> None:
    mixed = [
        event(call_piece(0, id="a", name="f")),
        event(call_piece(1, id="b", name="g")),
        event(call_piece(0, arguments="{}")),
    ]
    assert isinstance(told(ROLE, *mixed).failure, BadReply)


RECORDED = [
    c for c in captures("*/*chat*stream*") if c.status == 200 and c.streamed and not c.cut and "-n2" not in c.name
]


@pytest.mark.parametrize("capture", RECORDED, ids=lambda capture: capture.name)
def test_what_real_servers_said(capture: Any) -> None:
    got = stream("messages", ASKED, [capture.body])
    assert got.done and got.failure is None
    assert message(got.events)["content"]
