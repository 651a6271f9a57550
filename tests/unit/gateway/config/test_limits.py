"""Limits, budgets, outage policies and prices in the table: what they mean, and what cannot be meant."""

from __future__ import annotations

import json
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Mistake, Mistakes, Table, parse_table
from gateway.config.limits import LimitSpec, Price
from gateway.core.types import Allowance, Budget, Limit

TARGET = '{name: a, backend: vllm, url: "http://a"}'
PRICED = f"""\
routes:
  one:
    targets: [{TARGET}]
    price: {{input: 0.15, cached: 0.075, output: 0.60}}
"""
FREE = f"routes:\n  one:\n    targets: [{TARGET}]\n"


def table(text: str) -> Table:
    parsed, warnings = parse_table(text, "t", {})
    assert not warnings
    return parsed


def mistakes(text: str) -> list[Mistake]:
    with pytest.raises(Mistakes) as caught:
        parse_table(text, "t", {})
    return caught.value.found


def test_every_dimension_budget_and_outage_policy_reaches_admission() -> None:
    text = (
        PRICED
        + """\
    limits: {tpm: 1.5M, concurrency: 64}
    key_limits: {itpm: 30k, otpm: 10k, outage: {itpm: open}}
limits:
  default:
    rpm: 600
    tpm: 200k
    budget: {day: {tokens: 2M}, week: {money: 7}, month: {tokens: 30M, money: 12.50}}
    outage: {rpm: closed, budget: open}
  tenant: {concurrency: 100, budget: {month: {money: 1000}}}
  ietf_headers: true
"""
    )
    read = table(text)
    month = Allowance(tokens=30_000_000, cost_micros=12_500_000)
    budget = Budget(day=Allowance(tokens=2_000_000), week=Allowance(cost_micros=7_000_000), month=month)
    outage: Any = {"rpm": "closed", "budget": "open"}
    assert read.limits.default.limit() == Limit(rpm=600, tpm=200_000, budget=budget, outage=outage)
    tenant = Limit(concurrency=100, budget=Budget(month=Allowance(cost_micros=1_000_000_000)))
    assert read.limits.tenant.limit() == tenant
    route = read.routes["one"]
    assert route.limits.limit() == Limit(tpm=1_500_000, concurrency=64)
    assert route.key_limits.limit() == Limit(itpm=30_000, otpm=10_000, outage={"itpm": "open"})
    assert read.limits.ietf_headers


def test_what_is_not_said_is_unlimited() -> None:
    read = table(FREE)
    spec = read.routes["one"]
    for limits in (read.limits.default, read.limits.tenant, spec.limits, spec.key_limits):
        assert limits == LimitSpec() and limits.limit() == Limit()
    assert spec.price is None and not read.limits.ietf_headers


def test_a_key_says_something_else_than_the_table_about_one_dimension_only() -> None:
    default = table(FREE + "limits: {default: {rpm: 5, outage: {rpm: closed, tpm: open}}}").limits.default.limit()
    own = Limit(tpm=9, outage={"rpm": "share"})
    assert own.over(default) == Limit(rpm=5, tpm=9, outage={"rpm": "share", "tpm": "open"})


def at(text: str, what: str) -> tuple[int, int]:
    before = text[: text.rindex(what)]
    return before.count("\n") + 1, len(before) - before.rfind("\n")


DIMENSIONS = ["rpm", "tpm", "itpm", "otpm", "concurrency", "budget"]


@pytest.mark.parametrize(
    ("limit", "where", "said"),
    [
        ("{outage: {rmp: open}}", "rmp", ["'rmp'", *DIMENSIONS, "did you mean 'rpm'"]),
        ("{outage: {rpm: opened}}", "opened", ["'opened'", "share", "closed", "open"]),
        ("{outage: open}", "open}", ["mapping", "'open'"]),
        ("{tpm: 200K}", "200K", ["'200K'", "200k"]),
        ("{tpm: 0}", "0}", ["'0'", "above 0"]),
        ("{otpm: 1.5}", "1.5", ["'1.5'", "whole number"]),
        ("{budget: {year: {tokens: 1}}}", "year", ["'year'", "day", "week", "month"]),
        ("{budget: {day: {token: 1}}}", "token:", ["'token'", "tokens", "money"]),
        ("{budget: {day: 5}}", "5}", ["mapping", "'5'"]),
        ("{budget: {day: {money: 0}}}", "0}", ["'0'", "above 0"]),
        ("{budget: {day: {money: 0.0000001}}}", "0.0000001", ["six decimals"]),
        ("{budget: {day: {money: 12,50}}}", "50}", ["'50'"]),
        ("{budget: {day: {money: 5 EUR}}}", "5 EUR", ["'5 EUR'", "12.50"]),
        ("{budget: {day: {money: 1000000000}}}", "1000000000", ["999999999"]),
        ("{budget: {day: {money: yes}}}", "yes", ["'yes'", "12.50"]),
        ("{rps: 5}", "rps", ["'rps'", "rpm"]),
    ],
)
@pytest.mark.parametrize("place", ["limits:\n  default: ", "limits:\n  tenant: ", "    limits: ", "    key_limits: "])
def test_a_mistake_in_limits_is_reported_where_it_stands(place: str, limit: str, where: str, said: list[str]) -> None:
    text = PRICED + place + limit + "\n"
    found = mistakes(text)[0]
    assert (found.line, found.column) == at(text, where), found
    for words in said:
        assert words in found.message


