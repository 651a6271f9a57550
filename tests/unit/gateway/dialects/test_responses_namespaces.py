"""Tools in namespaces, as codex shows them, for servers whose functions have none."""

from __future__ import annotations

from typing import Any

import pytest
from harness.translated import DONE, answer, ask, call_piece, chat, event, stream

from backends.api import RequestRefused

SEND = {"type": "function", "name": "send", "description": "Sends it", "parameters": {"type": "object"}}
SPACE = {"type": "namespace", "name": "mail", "description": "About mail", "tools": [SEND, {**SEND, "name": "read"}]}
ASKED: dict[str, Any] = {"model": "m", "input": "hi", "tools": [{**SEND, "name": "look"}, SPACE]}
CALLED = {"type": "function_call", "call_id": "c1", "namespace": "mail", "name": "send", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "Sent"}


def test_functions_of_a_namespace_are_shown_by_both_names() -> None:
    _, asked = ask("responses", ASKED)
    functions = [tool["function"] for tool in asked["tools"]]
    assert [function["name"] for function in functions] == ["look", "mail__send", "mail__read"]
    assert functions[1] == {"name": "mail__send", "description": "Sends it", "parameters": {"type": "object"}}


def test_so_are_calls_of_earlier_turns() -> None:
    _, asked = ask("responses", {**ASKED, "input": [CALLED, RESULT]})
    assert asked["messages"][0]["tool_calls"][0]["function"]["name"] == "mail__send"


def test_a_call_comes_back_in_its_namespace() -> None:
    made = [
        {"id": str(index), "type": "function", "function": {"name": name, "arguments": "{}"}}
        for index, name in enumerate(("mail__send", "look", "mail__unknown"))
    ]
    output = answer("responses", ASKED, chat({"content": None, "tool_calls": made}, "tool_calls"))["output"]
    assert [(item.get("namespace"), item["name"]) for item in output] == [
        ("mail", "send"),
        (None, "look"),
        (None, "mail__unknown"),
    ]


def test_so_does_one_in_a_stream() -> None:
    said = [
        event(call_piece(0, id="c1", name="mail__send")),
        event(call_piece(0, arguments="{}")),
        event({}, "tool_calls"),
        DONE,
    ]
    events = stream("responses", {**ASKED, "stream": True}, said).events
    items = [value["item"] for _, value in events if "item" in value]
    assert [(item["namespace"], item["name"]) for item in items] == [("mail", "send")] * 2


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "namespace", "tools": [SEND]},
        {"type": "namespace", "name": "mail", "tools": [{"type": "web_search"}]},
        {"type": "namespace", "name": "mail", "tools": [{"type": "function"}]},
        {"type": "namespace", "name": "mail", "tools": [{"type": "function", "name": 3}]},
    ],
)
def test_a_namespace_that_is_none_is_refused(tool: dict[str, Any]) -> None:
    with pytest.raises(RequestRefused) as refused:
        ask("responses", {**ASKED, "tools": [tool]})
    assert refused.value.param == "tools"
