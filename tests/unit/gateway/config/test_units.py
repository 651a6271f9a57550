"""Quantities as operators write them."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.units import COUNT, DURATION, MONEY, PRICE, SIZE, Unit


@pytest.mark.parametrize(
    ("unit", "text", "value"),
    [
        (DURATION, "2s", 2),
        (DURATION, "1.5 s", 1.5),
        (DURATION, "250ms", 0.25),
        (DURATION, "3m", 180),
        (DURATION, "2h", 7200),
        (DURATION, "1d", 86400),
        (SIZE, "20MiB", 20 * 2**20),
        (SIZE, "1.5KiB", 1536),
        (SIZE, "2MB", 2_000_000),
        (SIZE, "1GiB", 2**30),
        (SIZE, "512", 512),
        (SIZE, 512, 512),
        (COUNT, "200k", 200_000),
        (COUNT, "1.5M", 1_500_000),
        (COUNT, 600, 600),
        (COUNT, "1.001k", 1001),
        (COUNT, "4.35M", 4_350_000),
        (DURATION, "1.1s", 1.1),
        (MONEY, "50", 50_000_000),
        (MONEY, 50, 50_000_000),
        (MONEY, "12.50", 12_500_000),
        (MONEY, "0.000001", 1),
        (MONEY, "999999999", 999_999_999_000_000),
        (PRICE, "0", 0),
        (PRICE, "0.075", 75_000),
    ],
)
def test_quantities(unit: Unit, text: Any, value: float) -> None:
    assert unit.parse(text) == value
    assert re.fullmatch(unit.pattern, str(text))


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        (DURATION, 2),
        (DURATION, "2"),
        (DURATION, "2 seconds"),
        (DURATION, "s"),
        (DURATION, "-2s"),
        (DURATION, "2S"),
        (DURATION, "1e3s"),
        (DURATION, "inf"),
        (DURATION, ""),
        (DURATION, "2s\n"),
        (SIZE, "20mib"),
        (SIZE, "20M"),
        (SIZE, "0.5"),
        (SIZE, -1),
        (COUNT, "1.5"),
        (COUNT, "2K"),
        (COUNT, True),
        (COUNT, None),
        (COUNT, 1.5),
        (COUNT, float("inf")),
        (COUNT, float("nan")),
        (COUNT, [1]),
        (COUNT, "9" * 400),
        (COUNT, 10**400),
        (MONEY, "0.0000001"),
        (MONEY, 0.0000001),
        (MONEY, "-1"),
        (MONEY, "5 EUR"),
        (MONEY, "1e3"),
        (MONEY, "1,5"),
        (MONEY, True),
        (MONEY, None),
        (MONEY, float("nan")),
        (MONEY, float("inf")),
        (MONEY, 10**9),
        (MONEY, 1e300),
        (MONEY, "9" * 400),
        (PRICE, "free"),
    ],
)
def test_what_is_no_quantity_says_what_is_allowed(unit: Unit, text: Any) -> None:
    with pytest.raises(ValueError, match=re.escape(unit.example)):
        unit.parse(text)


@given(st.sampled_from([DURATION, SIZE, COUNT]), st.integers(1, 10**9))
def test_what_is_shown_is_read_as_the_same(unit: Unit, value: int) -> None:
    shown = unit.shown(value)
    assert unit.parse(shown) == value
    assert re.fullmatch(unit.pattern, str(shown))


@given(st.integers(1, 999_999_999 * 10**6))
def test_money_is_never_rounded(micros: int) -> None:
    shown = MONEY.shown(micros)
    assert MONEY.parse(shown) == MONEY.parse(float(shown)) == micros
    assert re.fullmatch(MONEY.pattern, shown)


@given(st.text(max_size=8) | st.from_regex(MONEY.pattern, fullmatch=True))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    for unit in (DURATION, SIZE, COUNT, MONEY, PRICE):
        try:
            value = unit.parse(text)
        except ValueError:
            continue
        assert value >= 0
        assert re.fullmatch(unit.pattern, text), "the pattern in the schema agrees"
