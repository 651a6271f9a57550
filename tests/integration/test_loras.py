"""LoRA adapters that engines have loaded are models, where the route says so; and headers that engines may go by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Received, Script, Target, Upstream, whole
from integration.client import CHAT, ask, chat, eventually, get


def listing(*loras: str) -> dict[str, Any]:
    """What a vLLM with these adapters says of its models."""
    cards = [{"id": "base", "max_model_len": 4096, "parent": None}]
    return {"object": "list", "data": [*cards, *({"id": lora, "parent": "base"} for lora in loras)]}


class Engine:
    """A target that has adapters."""

    def __init__(self, target: Target, *loras: str) -> None:
        self.target, self._loras = target, loras
        self._others = target.answers
        target.answers = self.answers  # type: ignore[method-assign]

    def answers(self, received: Received) -> Script:
        if received.method == "GET" and received.path.startswith("/v1/models"):
            return whole(listing(*self._loras))
        return self._others(received)


@pytest.fixture(scope="module")
def engines(upstream: Upstream) -> list[Engine]:
    return [
        Engine(upstream.target("lora-a"), "poems", "both"),
        Engine(upstream.target("lora-b"), "both"),
        Engine(upstream.target("lora-c"), "hidden"),
    ]


@pytest.fixture(scope="module")
def tuned(upstream: Upstream, engines: list[Engine]) -> Iterator[GatewayProcess]:
    def target(name: str) -> dict[str, Any]:
        return {"name": name, "backend": "vllm", "url": upstream.target(name).url, "model": "base"}

    routes = {
        "tuned": {"targets": [target("lora-a"), target("lora-b")], "loras": True, "policy": "round-robin"},
        "plain": {"targets": [target("lora-c")]},
    }
    with gateway_process(json.dumps({"routes": routes})) as started:
        key = started.issue().secret
        eventually(lambda: "poems" in names(started, key) or None, "the adapters are known")
        yield started


def names(gateway: GatewayProcess, key: str) -> list[str]:
    return [model["id"] for model in get(gateway, "/v1/models", key).json()["data"]]


def test_adapters_are_listed_where_the_route_says_so(tuned: GatewayProcess) -> None:
    assert names(tuned, tuned.issue().secret) == ["tuned", "plain", "both", "poems"]
    assert names(tuned, tuned.issue(models=("plain",)).secret) == ["plain"]
    assert names(tuned, tuned.issue(models=("poems",)).secret) == ["poems"]
    assert get(tuned, "/v1/models/poems", tuned.issue().secret).json()["id"] == "poems"


def test_a_call_goes_to_the_engines_that_have_the_adapter(tuned: GatewayProcess, engines: list[Engine]) -> None:
    key = tuned.issue().secret
    for engine in engines:
        engine.target.calls.clear()
    for number in range(4):
        assert ask(tuned, chat("poems", user=f"{number}"), key).status == 200
    first, second, _ = (engine.target for engine in engines)
    assert [call.json()["model"] for call in first.calls] == ["poems"] * 4
    assert not second.calls
    for number, model in enumerate(["both"] * 4 + ["tuned"] * 4):
        assert ask(tuned, chat(model, user=f"{number}"), key).status == 200
    assert {call.json()["model"] for call in second.calls} == {"both", "base"}


@pytest.mark.parametrize("model", ["hidden", "base", "none"])
def test_other_names_are_no_models(tuned: GatewayProcess, model: str) -> None:
    reply = ask(tuned, chat(model), tuned.issue().secret)
    assert (reply.status, reply.error["code"]) == (404, "model_not_found")


def test_a_key_may_be_for_one_adapter(tuned: GatewayProcess) -> None:
    narrow = tuned.issue(models=("poems",)).secret
    assert ask(tuned, chat("poems"), narrow).status == 200
    assert ask(tuned, chat("both"), narrow).status == 403


@pytest.mark.parametrize(
    "name",
    ["x-session-id", "x-claude-code-session-id", "session-id", "thread-id", "anthropic-version", "anthropic-beta"],
)
def test_what_engines_may_go_by_goes_on(tuned: GatewayProcess, engines: list[Engine], name: str) -> None:
    for engine in engines:
        engine.target.calls.clear()
    ask(tuned, chat("plain"), tuned.issue().secret, CHAT, headers={name: "said", "x-other": "unsaid"})
    (call,) = engines[2].target.calls
    assert (call.header(name), call.header("x-other")) == ("said", None)