@pytest.mark.parametrize(
    ("price", "where", "said"),
    [
        ("{input: 1}", "{input", ["'output'", "missing"]),
        ("{input: -1, output: 1}", "-1", ["'-1'", "0.15"]),
        ("{input: 0.15 USD, output: 1}", "0.15 USD", ["'0.15 USD'"]),
        ("{input: 1, output: 1, reasoning: 2}", "reasoning", ["'reasoning'", "cached"]),
        ("{input: .inf, output: 1}", ".inf", ["'.inf'"]),
        ("3", "3", ["mapping"]),
    ],
)
def test_a_mistake_in_a_price_is_reported_where_it_stands(price: str, where: str, said: list[str]) -> None:
    text = FREE + f"    price: {price}\n"
    (found,) = mistakes(text)
    assert (found.line, found.column) == at(text, where), found
    for words in said:
        assert words in found.message


BUDGET = "{budget: {day: {tokens: 1}, week: {money: 5}}}"


@pytest.mark.parametrize("place", ["limits:\n  default: ", "limits:\n  tenant: ", "    limits: ", "    key_limits: "])
@pytest.mark.parametrize("price", ["", "    price: {input: 0, cached: 0, output: 0}\n"])
def test_money_that_no_call_can_cost_is_a_mistake(place: str, price: str) -> None:
    text = FREE + price + place + BUDGET + "\n"
    (found,) = mistakes(text)
    assert (found.line, found.column) == at(text, "money"), found
    assert "price" in found.message and not found.warning


@pytest.mark.parametrize("place", ["limits:\n  default: ", "limits:\n  tenant: ", "    limits: ", "    key_limits: "])
def test_money_that_some_call_costs_is_none(place: str) -> None:
    assert table(PRICED + place + BUDGET + "\n")


def test_a_model_is_charged_by_its_own_price_only_a_key_by_any() -> None:
    other = '  two:\n    targets: [{name: b, backend: vllm, url: "http://b"}]\n'
    assert table(PRICED + other + f"limits: {{default: {BUDGET}}}\n")
    (found,) = mistakes(PRICED + other + f"    limits: {BUDGET}\n")
    assert "'two'" in found.message


def test_cached_tokens_that_cost_more_are_odd_but_can_be_served() -> None:
    text = FREE + "    price: {input: 0.15, cached: 0.2, output: 0.6}\n"
    read, (warning,) = parse_table(text, "t", {})
    assert warning.warning and not warning.needed and "warning: " in str(warning)
    assert (warning.line, warning.column) == at(text, "cached")
    assert read.routes["one"].price == Price(input=150_000, cached=200_000, output=600_000)


def test_what_serving_lacks_is_told_apart() -> None:
    _, (warning,) = parse_table(FREE.replace("//a", "//${ABSENT}"), "t", {})
    assert warning.warning and warning.needed


def test_prices_are_exact_to_the_last_digit() -> None:
    price = table(PRICED).routes["one"].price
    assert price == Price(input=150_000, cached=75_000, output=600_000)
    assert price.cost(1_000_000, 0, 0) == 150_000
    assert price.cost(1_000_000, 1_000_000, 0) == 75_000
    assert price.cost(0, 0, 1_000_000) == 600_000
    assert price.cost(1, 0, 0) == 1, "0.15 micro-units are rounded up"
    assert price.cost(10, 10, 10) == 7, "0.75 + 6"
    assert price.cost(0, 0, 0) == 0


def test_without_a_price_of_their_own_cached_tokens_cost_what_others_do() -> None:
    price = Price(input=2_000_000, output=0)
    assert price.cost(100, 60, 5) == price.cost(100, 0, 5) == 200


def test_an_upstream_that_caches_more_than_it_was_given_gives_nothing_back() -> None:
    price = Price(input=1_000_000, cached=0, output=1_000_000)
    assert price.cost(10, 50, 0) == 0


RATE = st.integers(0, 10**9)
TOKENS = st.integers(0, 10**9)


@given(RATE, RATE, RATE, TOKENS, TOKENS, TOKENS)
def test_a_cost_is_the_least_whole_number_of_micro_units(
    input: int, cached: int, output: int, plain: int, hit: int, made: int
) -> None:
    price = Price(input=input, cached=cached, output=output)
    exact = Fraction(plain * input + hit * cached + made * output, 1_000_000)
    assert price.cost(plain + hit, hit, made) == ceil(exact)


@given(st.integers(1, 999_999_999 * 10**6))
def test_money_in_yaml_and_in_json_is_read_to_the_last_digit(micros: int) -> None:
    amount = f"{micros // 10**6}.{micros % 10**6:06d}"
    for written in (amount, f"'{amount}'", json.dumps(amount), amount.rstrip("0").rstrip(".")):
        budget = f"limits: {{default: {{budget: {{day: {{money: {written}}}}}}}}}\n"
        assert table(PRICED + budget).limits.default.budget.day.money == micros
