"""An operator's system prompt goes before the caller's own, in each dialect, and nothing else of a body changes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends import large
from backends.api import Call, Endpoint
from backends.body import Body
from gateway.core.body_rules import MOST_BYTES, BodyRules, mistakes, ruled

OURS = 'Be "kind".\n'
RULES = BodyRules(system_prompt=OURS)
USER = {"role": "user", "content": "Hi"}


def made(endpoint: Endpoint, body: dict[str, Any], route: BodyRules = RULES, key: BodyRules | None = None) -> Any:
    raw = json.dumps({"model": "m", **body}).encode()
    found = ruled(Call("c", endpoint, "m", Body(raw)), route, key)
    assert found.asked == Call("c", endpoint, "m", Body(found.body.raw)).asked
    return {name: value for name, value in json.loads(found.body.raw).items() if name != "model"}


@pytest.mark.parametrize(
    ("endpoint", "given", "expected"),
    [
        ("chat/completions", {"messages": [USER]}, {"messages": [{"role": "system", "content": OURS}, USER]}),
        ("chat/completions", {"messages": []}, {"messages": [{"role": "system", "content": OURS}]}),
        (
            "chat/completions",
            {"messages": [{"role": "system", "content": "Be é.", "name": "x"}, USER]},
            {"messages": [{"role": "system", "content": OURS + "\n\nBe é.", "name": "x"}, USER]},
        ),
        (
            "chat/completions",
            {"messages": [{"content": [{"type": "text", "text": "a"}], "role": "developer"}, USER]},
            {
                "messages": [
                    {
                        "content": [{"type": "text", "text": OURS}, {"type": "text", "text": "a"}],
                        "role": "developer",
                    },
                    USER,
                ]
            },
        ),
        (
            "chat/completions",
            {"messages": [USER, {"role": "system", "content": "later"}]},
            {"messages": [{"role": "system", "content": OURS}, USER, {"role": "system", "content": "later"}]},
        ),
        (
            "chat/completions",
            {"messages": [{"role": "system", "content": None}]},
            {"messages": [{"role": "system", "content": OURS}]},
        ),
        ("messages", {"messages": [USER]}, {"messages": [USER], "system": OURS}),
        ("messages", {"messages": [], "system": "a"}, {"messages": [], "system": OURS + "\n\na"}),
        ("messages", {"system": None}, {"system": OURS}),
        (
            "messages/count_tokens",
            {"system": [{"type": "text", "text": "a", "cache_control": {}}]},
            {"system": [{"type": "text", "text": OURS}, {"type": "text", "text": "a", "cache_control": {}}]},
        ),
        ("messages", {"system": []}, {"system": [{"type": "text", "text": OURS}]}),
        ("responses", {"input": "Hi"}, {"input": "Hi", "instructions": OURS}),
        ("responses", {"instructions": "a", "input": []}, {"instructions": OURS + "\n\na", "input": []}),
    ],
)
def test_it_goes_before_the_callers_own(endpoint: Endpoint, given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert made(endpoint, given) == expected


@pytest.mark.parametrize(
    ("endpoint", "given"),
    [
        ("completions", {"prompt": "Hi"}),
        ("embeddings", {"input": "Hi"}),
        ("rerank", {"query": "a", "documents": ["b"]}),
        ("generate", {"inputs": "Hi"}),
        ("chat/completions", {"messages": "no list"}),
        ("chat/completions", {"messages": {"role": "system"}}),
        ("chat/completions", {}),
        ("chat/completions", {"messages": [{"role": "system", "content": 5}]}),
        ("chat/completions", {"messages": [{"role": ["system"], "content": "a"}]}),
        ("messages", {"system": 5}),
        ("responses", {"instructions": [1]}),
    ],
)
def test_where_there_is_none_or_what_cannot_be_read_stays(endpoint: Endpoint, given: dict[str, Any]) -> None:
    assert made(endpoint, given) == given


def test_other_bytes_stay_as_they_are() -> None:
    raw = (
        b'{ "messages" : [ \n {"role":"system" , "x":1.50,"content":"\\u00e9\\ud83d\\ude00"} , {"a":[1.0]}] , "n":1e0 }'
    )
    found = ruled(Call("c", "chat/completions", "m", Body(raw)), RULES, None).body.raw
    assert found == raw.replace(b'"content":"', b'"content":"Be \\"kind\\".\\n\\n\\n')
    raw = b'{"messages":[ {"role":"user"} ]}'
    found = ruled(Call("c", "chat/completions", "m", Body(raw)), RULES, None).body.raw
    assert found == b'{"messages":[{"role":"system","content":"Be \\"kind\\".\\n"},{"role":"user"} ]}'


def test_the_routes_comes_before_the_keys_and_what_is_set_is_the_callers() -> None:
    key = BodyRules(system_prompt="key", set={"instructions": "set"})
    assert made("responses", {"input": "a", "instructions": "own"}, RULES, key)["instructions"] == (
        OURS + "\n\nkey\n\nset"
    )
    assert made("responses", {"input": "a"}, BodyRules(), BodyRules(system_prompt="key"))["instructions"] == "key"


def test_a_large_body_gets_it_too() -> None:
    raw = json.dumps({"model": "m", "messages": [USER, {"role": "user", "content": "x" * 3_000_000}]}).encode()
    steps = large.read("chat/completions", raw, 200_000)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        body, asked = end.value
    found = ruled(Call("c", "chat/completions", "m", body, asked=asked), RULES, None)
    assert json.loads(found.body.raw)["messages"][0] == {"role": "system", "content": OURS}
    assert found.asked.text == asked.text + len(found.body.raw) - len(raw)


def test_it_is_bounded() -> None:
    assert not list(mistakes(RULES))
    ((where, told),) = mistakes(BodyRules(system_prompt="é" * MOST_BYTES))
    assert where == ("system_prompt",) and str(MOST_BYTES) in told
