"""Options as they are typed: what they mean, and errors that name the text and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.cli.clear import FIELDS, cleared
from gateway.cli.options import (
    budget,
    collected,
    combined,
    label,
    limit_change,
    model_limit,
    outage,
    quantity,
)
from gateway.config.units import COUNT, MONEY


@pytest.mark.parametrize(
    ("text", "spent"),
    [
        ("day:tokens=2M", {"day": {"tokens": 2_000_000}}),
        ("month:money=50", {"month": {"cost_micros": 50_000_000}}),
        ("week:money=0.000001", {"week": {"cost_micros": 1}}),
        ("day:tokens=10k,money=12.50", {"day": {"tokens": 10_000, "cost_micros": 12_500_000}}),
        ("day:tokens=0", {"day": {"tokens": 0}}),
    ],
)
def test_budgets(text: str, spent: dict[str, Any]) -> None:
    assert budget(text) == {"budget": spent}


@pytest.mark.parametrize("amount", ["0.1", "0.29", "1.1", "4.35", "1234567.891234"])
def test_money_is_exact(amount: str) -> None:
    """Each of these is off by one when it goes through a float."""
    whole, _, decimals = amount.partition(".")
    assert budget(f"day:money={amount}") == {
        "budget": {"day": {"cost_micros": int(whole) * 10**6 + int(decimals.ljust(6, "0"))}}
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("year:tokens=1", "day, week, month"),
        ("day", "PERIOD:tokens=NUMBER"),
        ("day:words=1", "tokens=NUMBER"),
        ("day:tokens", "'': expected a number"),
        ("day:tokens=many", "'many': expected a number"),
        ("day:money=1.2345678", "six decimals"),
        ("day:money=-1", "'-1': expected an amount"),
        ("day:tokens=1.5", "whole number"),
    ],
)
def test_budgets_that_are_none(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        budget(text)


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("m:rpm=10", {"m": {"rpm": 10}}),
        ("m:rpm=10,tpm=20k", {"m": {"rpm": 10, "tpm": 20_000}}),
        ("demo/smollm2:135m:rpm=10", {"demo/smollm2:135m": {"rpm": 10}}),
        ("a:b:c:concurrency=2", {"a:b:c": {"concurrency": 2}}),
        ("m:budget:day:money=0.5", {"m": {"budget": {"day": {"cost_micros": 500_000}}}}),
        ("m:7b:budget:day:tokens=1,rpm=2", {"m:7b": {"budget": {"day": {"tokens": 1}}, "rpm": 2}}),
        ("m:outage:rpm=closed,rpm=1", {"m": {"outage": {"rpm": "closed"}, "rpm": 1}}),
        ("qwen2.5-7b:itpm=1,otpm=2", {"qwen2.5-7b": {"itpm": 1, "otpm": 2}}),
    ],
)
def test_limits_on_one_model(text: str, change: dict[str, Any]) -> None:
    assert model_limit(text) == change


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("m", "ROUTE:LIMIT=NUMBER"),
        ("rpm=10", "ROUTE:LIMIT=NUMBER"),
        (":rpm=10", "ROUTE:LIMIT=NUMBER"),
        ("m:rmp=10", "'rmp' is no limit; expected one of rpm, tpm"),
        ("m:rpm=0", "'0': expected a number above 0"),
        ("m:rpm=ten", "'ten'"),
        ("m:rpm=1,", "is no limit"),
        ("m:budget:year:tokens=1", "day, week, month"),
    ],
)
def test_limits_on_one_model_that_are_none(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        model_limit(text)


def test_outage_policies() -> None:
    assert outage("budget=open") == {"outage": {"budget": "open"}}
    for text in ("rpm", "rpm=ajar", "tps=open", "=open"):
        with pytest.raises(ValueError, match=f"'{text}': expected DIM=POLICY.*rpm.*share, closed, open"):
            outage(text)


def test_labels() -> None:
    assert label("a=b=c") == {"a": "b=c"}
    assert label("a=") == {"a": ""}
    for text in ("a", "=b"):
        with pytest.raises(ValueError, match="NAME=VALUE"):
            label(text)


def test_repeated_options_add_up() -> None:
    texts = ["day:tokens=1", "day:money=2", "month:tokens=3"]
    assert collected(map(budget, texts)) == {
        "budget": {"day": {"tokens": 1, "cost_micros": 2_000_000}, "month": {"tokens": 3}}
    }


def test_a_limit_has_what_was_given_and_no_more() -> None:
    options = {"rpm": 5, "tpm": None, "itpm": None, "otpm": None, "concurrency": None, "budgets": (), "outages": ()}
    assert limit_change(options) == {"rpm": 5}
    assert limit_change({**options, "rpm": None}) == {}


def test_quantities_name_what_was_typed() -> None:
    assert quantity(COUNT, "10k") == 10_000
    with pytest.raises(ValueError, match=r"'0': .*above 0"):
        quantity(COUNT, "0")
    assert quantity(MONEY, "0", positive=False) == 0


@pytest.mark.parametrize(
    ("text", "change"),
    [
        ("rpm", {"limit": {"rpm": None}}),
        ("budget", {"limit": {"budget": None}}),
        ("budget:day", {"limit": {"budget": {"day": None}}}),
        ("budget:day:money", {"limit": {"budget": {"day": {"cost_micros": None}}}}),
        ("outage", {"limit": {"outage": None}}),
        ("outage:budget", {"limit": {"outage": {"budget": None}}}),
        ("model-limit", {"model_limits": None}),
        ("model-limit:demo/smollm2:135m", {"model_limits": {"demo/smollm2:135m": None}}),
        ("label:team", {"labels": {"team": None}}),
        ("label", {"labels": None}),
        ("source", {"sources": None}),
        ("expires", {"expires": None}),
    ],
)
def test_what_is_cleared(text: str, change: dict[str, Any]) -> None:
    assert cleared(text) == change


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name", ", ".join(FIELDS)),
        ("rpm:day", "expected one of rpm"),
        ("expires:now", "expected one of rpm"),
        ("budget:year", "day, week, month"),
        ("budget:day:words", "budget:PERIOD:money"),
        ("outage:day", "rpm, tpm"),
    ],
)
def test_what_cannot_be_cleared(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        cleared(text)


def test_a_field_is_not_set_and_cleared_at_once() -> None:
    assert combined(cleared("tpm"), {"limit": {"rpm": 1}}) == {"limit": {"tpm": None, "rpm": 1}}
    with pytest.raises(ValueError, match=r"limit\.budget: cannot be set and cleared"):
        combined(cleared("budget"), {"limit": budget("day:tokens=1")})
    with pytest.raises(ValueError, match=r"labels\.team"):
        combined(cleared("label:team"), {"labels": label("team=x")})
