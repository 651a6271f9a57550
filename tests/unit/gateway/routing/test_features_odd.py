"""Bodies that no model understands: routing reads what it can, and leaves it to the target to refuse them."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.api import Call, Endpoint
from backends.body import Body, Malformed
from gateway.routing.features import read
from gateway.routing.policies.api import Prompt

HI = {"role": "user", "content": "Hi"}


def prompt(body: Body, endpoint: Endpoint = "chat/completions", headers: dict[bytes, bytes] | None = None) -> Prompt:
    return read(Call("c", endpoint, "m", body), headers or {}, model="m", tenant="t", tokens=10)


ODD: list[Any] = [
    None,
    5,
    "text",
    [],
    {},
    [None],
    [5],
    ["x"],
    [{}],
    [{"role": 5}],
    [{"role": None}],
    [{"content": "x"}],
]
ODD += [[{"role": "user"}], [{"role": "user", "content": {"a": 1}}], [[HI]], [HI, None], [{"role": "assistant"}]]


@pytest.mark.parametrize("messages", ODD, ids=json.dumps)
def test_odd_messages_are_the_targets_to_refuse(messages: Any) -> None:
    read_of = prompt(Body(json.dumps({"messages": messages}).encode()))
    assert read_of.conversation is None or read_of.conversation > 0
    assert read_of.prefix == 0


def test_messages_nested_beyond_reason_are_left_alone() -> None:
    raw = b'{"messages":[{"role":"user","content":' + b"[" * 200_000 + b"]" * 200_000 + b"}]}"
    with suppress(Malformed):  # the body may be refused before anybody asks
        body = Body(raw)
        assert prompt(body).prefix == 0


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {}, optional={"role": st.sampled_from(["system", "user", "assistant", "tool", ""]) | VALUES, "content": VALUES}
)
FIELDS = ("prompt", "input", "tools", "functions", "user", "prompt_cache_key", "cache_salt", "max_tokens")


@given(
    st.sampled_from(["chat/completions", "completions", "embeddings"]),
    st.fixed_dictionaries(
        {}, optional={**dict.fromkeys(FIELDS, VALUES), "messages": st.lists(MESSAGE | VALUES, max_size=4) | VALUES}
    ),
    st.dictionaries(st.sampled_from([b"x-session-id", b"session-id", b"other"]), st.binary(max_size=5)),
    st.booleans(),
)
def test_nothing_that_a_client_can_send_fails(
    endpoint: Endpoint, fields: dict[str, Any], headers: dict[bytes, bytes], ascii_only: bool
) -> None:
    try:
        body = Body(json.dumps(fields, ensure_ascii=ascii_only).encode())
    except (UnicodeEncodeError, Malformed):
        return
    found = prompt(body, endpoint, headers)
    for key in (found.conversation, found.group, found.session):
        assert key is None or 0 < key < 1 << 64
    assert 0 <= found.prefix <= found.tokens == 10
    assert 0 <= found.least_context <= max(found.context, found.least_context)
