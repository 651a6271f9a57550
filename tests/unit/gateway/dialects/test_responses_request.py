"""OpenAI's responses as chats: what the server is asked, and what is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest
from harness.translated import ask

from backends.api import RequestRefused

HI = {"role": "user", "content": "hi"}


def chat(**fields: Any) -> dict[str, Any]:
    path, asked = ask("responses", {"model": "m", "input": "hi", **fields})
    assert path == "/v1/chat/completions"
    return asked


def messages(*items: dict[str, Any], **fields: Any) -> Any:
    return chat(input=list(items), **fields)["messages"]


def test_the_least_that_can_be_asked() -> None:
    assert chat() == {"model": "served/name", "messages": [HI]}


def test_fields_that_mean_the_same_and_those_nobody_knows_go_on() -> None:
    asked = chat(
        max_output_tokens=9, temperature=0.5, top_p=0.9, user="u", prompt_cache_key="k", priority=3, store=False,
        include=["reasoning.encrypted_content"], background=False, previous_response_id=None, truncation="disabled",
        metadata={"a": "b"}, stream=True, stream_options={"include_obfuscation": False},
        reasoning={"effort": "low", "summary": "auto"}, text={"verbosity": "low"},
    )  # fmt: skip
    del asked["model"], asked["messages"]
    assert asked == {
        "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "user": "u", "prompt_cache_key": "k", "priority": 3,
        "stream": True, "stream_options": {"include_usage": True}, "reasoning_effort": "low", "verbosity": "low",
    }  # fmt: skip


def test_what_the_developer_says_first_is_one_system_message() -> None:
    said = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be kind."}]},
        {"role": "user", "content": "hi"},
        {"role": "system", "content": "Now."},
    ]
    assert messages(*said, instructions="Be terse.\n") == [
        {"role": "system", "content": "Be terse.\n\n\nBe kind."},
        HI,
        {"role": "system", "content": "Now."},
    ]


def test_a_turn_with_thoughts_and_tools_is_one_message() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,aGk=", "detail": "low"}
    items: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "input_text", "text": "Look."}, image]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'},
        {"type": "function_call", "call_id": "c2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "one"}, image]},
        {"type": "function_call_output", "call_id": "c2", "output": "two"},
        {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    ]
    shown = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"}}
    function = {"name": "f", "arguments": '{"a": 1}'}
    assert messages(*items) == [
        {"role": "user", "content": [{"type": "text", "text": "Look."}, shown]},
        {
            "role": "assistant",
            "reasoning": "Hm.",
            "reasoning_content": "Hm.",
            "content": "I look.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": function},
                {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": "two"},
        {"role": "user", "content": [shown]},
        {"role": "assistant", "content": "No."},
    ]


def test_thoughts_that_were_summed_up_are_thoughts() -> None:
    item = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "So."}], "encrypted_content": "x"}
    assert messages(HI, item)[1] == {"role": "assistant", "reasoning": "So.", "reasoning_content": "So."}
    assert messages(HI, {"type": "reasoning", "summary": []}) == [HI]


TOOLS = [
    {"type": "function", "name": "f", "description": "It is.", "parameters": {"type": "object"}, "strict": True},
    {"type": "function", "name": "g", "parameters": None},
]
FUNCTION = {"name": "f", "description": "It is.", "parameters": {"type": "object"}, "strict": True}


@pytest.mark.parametrize(
    ("choice", "chats", "count"),
    [
        ("auto", "auto", 2),
        ("required", "required", 2),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}, 2),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]},
            "required",
            1,
        ),
    ],
)
def test_tools_and_which_is_to_be_called(choice: Any, chats: Any, count: int) -> None:
    asked = chat(tools=TOOLS, tool_choice=choice, parallel_tool_calls=False)
    assert asked["tools"][0] == {"type": "function", "function": FUNCTION} and len(asked["tools"]) == count
    assert asked["tool_choice"] == chats and asked["parallel_tool_calls"] is False
    assert "tool_choice" not in chat(tools=TOOLS)
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & chat(tool_choice="auto", tools=[]).keys()


@pytest.mark.parametrize(
    ("form", "chats"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {"type": "json_object"}),
        (
            {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True, "description": "d"},
            {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True, "description": "d"},
            },
        ),
    ],
)
def test_in_which_form_the_answer_comes(form: Any, chats: Any) -> None:
    assert chat(text={"format": form}).get("response_format") == chats


def test_log_probabilities() -> None:
    asked = chat(include=["message.output_text.logprobs"], top_logprobs=3)
    assert (asked["logprobs"], asked["top_logprobs"]) == (True, 3)


@pytest.mark.parametrize(
    ("fields", "param", "named"),
    [
        ({"input": None}, "input", "input"),
        ({"input": 5}, "input", "array"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input", "wizard"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input", "item_reference"),
        ({"input": [{"type": "custom_tool_call", "call_id": "c"}]}, "input", "custom_tool_call"),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "input", "encrypted"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}]}, "input", "input_file"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]}, "input", "input_image"),
        ({"input": [{"role": "user", "content": 5}]}, "input", "content"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "previous_response_id"),
        ({"conversation": "c"}, "conversation", "conversation"),
        ({"background": True}, "background", "background"),
        ({"store": True}, "store", "store"),
        ({"prompt": {"id": "p"}}, "prompt", "prompt"),
        ({"truncation": "auto"}, "truncation", "truncation"),
        ({"context_management": [{"type": "compaction"}]}, "context_management", "context_management"),
        ({"reasoning": {"mode": "pro"}}, "reasoning", "pro"),
        ({"tools": [{"type": "web_search"}]}, "tools", "web_search"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools", "custom"),
        ({"tools": [{"type": "function", "name": "x", "allowed_callers": ["programmatic"]}]}, "tools", "allowed"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice", "file_search"),
        (
            {"tool_choice": {"type": "allowed_tools", "tools": [{"type": "mcp"}]}},
            "tool_choice",
            "mcp",
        ),
        ({"text": {"format": {"type": "grammar"}}}, "text", "grammar"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_its_name(fields: dict[str, Any], param: str, named: str) -> None:
    with pytest.raises(RequestRefused, match=named) as refused:
        chat(**fields)
    assert refused.value.param == param
