"""What routing reads of a call: the same conversation across its turns, others apart, and nothing that can fail."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends.api import Call, Endpoint
from backends.body import Body
from gateway.core.types import Priority
from gateway.routing.features import SESSION_HEADERS, read
from gateway.routing.policies.api import Prompt

TOOLS = [{"type": "function", "function": {"name": "f"}}]
SYSTEM = {"role": "system", "content": "You are terse."}
HI = {"role": "user", "content": "Hi"}
TURNS = [SYSTEM, HI, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "More."}]


def made(fields: dict[str, Any], endpoint: Endpoint = "chat/completions") -> Call:
    return Call("c", endpoint, "m", Body(json.dumps(fields).encode()))


def prompt(
    fields: dict[str, Any],
    headers: dict[bytes, bytes] | None = None,
    *,
    endpoint: Endpoint = "chat/completions",
    model: str = "m",
    tenant: str = "t",
    tokens: int = 100,
    priority: Priority = "normal",
) -> Prompt:
    call = made(fields, endpoint)
    return read(call, headers or {}, model=model, tenant=tenant, tokens=tokens, priority=priority)


def chat(*messages: dict[str, Any], **fields: Any) -> Prompt:
    return prompt({"messages": messages, **fields})


def test_a_conversation_is_the_same_in_all_its_turns() -> None:
    first, second, third = chat(*TURNS[:2]), chat(*TURNS), chat(*TURNS, *TURNS[2:])
    assert first.conversation == second.conversation == third.conversation is not None
    assert first.group == second.group == third.group is not None
    assert [each.follow_up for each in (first, second, third)] == [False, True, True]


def test_what_a_cache_does_not_depend_on_tells_nothing_apart() -> None:
    plain = chat(*TURNS, model="m")
    other = chat(*TURNS, model="alias", temperature=0.3, stream=True, max_tokens=5, n=1, seed=3, metadata={"a": "b"})
    assert (plain.conversation, plain.group) == (other.conversation, other.group)


@pytest.mark.parametrize(
    ("change", "group_too"),
    [
        ({"messages": [SYSTEM, {"role": "user", "content": "Bye"}]}, False),
        ({"messages": [{"role": "system", "content": "Be kind."}, HI]}, True),
        ({"messages": [SYSTEM, SYSTEM, HI]}, True),
        ({"messages": [HI]}, True),
        ({"tools": [*TOOLS, *TOOLS]}, True),
        ({"tools": None}, True),
        ({"cache_salt": "s"}, True),
    ],
)
def test_what_a_cache_depends_on_keeps_calls_apart(change: dict[str, Any], group_too: bool) -> None:
    fields = {"messages": [SYSTEM, HI], "tools": TOOLS}
    one, other = prompt(fields), prompt({**fields, **change})
    assert one.conversation != other.conversation
    assert (one.group != other.group) == group_too


def test_routes_and_tenants_share_nothing_but_a_salt_says_who_does() -> None:
    fields = {"messages": TURNS, "prompt_cache_key": "k", "user": "u"}
    one = prompt(fields)
    for other in (prompt(fields, tenant="u"), prompt(fields, model="n")):
        assert other.conversation != one.conversation
        assert other.group != one.group
        assert other.session != one.session
    salted = {**fields, "cache_salt": "team"}
    assert prompt(salted).group == prompt(salted, tenant="u").group
    for nothing in (None, ""):
        assert prompt({**fields, "cache_salt": nothing}).group == one.group


def test_parts_cannot_be_taken_for_one_another() -> None:
    split = [chat({"role": "system", "content": "ab"}, {"role": "system", "content": "c"}, HI)]
    split += [chat({"role": "system", "content": "a"}, {"role": "system", "content": "bc"}, HI)]
    split += [chat({"role": "system", "content": "abc"}, HI), chat({"role": "user", "content": "abc"}, HI)]
    assert len({each.group for each in split}) == 4 == len({each.conversation for each in split})
    assert prompt({"messages": [HI]}, model="mt", tenant="").conversation != chat(HI).conversation


def test_a_group_is_all_that_comes_before_the_first_question() -> None:
    bare, developer = chat(HI), chat({"role": "developer", "content": "You are terse."}, HI)
    assert (bare.group, bare.prefix) == (None, 0) and bare.conversation is not None
    assert developer.group is not None and developer.prefix > 0
    late = chat(HI, {"role": "system", "content": "x" * 1000}, HI)
    assert late.group is None, "a system message within the conversation is no common beginning"
    assert chat(HI, tools=TOOLS).group is not None
    assert chat(HI, functions=TOOLS).group is not None


def test_a_prefix_is_the_groups_part_of_the_prompt() -> None:
    fields = {"messages": [{"role": "system", "content": "x" * 7000}, {"role": "user", "content": "y" * 2900}]}
    assert prompt(fields, tokens=1000).prefix == pytest.approx(700, abs=10)


def test_messages_of_many_parts_are_read_too() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 5000}}
    one = chat(SYSTEM, {"role": "user", "content": [{"type": "text", "text": "What is it?"}, picture]})
    other = chat(SYSTEM, {"role": "user", "content": [{"type": "text", "text": "What is that?"}, picture]})
    assert one.conversation != other.conversation and one.group == other.group


@pytest.mark.parametrize(
    "header", [b"x-session-id", b"x-session-affinity", b"session-id", b"thread-id", b"x-claude-code-session-id"]
)
def test_a_session_that_the_client_names_is_its_conversation(header: bytes) -> None:
    one = prompt({"messages": TURNS}, {header: b"s1"})
    other = prompt({"messages": [HI], "user": "u"}, {header: b"s1"})
    assert one.conversation == other.conversation == one.session == other.session
    assert prompt({"messages": TURNS}, {header: b"s2"}).session != one.session
    assert one.group == chat(*TURNS).group, "what is common stays common"


def test_what_names_a_session_is_read_in_one_order() -> None:
    """Each name is taken out in turn; the next one decides then."""
    order = (b"x-session-id", b"", b"x-claude-code-session-id", b"session-id", b"thread-id", b"x-session-affinity")
    call, left = made({"messages": [HI], "session_id": "field"}), [*order, b"x-correlation-id"]
    headers = {name: name for name in left if name}
    while left:
        best = left.pop(0)
        found = read(call, headers, model="m", tenant="t", tokens=9, sessions=(*SESSION_HEADERS, b"x-correlation-id"))
        expected = prompt({"messages": [], "session_id": "field"} if not best else {}, {b"x-session-id": best})
        assert found.session == found.conversation == expected.session is not None, best
        headers.pop(best, None)
        call = call if best else made({"messages": [HI]})


def test_a_correlation_id_names_a_session_only_where_the_route_says_so() -> None:
    assert prompt({"messages": [HI]}, {b"x-correlation-id": b"c"}) == chat(HI)


def test_headers_go_before_the_body_and_the_key_before_the_user() -> None:
    fields = {"messages": [HI], "prompt_cache_key": "k", "user": "u"}
    assert prompt(fields, {b"x-session-id": b"s"}).session == prompt({"messages": []}, {b"x-session-id": b"s"}).session
    assert prompt(fields).session == chat(HI, prompt_cache_key="k").session
    assert prompt(fields).session != chat(HI, user="u").session


def test_a_user_is_a_session_but_not_one_conversation() -> None:
    """One user has many conversations; only the policy `session` puts them together."""
    one, other = chat(HI, user="u"), chat(SYSTEM, HI, user="u")
    assert one.session == other.session is not None
    assert one.conversation != other.conversation
    assert chat(HI).session is None


@pytest.mark.parametrize("nothing", ["", None])
def test_an_empty_name_is_none(nothing: str | None) -> None:
    """Else all clients that fill the field with nothing would be one session: a hot spot."""
    plain = chat(HI)
    for fields in ({"user": nothing}, {"prompt_cache_key": nothing}, {"user": nothing, "prompt_cache_key": nothing}):
        assert chat(HI, **fields) == plain
    assert prompt({"messages": [HI]}, {b"x-session-id": b""}) == plain


def test_completions_are_told_apart_by_their_beginning_and_their_size() -> None:
    def text(prompt_text: object) -> Prompt:
        return prompt({"prompt": prompt_text}, endpoint="completions")

    template = "x" * 5000
    assert text(template + "a").conversation == text(template + "b").conversation
    assert text(template).conversation != text(template * 4).conversation
    assert text("a").conversation != text("b").conversation
    assert (text("a").group, text("a").follow_up, text("a").prefix) == (None, False, 0)
    for odd in (["a", "b"], [1, 2, 3], None, {}):
        assert text(odd).group is None


def test_embeddings_have_no_keys() -> None:
    made_of = prompt({"input": ["a", "b"]}, {b"x-session-id": b"s"}, endpoint="embeddings")
    assert made_of.group is None and made_of.session is not None
    assert prompt({"input": "a"}, endpoint="embeddings").conversation is None


@pytest.mark.parametrize(
    ("fields", "context"),
    [
        ({}, 100),
        ({"max_tokens": 50}, 150),
        ({"max_completion_tokens": 70}, 170),
        ({"max_tokens": 50, "max_completion_tokens": 70}, 170),
        ({"max_tokens": None}, 100),
        ({"max_tokens": -5}, 100),
        ({"max_tokens": "many"}, 100),
        ({"max_tokens": "50"}, 150),
        ({"max_tokens": 5e1, "n_predict": "+70"}, 170),
    ],
)
def test_a_call_needs_a_context_for_prompt_and_answer(fields: dict[str, Any], context: int) -> None:
    needs = chat(HI, **fields)
    assert needs.context == context
    assert context - 100 <= needs.least_context <= context - 75, "only a fourth of an estimate is sure"


def test_many_prompts_in_one_call_have_the_context_each_to_itself() -> None:
    batch = prompt({"input": ["x" * 1000] * 100}, endpoint="embeddings", tokens=50_000)
    assert (batch.context, batch.least_context) == (0, 0)
    several = prompt({"prompt": ["x" * 1000] * 100, "max_tokens": 7}, endpoint="completions", tokens=50_000)
    assert (several.context, several.least_context) == (500 + 7, 125 + 7)
    assert prompt({"prompt": "x", "max_tokens": 7}, endpoint="completions").context == 107


def test_low_priority_may_fill_a_part() -> None:
    parts = {each: prompt({"messages": [HI]}, priority=each).part for each in ("high", "normal", "low")}  # type: ignore[arg-type]
    assert parts == {"high": 1.0, "normal": 1.0, "low": 0.7}


def test_without_a_choice_no_keys_are_looked_for() -> None:
    call = made({"messages": TURNS, "user": "u", "max_tokens": 5})
    found = read(call, {b"x-session-id": b"s"}, model="m", tenant="t", tokens=9, priority="low", keyed=False)
    assert (found.conversation, found.group, found.session, found.prefix, found.follow_up) == (
        None,
        None,
        None,
        0,
        False,
    )
    assert (found.tokens, found.context, found.part) == (9, 14, 0.7)
