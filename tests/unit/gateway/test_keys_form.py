"""How a virtual key looks, and that nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import keys
from gateway.keys import BASE62, mint, parse


def test_a_minted_key_has_its_form() -> None:
    key_id, token = mint()
    assert len(key_id) == 12 and set(key_id) <= set(BASE62)
    prefix, middle, tail = token.split("_")
    assert (prefix, middle, len(tail)) == ("tl", key_id, 43 + 6)
    assert parse(token) == (key_id, tail[:43])
    assert mint() != mint()


def test_the_form_is_pinned() -> None:
    """Keys in use must stay valid: this one was made by the first version."""
    token = keys.token("0123456789AB", "x" * 43)
    assert token == "tl_0123456789AB_" + "x" * 43 + "0y8g55"
    assert parse(token) == ("0123456789AB", "x" * 43)


@given(st.text(max_size=80))
def test_other_texts_are_no_keys(text: str) -> None:
    with pytest.raises(ValueError):
        parse(text)


@given(st.integers(0, 64), st.sampled_from(BASE62 + "_- \n\u00e9\u0660"))
def test_one_wrong_character_is_noticed_without_a_look_up(at: int, other: str) -> None:
    token = keys.token("0123456789AB", "x" * 43)
    at %= len(token)
    if token[at] != other:
        with pytest.raises(ValueError):
            parse(token[:at] + other + token[at + 1 :])


@given(st.integers(0, 63))
def test_swapped_missing_and_doubled_characters_are_noticed(at: int) -> None:
    _, token = mint()
    at %= len(token) - 1
    swapped = token[:at] + token[at + 1] + token[at] + token[at + 2 :]
    for broken in (swapped, token[:at] + token[at + 1 :], token[:at] + token[at] + token[at:]):
        if broken != token:
            with pytest.raises(ValueError):
                parse(broken)


@pytest.mark.parametrize("around", ["{} ", " {}", "{}\n", "x{}", "{}x", "tladm_{}"])
def test_nothing_may_stand_around_a_key(around: str) -> None:
    with pytest.raises(ValueError):
        parse(around.format(mint()[1]))
