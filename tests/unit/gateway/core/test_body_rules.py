"""Rules for bodies: what they make of a call, which goes before which, and what cannot be meant."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from backends import large
from backends.api import Call, Endpoint
from backends.body import Body
from gateway.core.body_rules import MOST_BYTES, MOST_FIELDS, NO_RULES, BodyRules, mistakes, ruled
from gateway.core.errors import BadRequest
from gateway.core.types import KeyRecord

RULE = dict[str, Any]


def call(endpoint: Endpoint = "chat/completions", **fields: Any) -> Call:
    raw = json.dumps({"model": "m", "messages": [], **fields}).encode()
    return Call("c", endpoint, "m", Body(raw))


def rules(**parts: Any) -> BodyRules:
    return msgspec.convert(parts, BodyRules)


def left(asked: Call, route: RULE | None = None, key: RULE | None = None) -> RULE:
    """What is left of the call's fields beside those that make it a call."""
    made = ruled(asked, rules(**(route or {})), None if key is None else rules(**key))
    found = json.loads(made.body.raw)
    assert {name: json.loads(bytes(raw)) for name, raw in made.body.fields.items()} == found
    assert made.body.spliced({"model": b'"m"'}) == made.body.raw, "its parts are where they are said to be"
    assert made.asked == Call("c", asked.endpoint, "m", Body(made.body.raw)).asked
    return {name: value for name, value in found.items() if name not in ("model", "messages")}


@pytest.mark.parametrize(
    ("given", "route", "key", "found"),
    [
        ({"a": 1}, {}, None, {"a": 1}),
        ({"a": 1}, {"set": {"a": 2}}, None, {"a": 2}),
        ({}, {"set": {"a": 2}}, None, {"a": 2}),
        ({"a": 1, "b": 2}, {"set": {"a": None}}, None, {"b": 2}),
        ({"b": 2}, {"set": {"a": None}}, None, {"b": 2}),
        ({"a": 1}, {"default": {"a": 2}}, None, {"a": 1}),
        ({}, {"default": {"a": 2}}, None, {"a": 2}),
        ({"a": None}, {"default": {"a": 2}}, None, {"a": 2}),
        ({"a": 0}, {"default": {"a": 2}}, None, {"a": 0}),
        ({"a": 1}, {}, {"set": {"a": 3}}, {"a": 3}),
        ({"a": 1}, {"set": {"a": 2}}, {"set": {"a": 3}}, {"a": 2}),
        ({"a": 1}, {"set": {"a": None}}, {"set": {"a": 3}}, {}),
        ({}, {"default": {"a": 2}}, {"default": {"a": 3}}, {"a": 3}),
        ({}, {"set": {"a": 2}}, {"default": {"a": 3}}, {"a": 2}),
        ({}, {"default": {"a": 2}}, {"set": {"a": 3}}, {"a": 3}),
        ({}, {"default": {"a": 2}}, {"set": {"a": None}}, {}),
        ({}, {"deny": ["a"], "set": {"a": 2}}, {"deny": ["b"], "set": {"b": 3}}, {"a": 2, "b": 3}),
        ({}, {"set": {"a": {"deep": [1.5, "\u00e9", None]}}}, None, {"a": {"deep": [1.5, "\u00e9", None]}}),
    ],
)
def test_what_becomes_of_a_body(given: RULE, route: RULE, key: RULE | None, found: RULE) -> None:
    assert left(call(**given), route, key) == found


