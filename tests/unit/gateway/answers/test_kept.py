"""An answer is given again whole and under its own name, or not at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.api import Call, Endpoint
from backends.body import Body
from gateway.answers.kept import OVERHEAD, Kept, ended_well, sealed, secret_of, unsealed

NAME, SECRET = "{tl}:answer:t:m:1abc", b"secret"
ANSWER = Kept(b"text/event-stream", b"data: [DONE]\n\n", 12.5, 3, 4)
VALUE = sealed(NAME, ANSWER, SECRET)


def test_what_was_sealed_is_found_as_it_was() -> None:
    assert unsealed(NAME, VALUE, SECRET) == ANSWER
    assert len(VALUE) - len(ANSWER.body) < OVERHEAD


@given(st.binary())
def test_what_was_not_is_nothing(value: bytes) -> None:
    assert unsealed(NAME, value, SECRET) is None


@given(st.integers(0, len(VALUE) - 1), st.integers(1, 255))
def test_another_byte_makes_it_nothing(place: int, by: int) -> None:
    changed = bytearray(VALUE)
    changed[place] ^= by
    assert unsealed(NAME, bytes(changed), SECRET) is None


@given(st.integers(0, len(VALUE) - 1))
def test_a_part_of_it_is_nothing(size: int) -> None:
    assert unsealed(NAME, VALUE[:size], SECRET) is None


def test_it_is_nothing_under_another_name_or_with_another_secret_or_with_something_behind_it() -> None:
    assert unsealed(NAME + "d", VALUE, SECRET) is None
    assert unsealed(NAME, VALUE, b"another") is None
    assert unsealed(NAME, VALUE + b" ", SECRET) is None


def test_the_secret_is_of_the_newest_pepper() -> None:
    assert secret_of({0: b"", 1: b"a", 2: b"b"}) == secret_of({2: b"b"}) != secret_of({1: b"a"})
    assert secret_of({0: b""}) == secret_of({})


def reason(value: str) -> bytes:
    return f'{{"choices": [{{"index": 0, "finish_reason": {value}}}]}}'.encode()


TOLD = {
    "it told why": (reason('"stop"'), False, True),
    "it was as long as it might be": (reason('"length"'), False, True),
    "it told nothing": (b"{}", False, False),
    "it has not ended": (reason("null"), False, False),
    "it was given up": (reason('"abort"'), False, False),
    "it failed": (reason('"error"'), True, False),
    "one of two has ended": (reason('"stop"') + reason("null"), False, False),
    "a stream goes on until it ends": (reason("null") + reason('"stop"'), True, True),
    "a stream that never told": (reason("null") + b"data: [DONE]", True, False),
    "its text says so": (rb'{"content": "\"finish_reason\": \"stop\""}', False, False),
}


@pytest.mark.parametrize("told", TOLD)
def test_only_what_has_told_why_it_ended_has_ended_well(told: str) -> None:
    body, stream, expected = TOLD[told]
    assert ended_well(call("chat/completions", stream=stream), body) is expected


def test_each_choice_must_have_told_and_numbers_have_none() -> None:
    assert not ended_well(call("chat/completions", n=2), reason('"stop"'))
    assert ended_well(call("chat/completions", n=2), reason('"stop"') * 2)
    assert ended_well(call("embeddings"), b"{}")


def call(endpoint: Endpoint, *, stream: bool = False, n: int = 1) -> Call:
    return Call("tl-1", endpoint, "m", Body(b'{"n":%d}' % n), stream=stream)
