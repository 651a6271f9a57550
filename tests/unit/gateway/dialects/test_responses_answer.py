"""A chat's answer, whole and streamed, as OpenAI's response."""

from __future__ import annotations

from typing import Any

import pytest
from harness.captures import captures
from harness.translated import DONE, USAGE, Streamed, answer, call_piece, chat, cut, event, stream
from hypothesis import given
from hypothesis import strategies as st

from backends.api import UpstreamFault
from gateway.core.errors import BadReply, Disconnected, UpstreamFailed

ASKED: dict[str, Any] = {"model": "m", "input": "hi", "instructions": "Be terse.", "temperature": 0.5}
STREAMED = {**ASKED, "stream": True}
ECHO = {
    "background": False,
    "instructions": "Be terse.",
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": False,
    "temperature": 0.5,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": None,
    "truncation": "disabled",
    "user": None,
}
COUNTED = {
    "input_tokens": 30,
    "input_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 0},
    "output_tokens": 8,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 38,
}
KNOWN = {
    "id": "resp_call-1",
    "object": "response",
    "created_at": 7,
    "model": "served/name",
    "error": None,
    "incomplete_details": None,
    **ECHO,
}
TEXT = {"type": "output_text", "text": 'I say "\u00e9\n', "annotations": [], "logprobs": []}
OUTPUT = [
    {
        "id": "rs_call-1_0",
        "type": "reasoning",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm, so."}],
        "encrypted_content": None,
        "status": "completed",
    },
    {
        "id": "msg_call-1_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [TEXT, {"type": "refusal", "refusal": "No."}],
    },
    {
        "id": "fc_call-1_2",
        "type": "function_call",
        "call_id": "t1",
        "name": "f",
        "arguments": '{"a": "\u00e9"}',
        "status": "completed",
    },
    {
        "id": "fc_call-1_3",
        "type": "function_call",
        "call_id": "call_call-1_1",
        "name": "g",
        "arguments": "{}",
        "status": "completed",
    },
]
ROLE = event({"role": "assistant", "content": ""})
STOP = event({}, "stop")
WHOLE = b"".join(
    (
        ROLE,
        event({"reasoning": "Hm"}),
        event({"reasoning_content": ", so."}),
        event({"content": "I "}),
        event({"content": 'say "\u00e9\n'}),
        event({"refusal": "No."}),
        event(call_piece(0, id="t1", name="f")),
        event(call_piece(0, arguments='{"a": ')),
        event(call_piece(0, arguments='"\u00e9"}')),
        event(call_piece(1, name="g", arguments="{}")),
        event({}, "tool_calls"),
        event(usage=USAGE),
        DONE,
    )
)


def told(*events: bytes) -> Streamed:
    return stream("responses", STREAMED, [b"".join(events)])


