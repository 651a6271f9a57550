"""All that decides an answer is in its name, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec import structs

from backends.api import Call, Endpoint
from backends.body import Body
from gateway.answers import Terms
from gateway.config import parse_table

SECRET = b"secret"
TARGET = {"name": "a", "backend": "vllm", "url": "http://a:8000", "model": "org/m"}


def terms(target: dict[str, Any] | None = None, **fields: Any) -> Terms:
    targets = [TARGET | (target or {})]
    table, _ = parse_table(json.dumps({"routes": {"m": {"targets": targets, "response_cache": {}, **fields}}}))
    found = Terms.of("m", table.routes["m"])
    assert found is not None
    return found


def call(body: str = '{"model":"m","temperature":0,"messages":[]}', endpoint: Endpoint = "chat/completions") -> Call:
    return Call("tl-1", endpoint, "m", Body(body.encode()))


def name(of: Terms | None = None, asked: Call | None = None, tenant: str = "t", **headers: str) -> str:
    sent = {key.replace("_", "-").encode(): value.encode() for key, value in headers.items()}
    return (of or terms()).name(asked or call(), tenant, sent, SECRET)


THE_NAME = name()

ALIKE: dict[str, str] = {
    "same call, another id": name(asked=structs.replace(call(), id="tl-2")),
    "the order of fields": name(asked=call('{"messages":[],"temperature":0,"model":"m"}')),
    "who asks": name(asked=call('{"model":"m","user":"u","temperature":0,"safety_identifier":"s","messages":[]}')),
    "stream: false": name(asked=call('{"model":"m","temperature":0,"messages":[],"stream":false}')),
    "a session": name(x_session_id="s"),
    "another server": name(terms({"url": "http://b:8000", "name": "b", "weight": 2, "max_inflight": 4})),
    "other limits": name(terms(limits={"rpm": 5}, price={"input": 1, "output": 1}, policy="round-robin")),
    "how long it is kept": name(terms(response_cache={"ttl": "5s", "largest": "2KiB"})),
}

OTHERS: dict[str, str] = {
    "a field more": name(asked=call('{"model":"m","temperature":0,"messages":[],"n":1}')),
    "another value": name(asked=call('{"model":"m","temperature":0,"messages":[{}]}')),
    "another model": name(asked=structs.replace(call(), model="n")),
    "a stream": name(asked=structs.replace(call(), stream=True)),
    "another endpoint": name(asked=call(endpoint="completions")),
    "another tenant": name(tenant="u"),
    "all tenants": name(terms(response_cache={"shared": True})),
    "another route": name(structs.replace(terms(), route="n")),
    "a version of the dialect": name(anthropic_version="2023-06-01"),
    "a header that goes on": name(terms(forward_headers=["X-Mode"]), x_mode="a"),
    "another model at the target": name(terms({"model": "org/n"})),
    "another kind of server": name(terms({"backend": "openai"})),
    "an endpoint that is translated": name(terms({"endpoints": ["chat/completions"]})),
    "another parser": name(terms({"tool_parser": "hermes"})),
    "a header of the target": name(terms({"headers": {"x-variant": "b"}})),
    "names of models": name(terms(public_model=True)),
    "who asks, repeated": name(asked=call('{"model":"m","temperature":0,"input":[],"user":"u"}', "responses")),
    "nobody, repeated": name(asked=call('{"model":"m","temperature":0,"input":[]}', "responses")),
    "names that run into values": name(asked=call('{"model":"m","temperature":0,"messages":[],"a":1}')),
    "values that run into names": name(asked=call('{"model":"m","temperature":0,"messages":[],"a1":null}')),
}


@pytest.mark.parametrize("alike", ALIKE)
def test_what_decides_nothing_is_not_in_it(alike: str) -> None:
    assert ALIKE[alike] == THE_NAME


def test_all_that_decides_is_in_it() -> None:
    assert len({THE_NAME, *OTHERS.values()}) == 1 + len(OTHERS)


def test_it_shows_whose_it_is_and_cannot_be_guessed() -> None:
    assert THE_NAME.startswith("{tl}:answer:t:m:1")
    assert OTHERS["all tenants"].startswith("{tl}:answer:*:m:1")
    assert terms().name(call(), "t", {}, b"another") != THE_NAME
    assert name(tenant="*") != name(terms(response_cache={"shared": True}), tenant="*")
    assert "messages" not in THE_NAME


def test_replicas_of_one_model_are_one_kind_of_server() -> None:
    table, _ = parse_table(
        json.dumps(
            {"routes": {"m": {"response_cache": {}, "targets": [TARGET, TARGET | {"name": "b", "url": "http://b"}]}}}
        )
    )
    assert Terms.of("m", table.routes["m"]) == terms()
