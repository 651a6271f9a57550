"""Which calls take part in the response cache."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends.api import Call, Endpoint
from backends.body import Body
from gateway.answers.taking_part import MOST_BODY, obstacle, wish_of
from gateway.config.caching import ResponseCacheSpec
from gateway.core.errors import BadRequest

DETERMINISTIC, ASKED = ResponseCacheSpec(), ResponseCacheSpec(calls="asked")
FUNCTION = {"type": "function", "function": {"name": "f"}}
LINK = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]}]


def call(endpoint: Endpoint = "chat/completions", **fields: Any) -> Call:
    return Call("tl-1", endpoint, "m", Body(json.dumps(fields).encode()))


def shown(value: Call | str) -> str:
    """As the name of a test."""
    return value if isinstance(value, str) else f"{value.endpoint} {value.body.raw[:60].decode()}"


SAME: list[Call] = [
    call(temperature=0),
    call(temperature=0.0),
    call(temperature=-0.0),
    call(seed=0),
    call(seed=7, temperature=1),
    call(temperature=0, tools=[FUNCTION]),
    call(temperature=0, tools=None),
    call("completions", temperature=0, prompt="x"),
    call("messages", temperature=0, tools=[{"name": "f", "input_schema": {}}]),
    call("responses", temperature=0, store=False, previous_response_id=None),
    call("generate", parameters={"do_sample": False}),
    call("generate", parameters={"seed": 3}),
    call("embeddings", input="x"),
    call("rerank", query="x", documents=["y"]),
    call("score", text_1="x", text_2="y"),
]


@pytest.mark.parametrize("each", SAME, ids=shown)
def test_calls_with_the_same_answer_each_time_take_part(each: Call) -> None:
    assert obstacle(each, DETERMINISTIC, "") == ""
    assert "does not ask" in obstacle(each, ASKED, "")
    assert "no-store" in obstacle(each, DETERMINISTIC, "no-store")


OTHERS: list[tuple[Call, str]] = [
    (call(), "'temperature'"),
    (call(temperature=1e-9), "'temperature'"),
    (call(temperature="0"), "'temperature'"),
    (call(temperature=False), "'temperature'"),
    (call(seed=None), "'seed'"),
    (call(seed="7"), "'seed'"),
    (call(seed=True), "'seed'"),
    (call(temperature=0, messages=LINK), "images"),
    (call(temperature=0, tools=[{"type": "web_search"}]), "tool"),
    (call(temperature=0, tools=[FUNCTION, {"type": "code_interpreter"}]), "tool"),
    (call(temperature=0, tools="f"), "tool"),
    (call(temperature=0, web_search_options={}), "web_search_options"),
    (call("responses", temperature=0, prompt={"id": "x"}), "prompt"),
    (call("messages", temperature=0, mcp_servers=[{"url": "x"}]), "mcp_servers"),
    (call("generate", temperature=0), "'temperature'"),
    (call("generate", parameters={"do_sample": True}), "'temperature'"),
    (call("generate", parameters="x"), "'temperature'"),
]


@pytest.mark.parametrize(("each", "why"), OTHERS, ids=shown)
def test_others_only_if_they_ask_for_it(each: Call, why: str) -> None:
    assert why in obstacle(each, DETERMINISTIC, "")
    for spec in (DETERMINISTIC, ASKED):
        assert obstacle(each, spec, "use") == obstacle(each, spec, "refresh") == ""


NEVER: list[tuple[Call, str]] = [
    (call("tokenize", prompt="x"), "'tokenize'"),
    (call("messages/count_tokens"), "'messages/count_tokens'"),
    (call("decisions"), "'decisions'"),
    (call("passed"), "'passed'"),
    (call("responses", temperature=0, store=True), "'store'"),
    (call("responses", temperature=0, previous_response_id="resp_1"), "'previous_response_id'"),
    (call("responses", temperature=0, background=True), "'background'"),
    (call(temperature=0, x="y" * MOST_BODY), "larger"),
]


@pytest.mark.parametrize(("each", "why"), NEVER, ids=shown)
def test_some_never_do(each: Call, why: str) -> None:
    for wish in ("", "use", "refresh"):
        assert why in obstacle(each, DETERMINISTIC, wish)  # type: ignore[arg-type]


@pytest.mark.parametrize(("said", "wish"), [(b"use", "use"), (b" Refresh ", "refresh"), (b"no-store", "no-store")])
def test_a_call_says_what_it_wishes(said: bytes, wish: str) -> None:
    assert wish_of({b"x-trunkline-cache": said}) == wish


@pytest.mark.parametrize("said", [b"", b"yes", b"use, refresh", b"\xff"])
def test_other_words_are_refused(said: bytes) -> None:
    with pytest.raises(BadRequest, match="'use', 'refresh', 'no-store'"):
        wish_of({b"x-trunkline-cache": said})
