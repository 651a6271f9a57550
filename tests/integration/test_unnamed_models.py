"""Calls that name no model, clients of TGI among them, and lists of models as each client asks for them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Act, Target, Upstream, stream, usage, whole
from integration.client import CHAT, ask, chat, get, record

ASKED = {"inputs": "Once", "parameters": {"max_new_tokens": 3}}


@pytest.fixture(scope="module")
def lenient(upstream: Upstream) -> Iterator[GatewayProcess]:
    """Its default is a vLLM; another route is served by TGI."""

    def target(name: str, backend: str, **fields: Any) -> dict[str, Any]:
        return {"name": name, "backend": backend, "url": upstream.target(name).url, **fields}

    routes = {
        "main": {"aliases": ["the-usual"], "targets": [target("main", "vllm")]},
        "tgi": {"targets": [target("tgi", "tgi")], "retry": {"attempts": 1}},
    }
    with gateway_process(json.dumps({"routes": routes, "default_route": "the-usual"})) as started:
        yield started


@pytest.fixture(scope="module")
def caller(lenient: GatewayProcess) -> str:
    return lenient.issue().secret


def renewed(upstream: Upstream, name: str) -> Target:
    target = upstream.target(name)
    target.restore()
    return target


@pytest.mark.parametrize("named", [{}, {"model": None}, {"model": ""}])
def test_a_call_that_names_no_model_gets_the_default(
    lenient: GatewayProcess, caller: str, upstream: Upstream, named: dict[str, Any]
) -> None:
    target = renewed(upstream, "main")
    body = {**chat("x"), **named}
    if not named:
        del body["model"]
    reply = ask(lenient, body, caller)
    assert (reply.status, target.calls[0].json()["model"]) == (200, "the-usual")
    assert record(lenient, reply.header("x-request-id"))["route"] == "main"


def test_a_key_that_may_not_use_the_default_is_told_so(lenient: GatewayProcess) -> None:
    reply = ask(lenient, {"messages": []}, lenient.issue(models=("tgi",)).secret)
    assert (reply.status, reply.error["code"]) == (403, "model_not_allowed")


def test_a_keys_own_default_goes_first(lenient: GatewayProcess, upstream: Upstream) -> None:
    renewed(upstream, "main")
    target = renewed(upstream, "tgi")
    key = lenient.issue(default_route="tgi").secret
    reply = ask(lenient, {"messages": [{"role": "user", "content": "Hi"}]}, key)
    assert (reply.status, len(target.calls)) == (200, 1)
    assert record(lenient, reply.header("x-request-id"))["route"] == "tgi"


def test_a_model_that_is_no_text_is_no_call_without_one(lenient: GatewayProcess, caller: str) -> None:
    assert ask(lenient, {"model": 3, "messages": []}, caller).status == 400


def completion(text: str) -> dict[str, Any]:
    choice = {"index": 0, "text": text, "finish_reason": "length", "logprobs": None}
    return {
        "id": "c",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage(4, 3),
    }


@pytest.mark.parametrize(("path", "listed"), [("/generate", False), ("/", True)])
def test_clients_of_tgi_can_ask_other_servers(
    lenient: GatewayProcess, caller: str, upstream: Upstream, path: str, listed: bool
) -> None:
    target = renewed(upstream, "main")
    target.script = whole(completion(" upon a time"))
    reply = ask(lenient, ASKED, caller, path)
    assert reply.status == 200
    said = reply.json()[0] if listed else reply.json()
    assert said["generated_text"].endswith(" upon a time")
    assert (target.calls[0].path, target.calls[0].json()["max_tokens"]) == ("/v1/completions", 3)
    assert record(lenient, reply.header("x-request-id"))["usage"]["completion_tokens"] == 3


def test_a_stream_for_clients_of_tgi(lenient: GatewayProcess, caller: str, upstream: Upstream) -> None:
    target = renewed(upstream, "main")

    def piece(text: str, reason: str | None = None, **more: Any) -> bytes:
        data = {**completion(text), **more}
        data["choices"] = data["choices"] and [{**data["choices"][0], "finish_reason": reason}]
        del data["usage"]
        return b"data: " + json.dumps({**data, **more}).encode() + b"\n\n"

    end = piece("", choices=[], usage=usage(4, 2))
    target.script = stream(piece(" upon"), piece(" a", "length"), end, b"data: [DONE]\n\n")
    reply = ask(lenient, ASKED, caller, "/generate_stream")
    events = [json.loads(data) for data in reply.body.replace(b"data:", b"").split(b"\n\n") if data.strip()]
    assert reply.status == 200 and events[-1]["generated_text"] == " upon a"
    target.script = stream(piece(" upon"), Act.CUT)
    broken = ask(lenient, ASKED, caller, "/generate_stream")
    last = json.loads(broken.body.rstrip().rpartition(b"\n\n")[2].removeprefix(b"data:"))
    assert last["error"] and last["error_type"] == "generation"


def token(text: str, whole_text: str | None = None) -> bytes:
    made = {"id": 1, "text": text, "logprob": -0.1, "special": False}
    details = None if whole_text is None else {"finish_reason": "length", "generated_tokens": 2, "input_length": 4}
    data = {"index": 1, "token": made, "generated_text": whole_text, "details": details}
    return b"data:" + json.dumps(data).encode() + b"\n\n"


def test_tgi_itself_gets_and_gives_its_own_words(lenient: GatewayProcess, caller: str, upstream: Upstream) -> None:
    target = renewed(upstream, "tgi")
    sent = [token(" upon"), b":\n\n", token(" a", " upon a")]
    target.script = stream(*sent)
    reply = ask(lenient, {"model": "tgi", **ASKED}, caller, "/generate_stream")
    assert (reply.status, reply.body, target.calls[0].path) == (200, b"".join(sent), "/generate_stream")
    used = record(lenient, reply.header("x-request-id"))["usage"]
    assert (used["prompt_tokens"], used["completion_tokens"], used["source"]) == (4, 2, "upstream")
    target.script = whole([{"generated_text": "Once upon"}])
    reply = ask(lenient, {"model": "tgi", **ASKED}, caller, "/")
    assert (reply.body, target.calls[1].path) == (b'[{"generated_text": "Once upon"}]', "/")


def test_an_error_of_tgis_within_a_stream_is_a_status(lenient: GatewayProcess, caller: str, upstream: Upstream) -> None:
    target = renewed(upstream, "tgi")
    target.script = stream(b'data:{"error":"Input validation error: x","error_type":"validation"}\n\n')
    reply = ask(lenient, {"model": "tgi", **ASKED}, caller, "/generate_stream")
    assert (reply.status, reply.json()) == (422, {"error": "Input validation error: x", "error_type": "validation"})


def test_a_stream_of_tgis_without_its_last_event_is_broken(
    lenient: GatewayProcess, caller: str, upstream: Upstream
) -> None:
    target = renewed(upstream, "tgi")
    target.script = stream(token(" upon"))
    reply = ask(lenient, {"model": "tgi", **ASKED}, caller, "/generate_stream")
    assert reply.body.startswith(token(" upon")) and b'"error_type":"generation"' in reply.body


def test_info_is_of_the_default(lenient: GatewayProcess, caller: str) -> None:
    assert get(lenient, "/info", caller).json()["model_id"] == "the-usual"
    assert get(lenient, "/info").status == 401
    assert get(lenient, "/").json()["name"] == "trunkline"


def test_lists_of_models_are_as_their_clients_know_them(lenient: GatewayProcess, caller: str) -> None:
    named = get(lenient, "/v1/models", caller, headers={"anthropic-version": "2023-06-01"}).json()
    assert [model["type"] for model in named["data"]] == ["model"] * 3
    assert (named["first_id"], named["has_more"]) == (named["data"][0]["id"], False)
    plain = get(lenient, "/v1/models", caller).json()
    asked = get(lenient, "/v1/models?client_version=0.60.0", caller).json()
    assert "models" not in plain and asked == {**plain, "models": []}


def test_without_a_default_a_model_is_required(gateway: GatewayProcess, key: str) -> None:
    reply = ask(gateway, {"messages": []}, key, CHAT)
    assert (reply.status, reply.error["param"]) == (400, "model")
    assert get(gateway, "/info", key).status == 404
