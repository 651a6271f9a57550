"""What servers say that they are: real answers, other versions' answers, and answers of servers of another kind."""

from __future__ import annotations

import json
from typing import Any

import pytest
from harness.captures import captures
from msgspec import structs

from backends.api import Described, Facts
from backends.llamacpp import LlamaCpp
from backends.openai import OpenAI
from backends.sglang import SGLang
from backends.tgi import TGI
from backends.vllm import VLLM


def recorded(name: str) -> bytes:
    (capture,) = captures(name)
    return capture.body


def answers(**by_path: Any) -> dict[str, bytes]:
    """JSON answers; an underscore in a name stands for a slash."""
    return {"/" + path.replace("__", "/"): json.dumps(body).encode() for path, body in by_path.items()}


def cards(*given: dict[str, Any]) -> dict[str, bytes]:
    return answers(v1__models={"object": "list", "data": list(given)})


def test_a_real_vllm() -> None:
    told = {"/v1/models": recorded("vllm/vllm-models"), "/version": recorded("vllm/vllm-version")}
    expected = Facts(context=2048, models=("chat-alias", "smollm2-135m"), version="0.32.0", loras=())
    assert VLLM().facts(told, None) == expected
    del told["/version"]
    assert VLLM().facts(told, "smollm2-135m") == structs.replace(expected, version=None)


def test_a_real_llamacpp_counts_the_context_of_one_slot() -> None:
    told = {"/v1/models": recorded("llamacpp/llamacpp-models"), "/props": recorded("llamacpp/llamacpp-props")}
    expected = Facts(prompt=2048, models=("smollm2-135m",), version="b0-unknown", kv_tokens=8192)
    assert LlamaCpp().facts(told, None) == expected
    del told["/props"]
    assert LlamaCpp().facts(told, None) == Facts(context=2048, models=("smollm2-135m",))


def test_a_llamacpp_that_routes_to_others_has_no_context_of_its_own() -> None:
    told = answers(props={"role": "router", "default_generation_settings": {"n_ctx": 0}, "build_info": "b1"})
    assert LlamaCpp().facts(told, None) == Facts(version="b1")


def test_models_of_a_llamacpp_router_are_listed_whether_they_are_loaded_or_not() -> None:
    statuses = ("loaded", "loading", "unloaded", "sleeping")
    told = {
        **cards(
            *({"id": each, "status": {"value": each, "args": []}, "in_cache": True, "path": ""} for each in statuses)
        ),
        **answers(props={"role": "router", "max_instances": 4, "models_autoload": True, "total_slots": None}),
    }
    assert LlamaCpp().facts(told, "loading") == Facts(models=tuple(sorted(statuses)))
    assert LlamaCpp().gauges('{"error":{"message":"model name is missing from the request"}}') is None


@pytest.mark.parametrize("prompt", ["max_input_tokens", "max_input_length"])
def test_tgi(prompt: str) -> None:
    info = {"model_id": "org/m", "version": "3.3.6", "max_total_tokens": 4096, prompt: 4000, "sha": None}
    expected = Facts(context=4096, prompt=4000, models=("org/m",), version="3.3.6")
    assert TGI().facts(answers(info=info), None) == expected


@pytest.mark.parametrize("path", ["server_info", "get_server_info"])
def test_sglang(path: str) -> None:
    told = {
        **cards({"id": "m", "max_model_len": 32768}, {"id": "fr", "parent": "m", "max_model_len": None}),
        **answers(**{path: {"version": "0.5.3", "max_total_num_tokens": 500_000, "api_key": "secret"}}),
    }
    expected = Facts(context=32768, models=("m",), version="0.5.3", loras=("fr",), kv_tokens=500_000)
    assert SGLang().facts(told, None) == expected


def test_a_call_must_fit_the_cache_of_sglang() -> None:
    about = answers(server_info={"max_total_num_tokens": 20_000})
    assert SGLang().facts({**cards({"id": "m", "max_model_len": 32768}), **about}, None).context == 20_000
    assert SGLang().facts(about, None) == Facts(kv_tokens=20_000)


def test_lora_adapters_are_told_from_models() -> None:
    told = cards({"id": "m", "parent": None}, {"id": "b", "parent": "m"}, {"id": "a", "parent": "m"})
    assert OpenAI().facts(told, None) == Facts(models=("m",), loras=("a", "b"))


def test_a_server_that_has_no_word_for_them_tells_nothing_of_adapters() -> None:
    assert OpenAI().facts(cards({"id": "m"}), None) == Facts(models=("m",))


def test_of_models_with_different_contexts_the_targets_own_counts() -> None:
    told = cards({"id": "long", "max_model_len": 9000}, {"id": "short", "max_model_len": 1000}, {"id": "other"})
    assert OpenAI().facts(told, "short").context == 1000
    assert OpenAI().facts(told, "long").context == 9000
    assert OpenAI().facts(told, "other").context is None, "nobody knows"
    assert OpenAI().facts(told, None).context is None, "the client's word would decide"


def test_an_adapter_has_the_context_of_its_model() -> None:
    told = cards({"id": "m", "max_model_len": 9000}, {"id": "fr", "parent": "m"})
    assert OpenAI().facts(told, "fr").context == 9000


@pytest.mark.parametrize(
    "body", [{}, {"data": None}, {"data": [{"id": 3}]}, {"data": [{"id": "m", "max_model_len": "many"}]}, [], 3]
)
def test_what_is_not_understood_is_not_told(body: Any) -> None:
    assert OpenAI().facts(answers(v1__models=body), None) == Facts()


def test_every_kind_can_be_described() -> None:
    for adapter in (OpenAI(), VLLM(), TGI(), LlamaCpp(), SGLang()):
        assert isinstance(adapter, Described)