@pytest.mark.parametrize(
    ("given", "route", "key", "found"),
    [
        ({"max_completion_tokens": 5000}, {"set": {"max_tokens": 100}}, None, {"max_tokens": 100}),
        ({"max_tokens": 1, "n_predict": -1}, {"set": {"max_completion_tokens": 9}}, None, {"max_completion_tokens": 9}),
        ({"max_tokens": 50}, {"set": {"max_completion_tokens": None}}, None, {}),
        ({"max_completion_tokens": 5}, {"default": {"max_tokens": 100}}, None, {"max_completion_tokens": 5}),
        ({"max_completion_tokens": None}, {"default": {"max_tokens": 9}}, None,
         {"max_completion_tokens": None, "max_tokens": 9}),
        ({}, {"set": {"max_tokens": 100}}, {"set": {"max_completion_tokens": 9}}, {"max_tokens": 100}),
        ({}, {"default": {"max_tokens": 100}}, {"default": {"max_completion_tokens": 9}}, {"max_completion_tokens": 9}),
        ({"n_cmpl": 50}, {"set": {"n": 1}}, None, {"n": 1}),
    ],
)  # fmt: skip
def test_a_rule_for_one_name_of_a_field_is_a_rule_for_all(
    given: RULE, route: RULE, key: RULE | None, found: RULE
) -> None:
    """Engines honour one name or the other: `max_tokens: 100` was no bound beside `max_completion_tokens: 5000`."""
    assert left(call(**given), route, key) == found


def test_what_is_set_is_what_limits_and_routing_count() -> None:
    made = ruled(call(max_completion_tokens=9000, n=7), rules(set={"max_tokens": 50, "n": 2, "best_of": 3}), None)
    assert (made.asked.output, made.asked.choices, made.asked.candidates, made.choices) == (50, 2, 3, 2)
    assert ruled(call(), rules(default={"max_tokens": 70}), None).asked.output == 70
    tools = [{"type": "function", "function": {"name": "f" * 4000}}]
    assert ruled(call(), rules(set={"tools": tools}), None).asked.text > 4000
    assert ruled(call(logit_bias={"1": 1}), rules(set={"logit_bias": None}), None).asked.text < 60


def test_embeddings_have_no_answers_to_bound() -> None:
    asked = call("embeddings", input="x")
    assert left(asked, {"set": {"max_tokens": 5, "user": "u"}, "default": {"n": 2}}) == {"input": "x", "user": "u"}


def test_a_body_without_a_change_is_the_clients_own() -> None:
    asked = call(a=1, max_tokens=5)
    assert ruled(asked, rules(default={"a": 3, "max_completion_tokens": 9}), rules(deny=["b"])) is asked


@pytest.mark.parametrize("whose", ["route", "key"])
def test_denied_fields_are_named(whose: str) -> None:
    denying = rules(deny=["b", "a"], set={"a": 1})
    with pytest.raises(BadRequest, match="'a'") as caught:
        ruled(call(a=None, b=1), *((denying, None) if whose == "route" else (NO_RULES, denying)))
    assert caught.value.param == "a" and f"this {whose}" in caught.value.message
    assert left(call(metadata={"a": 1}), {"deny": ["a"]}) == {"metadata": {"a": 1}}


def test_a_large_body_keeps_what_was_read_of_it() -> None:
    """It was read in windows, and is not read again at once."""
    raw = json.dumps({"model": "m", "prompt": ["word " * 20_000] * 40, "max_tokens": 9, "n": 3}).encode()
    steps = large.read("completions", raw, 10**6)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        body, asked = end.value
    whole = Call("c", "completions", "m", body, asked=asked)
    made = ruled(whole, rules(set={"max_tokens": 50, "n": None}, default={"user": "u"}), None)
    found = json.loads(made.body.raw)
    assert (found["max_tokens"], found["user"], "n" in found) == (50, "u", False)
    assert (made.asked.output, made.asked.choices, made.asked.prompts) == (50, 1, 40)
    assert made.asked.conversation is not None and abs(made.asked.text - asked.text) < 30


