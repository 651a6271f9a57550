"""What an operator writes: quantities with units, and the whole routing table."""

from __future__ import annotations

from pathlib import Path

from fuzz.feeding import Harness, allow

from gateway.config import Mistakes, Table, parse_table, units

UNITS = (units.DURATION, units.SIZE, units.COUNT, units.MONEY, units.PRICE)
ENVIRONMENT = {"KEY": "secret", "URL": "http://a:1", "N": "3"}


def check_units(data: bytes) -> None:
    """A number from nothing to the largest allowed, or `ValueError`; what is shown of it reads the same again."""
    text = data.decode("latin-1") if data[:1] > b"\x7f" else data.decode(errors="replace")
    numbers = [allow((ValueError, OverflowError), kind, text) for kind in (int, float)]
    for unit in UNITS:
        for value in (text, *(number for number in numbers if number is not None)):
            found = allow(ValueError, unit.parse, value)
            if found is not None:
                assert 0 <= found <= max(units.MAX, units.MAX_MONEY * 10**6)
                assert not unit.whole or isinstance(found, int)
                if found and unit.whole:
                    assert unit.parse(unit.shown(found)) == found


def check_table(data: bytes) -> None:
    """Any text is a table, or mistakes that each have a place in the text and words for it."""
    text = data.decode(errors="replace")
    try:
        table, warnings = parse_table(text, "t.yaml", ENVIRONMENT)
    except Mistakes as error:
        assert error.found
        found = error.found
        assert not any(mistake.warning for mistake in found)
    else:
        assert isinstance(table, Table)
        assert all(mistake.warning for mistake in warnings)
        found = warnings
    lines = len(text.splitlines()) + 2  # a text that ends too early is wrong behind its end
    for mistake in found:
        assert 1 <= mistake.line <= lines and mistake.column >= 1 and mistake.message
        assert "secret" not in mistake.message or "secret" in text or "a secret must not" in mistake.message


QUANTITIES = Harness("units", check_units)
TABLE = Harness("table", check_table, ((Path(__file__).parents[3] / "routing.yaml").read_bytes(),))
