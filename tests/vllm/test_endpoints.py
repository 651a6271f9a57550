"""Endpoints beside chats and completions, straight to vLLM and through the gateway: the same bytes but ids and times.

A server that makes embeddings ranks and scores, too; TGI's dialect is translated for vLLM.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
from harness.gateway_process import gateway_process
from harness.vllm_server import client, vllm_server

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(400),
    pytest.mark.skipif("TEST_VLLM_THROUGH" in os.environ, reason="the gateway in between is not ours"),
]

MODEL = "smollm2-135m"
TEXT = "Say hello in five words."
CITY = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}}, "required": ["city"]}
FORM = {"format": {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}}
RESPONSE: dict[str, Any] = {"input": TEXT, "max_output_tokens": 6, "temperature": 0, "store": False}
MESSAGE: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "messages": [{"role": "user", "content": TEXT}]}
SAID = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": TEXT}]}]
WEATHER = {"name": "get_weather", "description": "Tells the weather", "input_schema": CITY}

ALONE: dict[str, tuple[str, dict[str, Any]]] = {
    "responses": ("/v1/responses", RESPONSE),
    "responses, stream": ("/v1/responses", {**RESPONSE, "stream": True}),
    "responses, items": ("/v1/responses", {**RESPONSE, "input": SAID, "instructions": "You are terse."}),
    "responses, form": ("/v1/responses", {**RESPONSE, "max_output_tokens": 40, "text": FORM}),
    "responses, bad": ("/v1/responses", {**RESPONSE, "temperature": 9}),
    "messages": ("/v1/messages", MESSAGE),
    "messages, stream": ("/v1/messages", {**MESSAGE, "stream": True}),
    "messages, system": ("/v1/messages", {**MESSAGE, "system": [{"type": "text", "text": "You are terse."}]}),
    "messages, tool": (
        "/v1/messages",
        {**MESSAGE, "max_tokens": 96, "tools": [WEATHER], "tool_choice": {"type": "tool", "name": "get_weather"}},
    ),
    "messages, bad": ("/v1/messages", {**MESSAGE, "temperature": 9}),
    "messages, count": ("/v1/messages/count_tokens", {"messages": MESSAGE["messages"]}),
    "tokenize": ("/tokenize", {"prompt": TEXT}),
    "tokenize, chat": ("/tokenize", {"messages": MESSAGE["messages"]}),
    "detokenize": ("/detokenize", {"tokens": [504, 3575, 282]}),
}
POOLED: dict[str, tuple[str, dict[str, Any]]] = {
    "rerank": ("/v1/rerank", {"query": "a city", "documents": ["Paris", "bread", "Rome"]}),
    "rerank, top": ("/v2/rerank", {"query": "a city", "documents": ["Paris", "bread", "Rome"], "top_n": 1}),
    "score": ("/score", {"text_1": "a city", "text_2": ["Paris", "bread"]}),
    "embeddings": ("/v1/embeddings", {"input": ["hello", "world"]}),
    "embeddings, base64": ("/v1/embeddings", {"input": "hello", "encoding_format": "base64"}),
    "tokenize": ("/tokenize", {"prompt": TEXT}),
    "rerank, bad": ("/v1/rerank", {"query": "a city"}),
}


def masked(body: bytes) -> bytes:
    """Ids by order of appearance, times as zero."""
    names: dict[bytes, bytes] = {}
    ids = rb"\b(?:resp|msg|rs|fc|call|chatcmpl|chatcmpl-tool|rerank|score|embd|item|toolu)[_-][\w-]+"
    body = re.sub(ids, lambda found: names.setdefault(found[0], b"id-%d" % len(names)), body)
    return re.sub(rb'"(created|created_at|completed_at)":\s*[\d.]+', rb'"\1":0', body)


def compare(
    name: str, case: tuple[str, dict[str, Any]], vllm: httpx.Client, gateway: httpx.Client, record: Callable[..., None]
) -> None:
    path, body = case
    replies = [towards.post(path, json={"model": MODEL, **body}) for towards in (vllm, gateway)]
    expected, got = ((reply.status_code, reply.headers["content-type"], masked(reply.content)) for reply in replies)
    events = expected[2].count(b"\n\n") if expected[1].startswith("text/event-stream") else ""
    record("endpoints", name, expected[0], len(expected[2]), events, "equal" if got == expected else "DIFFERENT")
    assert got == expected
    assert "bad" not in name or expected[0] == 400


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("name", ALONE)
def test_an_answer_is_passed_on_byte_for_byte(
    vllm: httpx.Client, gateway: httpx.Client, record: Callable[..., None], name: str
) -> None:
    compare(name, ALONE[name], vllm, gateway, record)


@pytest.fixture(scope="module")
def pooling(tmp_path_factory: pytest.TempPathFactory, tell: Callable[[str], None]) -> Iterator[httpx.Client]:
    tell("a vLLM that makes embeddings is starting")
    with vllm_server(tmp_path_factory.mktemp("pooling"), "pooling") as started:
        started.wait_ready(tell)
        yield started.client


@pytest.fixture(scope="module")
def before_pooling(pooling: httpx.Client) -> Iterator[httpx.Client]:
    target = {"name": "pooling", "backend": "vllm", "url": str(pooling.base_url)}
    with gateway_process(json.dumps({"routes": {MODEL: {"targets": [target]}}})) as started:
        key = started.key()["secret"]
        with client(started.url, authorization=f"Bearer {key}") as ours:
            yield ours


@pytest.mark.parametrize("name", POOLED)
def test_so_is_one_of_a_pooling_server(
    pooling: httpx.Client, before_pooling: httpx.Client, record: Callable[..., None], name: str
) -> None:
    compare(f"pooling, {name}", POOLED[name], pooling, before_pooling, record)


def test_openais_client_reads_a_streamed_response(gateway: httpx.Client) -> None:
    key = gateway.headers["authorization"].removeprefix("Bearer ")
    with openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0, timeout=100) as sdk:
        asked: dict[str, Any] = {"model": MODEL, "input": "A city.", "max_output_tokens": 60, "text": FORM}
        with sdk.responses.stream(**asked) as stream:
            final = stream.get_final_response()
    assert json.loads(final.output_text)["city"] in ("Paris", "Rome")
    assert final.usage is not None and final.usage.output_tokens > 0


def test_tgis_dialect_says_what_vllm_completes(vllm: httpx.Client, gateway: httpx.Client) -> None:
    prompt = "The capital of France is"
    asked = {"model": MODEL, "prompt": prompt, "max_tokens": 6, "temperature": 0, "return_token_ids": True}
    choice = vllm.post("/v1/completions", json=asked).json()["choices"][0]
    body = {"model": MODEL, "inputs": prompt, "parameters": {"max_new_tokens": 6, "details": True}}
    whole = gateway.post("/generate", json=body).json()
    assert whole["generated_text"] == choice["text"]
    assert [token["id"] for token in whole["details"]["tokens"]] == choice["token_ids"]
    events = gateway.post("/generate_stream", json=body).text.split("\n\n")[:-1]
    told = [json.loads(event.removeprefix("data:")) for event in events]
    assert "".join(event["token"]["text"] for event in told) == told[-1]["generated_text"] == choice["text"]
    assert told[-1]["details"]["generated_tokens"] == 6


def test_its_grammars_bind_on_vllm(gateway: httpx.Client) -> None:
    for grammar, check in (
        ({"type": "json", "value": CITY}, lambda text: json.loads(text)["city"] in ("Paris", "Rome")),
        ({"type": "regex", "value": "(Paris|Rome)"}, lambda text: text in ("Paris", "Rome")),
    ):
        body = {"model": MODEL, "inputs": "A city:", "parameters": {"max_new_tokens": 40, "grammar": grammar}}
        reply = gateway.post("/generate", json=body)
        assert check(reply.json()["generated_text"]), reply.text
