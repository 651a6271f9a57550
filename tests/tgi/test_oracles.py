"""Checks that the two public TGI clients understand the server: answers, streams, and each kind of error."""

import json
from pathlib import Path
from typing import Any

import pytest
from harness.gateway_process import gateway_process
from tgi import oracles

from .conftest import real_url

# Making an environment for the first time takes longer than any test may.
pytestmark = pytest.mark.timeout(240)
prompt = "The capital of France is"


@pytest.fixture(scope="module", params=oracles.names)
def name(request: pytest.FixtureRequest) -> str:
    """The client's."""
    return str(request.param)


@pytest.fixture(scope="module")
def seen(name: str, tgi_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home: Path = tmp_path_factory.mktemp("hf")
    return oracles.ask(name, tgi_url, home, faults=not real_url)


def test_plain_and_detailed_answers_agree(seen):
    details = seen["details"]
    assert seen["plain"].removeprefix(prompt) == details["tokens"]
    assert (details["finish_reason"], details["generated_tokens"]) == ("length", 4)
    assert details["prefill"] > 0
    assert details["top_tokens"] == 4
    assert seen["best of"] == 1


def test_stream_agrees_with_the_plain_answer(seen):
    assert seen["streamed"]["generated_text"] == seen["plain"]
    assert seen["streamed"]["tokens"] == seen["plain"].removeprefix(prompt)
    assert (seen["streamed"]["finish_reason"], seen["streamed"]["generated_tokens"]) == ("length", 4)


def test_chat(seen):
    assert seen["chat"]["finish_reason"] == "length"
    assert seen["chat"]["content"]
    streamed = seen.get("chat streamed")  # the older client cannot read TGI's chat streams
    assert streamed is None or (streamed["finish_reason"], streamed["completion_tokens"]) == ("length", 4)


def test_too_long_is_a_validation_error(seen):
    assert seen["invalid"] == seen["invalid streamed"]
    assert seen["invalid"]["error"] == "ValidationError"
    assert "`inputs` tokens + `max_new_tokens` must be <= " in seen["invalid"]["text"]


@pytest.mark.standin_only
@pytest.mark.parametrize(
    ("scenario", "error"),
    [
        ("overloaded", "OverloadedError"),
        ("overloaded streamed", "OverloadedError"),
        ("failing", "GenerationError"),
        ("failing streamed", "GenerationError"),
        ("incomplete", "IncompleteGenerationError"),
        ("incomplete streamed", "UnknownError"),  # neither client knows TGI's name for it
    ],
)
def test_faults_raise_the_errors_of_their_kind(seen, scenario, error):
    assert seen[scenario]["error"] == error


@pytest.fixture(scope="module")
def through(name: str, tgi_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the same client sees through a gateway, at which it names no model."""
    target = {"name": "tgi", "backend": "tgi", "url": tgi_url}
    names = ["dummy"]  # what huggingface_hub's chats call a model that has no name; the other one calls it "tgi"
    route = {"aliases": names, "targets": [target], "forward_headers": ["x-fault"], "retry": {"attempts": 1}}
    with gateway_process(json.dumps({"routes": {"tgi": route}, "default_route": "tgi"})) as gateway:
        home, key = tmp_path_factory.mktemp("hf"), gateway.issue().secret
        return oracles.ask(name, gateway.url, home, faults=not real_url, key=key)


def test_a_gateway_makes_no_difference_but_in_whose_words_a_failure_is_told(seen, through):
    kinds = {name: told["error"] for name, told in seen.items() if isinstance(told, dict) and "error" in told}
    # An answer that the server could not end is not told of as such: that it has failed is.
    kinds |= {name: "GenerationError" for name in kinds if name.startswith("incomplete")}
    assert {name: through[name]["error"] for name in kinds} == kinds
    for answer in (seen["chat"], through["chat"]):
        assert answer.pop("content"), "its sampling has no seed"
    assert {name: through[name] for name in seen.keys() - kinds} == {name: seen[name] for name in seen.keys() - kinds}