def test_a_whole_answer() -> None:
    calls = [
        {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a": "\u00e9"}'}},
        {"function": {"name": "g", "arguments": "{}"}},
    ]
    said = {"content": 'I say "\u00e9\n', "refusal": "No.", "reasoning": "Hm, so.", "tool_calls": calls}
    assert answer("responses", ASKED, chat(said, "tool_calls")) == {
        **KNOWN,
        "status": "completed",
        "output": OUTPUT,
        "usage": COUNTED,
    }


@pytest.mark.parametrize(("finish", "why"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_that_was_cut_is_incomplete(finish: str, why: str) -> None:
    said = answer("responses", ASKED, chat({"content": "x"}, finish))
    assert (said["status"], said["incomplete_details"]) == ("incomplete", {"reason": why})
    assert said["output"][0]["status"] == "incomplete"
    events = told(ROLE, event({"content": "x"}), event({}, finish), DONE).events
    name, last = events[-1]
    assert name == "response.incomplete" and last["response"]["incomplete_details"] == {"reason": why}
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_what_is_no_answer() -> None:
    for body in (b"{}", b"[]", b'{"choices":[]}'):
        with pytest.raises(ValueError, match=r"\w"):
            answer("responses", ASKED, body)
    with pytest.raises(UpstreamFault):
        answer("responses", ASKED, chat({"content": "x"}, "abort"))


def test_log_probabilities() -> None:
    token = {"token": "x", "logprob": -0.5, "bytes": [120], "top_logprobs": []}
    said = answer("responses", ASKED, chat({"content": "x"}, logprobs={"content": [token]}))
    assert said["output"][0]["content"][0]["logprobs"] == [token]
    pieces = [event({"content": "x"}, logprobs={"content": [token]}), event({"content": "y"})]
    events = dict(told(ROLE, *pieces, STOP, DONE).events)
    assert events["response.output_text.done"]["logprobs"] == [token]


def test_the_events_of_a_text() -> None:
    got = told(ROLE, event({"content": "Hi"}), event({"content": "!"}), STOP, event(usage=USAGE), DONE)
    begun = {**KNOWN, "usage": None, "status": "in_progress", "output": []}
    place = {"item_id": "msg_call-1_0", "output_index": 0, "content_index": 0}
    empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    item = {"id": "msg_call-1_0", "type": "message", "role": "assistant"}
    whole = {**item, "status": "completed", "content": [{**empty, "text": "Hi!"}]}
    expected = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
        ("response.output_item.added", {"output_index": 0, "item": {**item, "status": "in_progress", "content": []}}),
        ("response.content_part.added", {**place, "part": empty}),
        ("response.output_text.delta", {**place, "delta": "Hi", "logprobs": []}),
        ("response.output_text.delta", {**place, "delta": "!", "logprobs": []}),
        ("response.output_text.done", {**place, "text": "Hi!", "logprobs": []}),
        ("response.content_part.done", {**place, "part": {**empty, "text": "Hi!"}}),
        ("response.output_item.done", {"output_index": 0, "item": whole}),
        (
            "response.completed",
            {"response": {**KNOWN, "status": "completed", "output": [whole], "usage": COUNTED}},
        ),
    ]
    assert got.events == [
        (name, {"type": name, "sequence_number": number, **value}) for number, (name, value) in enumerate(expected)
    ]
    assert got.done and DONE not in got.data


def output(events: list[tuple[str, Any]]) -> list[Any]:
    """What a client makes of the events before the last; each must come where it may."""
    items: list[Any] = []
    for number, (name, value) in enumerate(events):
        assert (value["type"], value["sequence_number"]) == (name, number)
        kind = name.removeprefix("response.")
        item = items[value["output_index"]] if "item_id" in value else None
        assert item is None or item["id"] == value["item_id"]
        if kind == "output_item.added":
            assert value["output_index"] == len(items)
            items.append(value["item"])
        elif kind == "content_part.added":
            assert value["content_index"] == len(item["content"])
            item["content"].append(value["part"])
        elif kind == "function_call_arguments.delta":
            item["arguments"] += value["delta"]
        elif kind.endswith(".delta"):
            part = item["content"][value["content_index"]]
            assert part["type"] == kind.removesuffix(".delta")
            if part["type"] == "output_text":
                part["logprobs"] += value["logprobs"]
            part["refusal" if part["type"] == "refusal" else "text"] += value["delta"]
        elif kind == "content_part.done":
            assert item["content"][value["content_index"]] == value["part"]
        elif kind == "output_item.done":
            assert {**items[value["output_index"]], "status": value["item"]["status"]} == value["item"]
            items[value["output_index"]] = value["item"]
    return items


@given(st.lists(st.integers(0, len(WHOLE)), max_size=40))
def test_any_blocks_make_the_same_response(places: list[int]) -> None:
    got = stream("responses", STREAMED, cut(WHOLE, places))
    assert got.done and got.failure is None
    assert output(got.events) == OUTPUT
    name, last = got.events[-1]
    assert name == "response.completed"
    assert last["response"] == {**KNOWN, "status": "completed", "output": OUTPUT, "usage": COUNTED}


@pytest.mark.parametrize(
    ("end", "failure"),
    [
        (b"", Disconnected),
        (DONE, Disconnected),
        (b'data: {"error":{"message":"EngineCore","code":500}}\n\n' + DONE, UpstreamFailed),
        (event({}, "abort") + DONE, UpstreamFailed),
        (STOP + b"data: {", Disconnected),
        (event(call_piece(0, arguments="{}")), BadReply),
    ],
)
def test_a_stream_that_ends_badly_has_no_end(end: bytes, failure: type[Exception]) -> None:
    got = told(ROLE, event({"content": "Hi"}), end)
    assert isinstance(got.failure, failure) and not got.done
    assert not {"response.completed", "response.incomplete"} & {name for name, _ in got.events}


def test_a_server_that_closes_instead_of_a_terminator_has_ended_well() -> None:
    got = told(ROLE, event({"content": "Hi"}), STOP)
    assert got.done and got.events[-1][0] == "response.completed"


RECORDED = [
    c for c in captures("*/*chat*stream*") if c.status == 200 and c.streamed and not c.cut and "-n2" not in c.name
]


@pytest.mark.parametrize("capture", RECORDED, ids=lambda capture: capture.name)
def test_what_real_servers_said(capture: Any) -> None:
    got = stream("responses", STREAMED, [capture.body])
    assert got.done and got.failure is None and output(got.events)
