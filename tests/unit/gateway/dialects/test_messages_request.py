"""Anthropic's messages as chats: what the server is asked, and what is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest
from harness.translated import ask

from backends.api import RequestRefused
from backends.openai import OpenAI

HI = [{"role": "user", "content": "hi"}]
LEAST: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": HI}


def chat(**fields: Any) -> dict[str, Any]:
    path, asked = ask("messages", {**LEAST, **fields})
    assert path == "/v1/chat/completions"
    return asked


def messages(*conversation: dict[str, Any], **fields: Any) -> Any:
    return chat(messages=list(conversation), **fields)["messages"]


def test_the_least_that_can_be_asked() -> None:
    assert chat() == {"model": "served/name", "max_tokens": 5, "messages": HI}


def test_a_stream_is_asked_to_tell_its_usage() -> None:
    asked = chat(stream=True)
    assert asked["stream"] is True and asked["stream_options"] == {"include_usage": True}


def test_fields_that_mean_the_same_and_those_nobody_knows_go_on() -> None:
    asked = chat(
        temperature=0.5, top_p=0.9, top_k=7, stop_sequences=["A", "B"], metadata={"user_id": "u-1"}, priority=3,
        context_management={"edits": []}, service_tier="auto", cache_control={"type": "ephemeral"},
    )  # fmt: skip
    del asked["model"], asked["max_tokens"], asked["messages"]
    assert asked == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "stop": ["A", "B"], "user": "u-1", "priority": 3,
        "context_management": {"edits": []},
    }  # fmt: skip


def test_a_system_prompt_is_a_message() -> None:
    blocks = [
        {"type": "text", "text": "Be terse.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "é\n"},
    ]
    assert messages(*HI, system="Be terse.") == [{"role": "system", "content": "Be terse."}, *HI]
    assert messages(*HI, system=blocks) == [{"role": "system", "content": "Be terse.\né\n"}, *HI]
    assert messages(*HI, {"role": "system", "content": "Now."}) == [*HI, {"role": "system", "content": "Now."}]


def test_texts_and_images_are_parts() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "aGk/+w=="}
    blocks = [
        {"type": "text", "text": "What is it?"},
        {"type": "image", "source": source},
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
    ]
    assert messages({"role": "user", "content": blocks}) == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk/+w=="}},
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
            ],
        }
    ]
    assert messages({"role": "user", "content": blocks[:1]}) == [{"role": "user", "content": "What is it?"}]


def test_calls_of_tools_and_their_results() -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}}
    called = [
        {"type": "thinking", "thinking": "Paris, so.", "signature": "s"},
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Paris", "n": 1.0}},
        {"type": "tool_use", "id": "t2", "name": "noon", "input": {}},
    ]
    results = [
        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "sun"}, image]},
        {"type": "tool_result", "tool_use_id": "t2", "content": "no clock", "is_error": True},
        {"type": "text", "text": "And?"},
    ]
    conversation = [*HI, {"role": "assistant", "content": called}, {"role": "user", "content": results}]
    assert messages(*conversation) == [
        *HI,
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning": "Paris, so.",
            "reasoning_content": "Paris, so.",
            "tool_calls": [
                {
                    "id": "t1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "Paris", "n": 1.0}'},
                },
                {"id": "t2", "type": "function", "function": {"name": "noon", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "sun"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no clock"},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
                {"type": "text", "text": "And?"},
            ],
        },
    ]


def test_tools_are_functions() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = {"name": "weather", "description": "It tells.", "input_schema": schema, "strict": True}
    examples = {**tool, "type": "custom", "input_examples": [{"city": "Rome"}]}
    function = {"name": "weather", "description": "It tells.", "parameters": schema, "strict": True}
    assert chat(tools=[tool])["tools"] == [{"type": "function", "function": function}]
    told = {**function, "parameters": {**schema, "examples": [{"city": "Rome"}]}}
    assert chat(tools=[examples])["tools"] == [{"type": "function", "function": told}]


@pytest.mark.parametrize(
    ("choice", "chats"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}, "parallel_tool_calls": False},
        ),
    ],
)
def test_which_tool_is_to_be_called(choice: dict[str, Any], chats: dict[str, Any]) -> None:
    asked = chat(tools=[{"name": "f", "input_schema": {}}], tool_choice=choice)
    assert {name: asked[name] for name in ("tool_choice", "parallel_tool_calls") if name in asked} == chats
    assert "tool_choice" not in chat(tool_choice=choice), "without tools there is nothing to choose"


@pytest.mark.parametrize(
    ("fields", "chats"),
    [
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"thinking": {"type": "enabled", "budget_tokens": 4096}}, {"reasoning_effort": "low"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 10_000}}, {"reasoning_effort": "medium"}),
        ({"thinking": {"type": "enabled", "budget_tokens": 31_999}}, {"reasoning_effort": "high"}),
        ({"thinking": {"type": "disabled"}}, {"chat_template_kwargs": {"enable_thinking": False}}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 1024}, "output_config": {"effort": "xhigh"}},
            {"reasoning_effort": "xhigh"},
        ),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
    ],
)
def test_how_much_is_thought_and_in_which_form_it_is_told(fields: dict[str, Any], chats: dict[str, Any]) -> None:
    asked = chat(**fields)
    del asked["model"], asked["max_tokens"], asked["messages"]
    assert asked == chats


def test_an_answer_that_is_begun_goes_on() -> None:
    begun = [*HI, {"role": "assistant", "content": 'She said: "'}]
    assert messages(*begun) == begun
    asked = chat(messages=begun)
    assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)
    with pytest.raises(RequestRefused, match="the last message is the assistant's") as refused:
        ask("messages", {**LEAST, "messages": begun}, OpenAI())
    assert refused.value.param == "messages"


@pytest.mark.parametrize(
    ("fields", "param", "named"),
    [
        ({"max_tokens": None}, "max_tokens", "max_tokens"),
        ({"messages": None}, "messages", "messages"),
        ({"messages": "hi"}, "messages", "array"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages", "wizard"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages", "content"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]}, "messages", "document"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]},
            "messages",
            "file",
        ),
        ({"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]}, "messages", "server_tool"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "document"}]}],
                    }
                ]
            },
            "messages",
            "document",
        ),
        ({"system": [{"type": "image"}]}, "system", "image"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools", "web_search_20250305"),
        ({"tools": [{"name": "f", "allowed_callers": ["code_execution_20250825"]}]}, "tools", "allowed_callers"),
        ({"tool_choice": {"type": "some"}}, "tool_choice", "some"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice", "tool"),
        ({"thinking": {"type": "loud"}}, "thinking", "loud"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config", "json_schema"),
        ({"container": "c"}, "container", "container"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers", "mcp_servers"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_its_name(fields: dict[str, Any], param: str, named: str) -> None:
    with pytest.raises(RequestRefused, match=named) as refused:
        chat(**fields)
    assert refused.value.param == param
