"""How a key looks, and that nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth import mint, parse, token
from gateway.auth.token import ADMIN, BASE62, KEY, crc

PREFIXES = pytest.mark.parametrize("prefix", [KEY, ADMIN])


@PREFIXES
def test_a_minted_key_has_its_form(prefix: str) -> None:
    key_id, text = mint(prefix)
    assert len(key_id) == 12 and set(key_id) <= set(BASE62)
    first, middle, tail = text.split("_")
    assert (first, middle, len(tail)) == (prefix, key_id, 43 + 6)
    assert parse(text, prefix) == (key_id, tail[:43])
    assert mint(prefix) != mint(prefix)


def test_the_form_is_pinned() -> None:
    """Keys in use must stay valid: this one was made by the first version."""
    text = token("0123456789AB", "x" * 43)
    assert text == "tl_0123456789AB_" + "x" * 43 + "0y8g55"
    assert parse(text) == ("0123456789AB", "x" * 43)


@PREFIXES
def test_one_kind_of_key_is_not_taken_for_the_other(prefix: str) -> None:
    other = ADMIN if prefix == KEY else KEY
    key_id, text = mint(prefix)
    with pytest.raises(ValueError):
        parse(text, other)
    # not even with a checksum that is right
    body = f"{other}_{key_id}_{'x' * 43}"
    with pytest.raises(ValueError):
        parse(body + crc(body), prefix)


@PREFIXES
@given(st.text(max_size=80))
def test_other_texts_are_no_keys(prefix: str, text: str) -> None:
    with pytest.raises(ValueError):
        parse(text, prefix)


@given(st.integers(0, 64), st.sampled_from(BASE62 + "_- \n\u00e9\u0660"))
def test_one_wrong_character_is_noticed_without_a_look_up(at: int, other: str) -> None:
    text = token("0123456789AB", "x" * 43)
    at %= len(text)
    if text[at] != other:
        with pytest.raises(ValueError):
            parse(text[:at] + other + text[at + 1 :])


@given(st.integers(0, 63))
def test_swapped_missing_and_doubled_characters_are_noticed(at: int) -> None:
    _, text = mint()
    at %= len(text) - 1
    swapped = text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    for broken in (swapped, text[:at] + text[at + 1 :], text[:at] + text[at] + text[at:]):
        if broken != text:
            with pytest.raises(ValueError):
                parse(broken)


@PREFIXES
@pytest.mark.parametrize("around", ["{} ", " {}", "{}\n", "x{}", "{}x", "tladm_{}", "tl_{}"])
def test_nothing_may_stand_around_a_key(prefix: str, around: str) -> None:
    with pytest.raises(ValueError):
        parse(around.format(mint(prefix)[1]), prefix)
