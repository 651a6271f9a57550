"""Halves of characters in bodies: refused in words that say what they are, and where."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import large, surrogates
from backends.body import Body, Malformed

CUT = "caf\u00e9 \U0001f600"[:-1] + "\ud83d"


def refused(body: Any) -> Malformed:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(Malformed) as caught:
        Body(raw)
    return caught.value


@pytest.mark.parametrize(
    ("body", "where", "param"),
    [
        ({"model": "m", "messages": [{"role": "user", "content": CUT}]}, "messages[0].content", "messages"),
        ({"messages": [{}, {"content": [{"text": "x"}, {"text": CUT}]}]}, "messages[1].content[1].text", "messages"),
        ({"model": CUT}, "model", "model"),
        ({"prompt": ["a", "\ude00 b"]}, "prompt[1]", "prompt"),
        ({"prompt": "\ud83d\ud83d\ude00"}, "prompt", "prompt"),
        ({"metadata": {CUT: 1}}, "metadata", "metadata"),
        ({"a key\nof theirs": CUT}, "*", None),
        ({CUT: 1}, "a key", None),
    ],
)
def test_the_place_is_named(body: Any, where: str, param: str | None) -> None:
    raw, error = json.dumps(body).encode(), refused(body)
    assert str(error).startswith(f"{where} has half of a character at byte ")
    at = int(str(error).split("at byte ")[1].split(":")[0])
    written = raw[at : at + 6].decode()
    assert f"{written} without its other half" in str(error) and written[:3] in ("\\ud", "\\uD")
    assert error.param == param


@pytest.mark.parametrize("size", [100_000, 600_000])
def test_of_a_larger_body_the_byte_is_told(size: int) -> None:
    assert str(refused({"prompt": "x" * size + CUT})).startswith("the body has half of a character at byte ")


@pytest.mark.parametrize(
    "text",
    [
        "x" * 3_000_000 + "\ud83d",
        "\ud83d" + "x" * 3_000_000,
        "\ud83d" * 500_000,
        "x" * 40_000 + '\ud83d"' + "x" * 3_000_000,
        "x" * 32_740 + "\ude00" + "x" * 3_000_000,
    ],
    ids=["end", "start", "all", "then a quote", "second half"],
)
def test_of_a_body_that_is_read_in_windows_it_is_told_too(text: str) -> None:
    with pytest.raises(Malformed, match="half of a character"):
        for _ in large.read("completions", json.dumps({"prompt": text, "b": "x" * 50_000}).encode(), 10**6):
            pass


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":"\\\\ud83d"', b'{"a":"\\ud83d\\ude00"', b'{"a":"\\u00e9', b'{"a":"\\x"}', b'{"a":"\\u12"}', b"",
        b'{"a":\\',
    ],
)  # fmt: skip
def test_what_is_no_half_is_not_taken_for_one(raw: bytes) -> None:
    assert "half" not in str(refused(raw)) and surrogates.half(raw) is None


@given(st.text(alphabet=st.characters(), max_size=30))
def test_halves_are_found_where_they_are(text: str) -> None:
    raw = json.dumps(text).encode()
    found = surrogates.half(raw)
    try:
        json.loads(raw).encode()
    except UnicodeEncodeError:
        assert found is not None and raw[found[1] :].startswith(found[0].encode())
    else:
        assert found is None