@pytest.mark.parametrize(
    ("parts", "place", "told"),
    [
        ({"deny": ["model"]}, ("deny", "model"), "every call"),
        ({"deny": [""]}, ("deny", ""), "printable"),
        ({"deny": ["a\nb"]}, ("deny", "a\nb"), "printable"),
        ({"set": {"x" * 200: 1}}, ("set", "x" * 200), "printable"),
        ({"set": {"model": "other"}}, ("set", "model"), "makes the call"),
        ({"set": {"stream": True}}, ("set", "stream"), "makes the call"),
        ({"default": {"stream_options": {}}}, ("default", "stream_options"), "makes the call"),
        ({"set": {"messages": []}}, ("set", "messages"), "makes the call"),
        ({"default": {"a": None}}, ("default", "a"), "null"),
        ({"set": {"max_tokens": "5"}}, ("set", "max_tokens"), "whole number"),
        ({"set": {"max_tokens": True}}, ("set", "max_tokens"), "whole number"),
        ({"default": {"n": 0}}, ("default", "n"), "whole number"),
        ({"default": {"best_of": 1.5}}, ("default", "best_of"), "whole number"),
        ({"set": {"a": float("inf")}}, ("set", "a"), "JSON"),
        ({"set": {"a": [float("nan")]}}, ("set", "a"), "JSON"),
        ({"set": {"a": 1}, "default": {"a": 2}}, ("default", "a"), "under 'set'"),
        ({"set": {"max_tokens": 1}, "default": {"max_completion_tokens": 2}}, ("default", "max_completion_tokens"),
         "'max_tokens' stands under 'set'"),
        ({"deny": ["a"], "default": {"a": 2}}, ("default", "a"), "'deny'"),
        ({"set": {"max_tokens": 1, "n_predict": 2}}, ("set", "n_predict"), "one field under two names"),
        ({"deny": [f"f{number}" for number in range(MOST_FIELDS + 1)]}, ("deny",), str(MOST_FIELDS)),
        ({"set": {"a": "x" * MOST_BYTES}}, ("set",), str(MOST_BYTES)),
    ],
)  # fmt: skip
def test_what_cannot_be_meant(parts: RULE, place: tuple[str, ...], told: str) -> None:
    ((where, message),) = mistakes(BodyRules(**parts))
    assert where == place and told in message


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"deny": ["priority"], "set": {"priority": -5}},
        {"deny": ["stream", "logit_bias"]},
        {"set": {"max_tokens": None, "n": None, "a": None}},
        {"default": {"max_tokens": 500, "temperature": 0.2, "stop": ["\n"], "metadata": {"a": {"b": []}}}},
    ],
)
def test_what_can_be_meant(parts: RULE) -> None:
    assert not [*mistakes(BodyRules(**parts))]


def test_records_of_keys_have_none_unless_they_were_given_some() -> None:
    """A record that an earlier version has written is read, and one without rules is written as before."""
    record = KeyRecord(id="k", name="n", secrets=(), created=1.0)
    written = msgspec.json.encode(record)
    assert b"body" not in written and msgspec.json.decode(written, type=KeyRecord).body is None
    with_rules = msgspec.structs.replace(record, body=rules(deny=["a"], set={"b": None, "c": [1]}))
    assert msgspec.json.decode(msgspec.json.encode(with_rules), type=KeyRecord) == with_rules


@pytest.mark.parametrize(
    ("endpoint", "given", "found"),
    [
        ("messages", {"max_tokens": 900}, {"max_tokens": 50, "user": "u"}),
        ("responses", {"input": "x"}, {"input": "x", "max_output_tokens": 50, "user": "u"}),
        ("responses", {"max_tokens": 9, "max_output_tokens": 900}, {"max_output_tokens": 50, "user": "u"}),
        ("completions", {"max_output_tokens": 900}, {"max_completion_tokens": 50, "n": 2, "user": "u"}),
        ("rerank", {"documents": []}, {"documents": [], "user": "u"}),
        ("tokenize", {"prompt": "x"}, {"prompt": "x"}),
        ("messages/count_tokens", {}, {}),
    ],
)
def test_a_field_gets_the_name_that_the_endpoint_has_for_it(endpoint: Endpoint, given: RULE, found: RULE) -> None:
    rule = {"set": {"max_completion_tokens": 50, "user": "u"}, "default": {"n": 2}}
    assert left(call(endpoint, **given), rule) == found


def test_fields_within_parameters_are_denied_too_and_cannot_be_set() -> None:
    asked = call("generate", inputs="x", parameters={"seed": 1})
    with pytest.raises(BadRequest, match="'seed'"):
        ruled(asked, rules(deny=["seed"]), None)
    assert ruled(asked, rules(deny=["user"], default={"max_tokens": 5}), None) is asked
    for whose in (rules(set={"max_tokens": 5}), NO_RULES), (NO_RULES, rules(set={"max_tokens": 5})):
        with pytest.raises(BadRequest, match="'generate'"):
            ruled(asked, *whose)
