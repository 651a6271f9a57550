"""Tool calls that the gateway finds in a real model's text, against those that vLLM's own parser finds: the same ones.

The model is made to write a call by `structured_outputs`. vLLM's parser is off where `tool_choice` is "none", and so
the gateway asks where a target has a `tool_parser`.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from harness.gateway_process import gateway_process
from harness.vllm_server import client

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(400),
    pytest.mark.usefixtures("idle"),
    pytest.mark.skipif("TEST_VLLM_THROUGH" in os.environ, reason="the gateway in between is not ours"),
]

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "Get the weather for a city", "parameters": CITY}
CALL = r'<tool_call>\n\{"name": "get_weather", "arguments": \{"city": "(Paris|Rome|Oslo)"\}\}\n</tool_call>'
ASKED = [{"role": "user", "content": "What is the weather in Paris?"}]
LEAST: dict[str, Any] = {"model": "smollm2-135m", "messages": ASKED, "max_tokens": 200, "temperature": 0}
CASES = {
    "one call": CALL,
    "two calls": rf"{CALL}\n{CALL}",
    "a text, then a call": rf"I will look\.\n{CALL}",
    "no call": r"It is (sunny|cold) in Paris\.",
}


@pytest.fixture(scope="module")
def parsed(vllm: httpx.Client) -> Iterator[httpx.Client]:
    """A gateway that finds the calls itself."""
    target = {"name": "parsed", "backend": "vllm", "url": str(vllm.base_url), "tool_parser": "hermes"}
    with gateway_process(json.dumps({"routes": {"smollm2-135m": {"targets": [target]}}})) as started:
        key = started.key()["secret"]
        with client(started.url, authorization=f"Bearer {key}") as ours:
            yield ours


def asked(pattern: str, **more: Any) -> dict[str, Any]:
    tools = [{"type": "function", "function": WEATHER}]
    return {**LEAST, "tools": tools, "structured_outputs": {"regex": pattern}, **more}


def whole(towards: httpx.Client, pattern: str) -> tuple[str, list[Any], str]:
    reply = towards.post("/v1/chat/completions", json=asked(pattern))
    assert reply.status_code == 200, reply.text
    choice = reply.json()["choices"][0]
    calls = [call["function"] for call in choice["message"].get("tool_calls") or []]
    return choice["message"]["content"] or "", calls, choice["finish_reason"]


def streamed(towards: httpx.Client, pattern: str) -> tuple[str, list[Any], str]:
    content, calls, finish = "", list[Any](), ""
    reply = towards.post("/v1/chat/completions", json=asked(pattern, stream=True))
    assert reply.status_code == 200 and reply.text.endswith("data: [DONE]\n\n"), reply.text
    for event in reply.text.split("\n\n")[:-2]:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            delta, finish = choice["delta"], choice["finish_reason"] or finish
            content += delta.get("content") or ""
            for piece in delta.get("tool_calls") or []:
                if piece["index"] == len(calls):
                    calls.append({"name": piece["function"]["name"], "arguments": ""})
                calls[piece["index"]]["arguments"] += piece["function"].get("arguments") or ""
    return content, calls, finish


def told(answer: tuple[str, list[Any], str]) -> tuple[str, list[Any], str]:
    """Blanks around the text, and within the arguments' JSON, are each parser's own."""
    content, calls, finish = answer
    return content.strip(), [(call["name"], json.loads(call["arguments"])) for call in calls], finish


@pytest.mark.parametrize("case", CASES)
def test_the_same_calls_as_the_engines_own_parser_finds(vllm: httpx.Client, parsed: httpx.Client, case: str) -> None:
    pattern = CASES[case]
    engines = told(whole(vllm, pattern))
    assert engines[2] == ("stop" if case == "no call" else "tool_calls")
    assert told(whole(parsed, pattern)) == engines
    assert told(streamed(parsed, pattern)) == told(streamed(vllm, pattern)) == engines


def test_clients_of_another_dialect_get_them_in_their_own(parsed: httpx.Client) -> None:
    tools = [{"name": "get_weather", "input_schema": CITY}]
    body = {**asked(CASES["one call"]), "tools": tools}
    message = parsed.post("/v1/messages", json=body).json()
    (block,) = message["content"]
    assert (block["type"], block["name"], message["stop_reason"]) == ("tool_use", "get_weather", "tool_use")
    assert block["input"]["city"] in ("Paris", "Rome", "Oslo")
    text = parsed.post("/v1/messages", json={**body, "stream": True}).text
    events = [json.loads(event.split("data: ")[1]) for event in text.split("\n\n")[:-1]]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert json.loads("".join(delta["partial_json"] for delta in deltas)) == block["input"]
    assert events[-1]["type"] == "message_stop" and len(deltas) > 1
