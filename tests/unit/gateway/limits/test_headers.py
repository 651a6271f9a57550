"""How limits are told: the tightest of each kind, durations as OpenAI writes them, denials in plain words."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import structs

from gateway.core.errors import LimitReached, NeverFits, OutOfBudget, RateLimited
from gateway.core.types import Ask, Dimension, Plan, Standing, Verdict
from gateway.limits.headers import RateHeaders, denial, duration, never_fits

PIECE = re.compile(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+)s)?(?:(\d+)ms)?")
UNITS = {"rpm": "requests", "tpm": "tokens", "itpm": "input", "otpm": "output"}


def rate(name: str, limit: int, scope: str = "key") -> Dimension:
    return Dimension(name, "rate", f"rate:{scope}:x:{name}", limit, 60.0, scope, UNITS[name])


def slots(limit: int, scope: str = "key") -> Dimension:
    return Dimension("concurrency", "lease", f"lease:{scope}:x", limit, 15.0, scope, "calls")


def budget(limit: int, unit: str = "tokens", period: Any = "day", scope: str = "key") -> Dimension:
    key = f"budget:{scope}:x:{period}:{unit}"
    return Dimension("budget", "budget", key, limit, 60.0, scope, unit, period, "closed")


def told(*pairs: tuple[Dimension, Standing], ietf: bool = False) -> dict[str, str]:
    headers = RateHeaders([one for one, _ in pairs], ietf).of([two for _, two in pairs])
    assert len(dict(headers)) == len(headers), "no name twice"
    return {name.decode(): value.decode() for name, value in headers}


def test_requests_and_tokens_are_told_side_by_side() -> None:
    assert told((rate("rpm", 60), Standing(59, 1.0)), (rate("tpm", 150_000), Standing(149_984, 0.0064))) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "149984",
        "x-ratelimit-reset-tokens": "7ms",
    }


@pytest.mark.parametrize("tightest", ["key", "tenant", "model", "key_model"])
@pytest.mark.parametrize(("name", "group"), [("rpm", "requests"), ("tpm", "tokens"), ("itpm", "tokens")])
def test_of_several_the_tightest_is_told(tightest: str, name: str, group: str) -> None:
    """The one with the least left, not the one with the smallest limit."""
    scopes = ("key", "tenant", "model", "key_model")
    pairs = [(rate(name, 100 + i, s), Standing(7 if s == tightest else 50 + i, 3.0)) for i, s in enumerate(scopes)]
    found = told(*pairs)
    assert found[f"x-ratelimit-remaining-{group}"] == "7"
    assert found[f"x-ratelimit-limit-{group}"] == str(100 + scopes.index(tightest))
    assert len(found) == 3


@pytest.mark.parametrize("tightest", ["tpm", "itpm", "otpm"])
def test_of_the_kinds_of_tokens_the_tightest_is_told(tightest: str) -> None:
    pairs = [(rate(name, 1000, "key"), Standing(9 if name == tightest else 500, 1.0)) for name in list(UNITS)[1:]]
    found = told(*pairs, (rate("rpm", 10), Standing(1, 54.0)))
    assert found["x-ratelimit-remaining-tokens"] == "9"
    assert found["x-ratelimit-remaining-requests"] == "1"


def test_slots_and_budgets_have_no_headers() -> None:
    assert told((slots(3), Standing(2, 0.0)), (budget(100), Standing(50, 3600.0))) == {}
    assert told(ietf=True) == {}


def test_the_ietfs_headers_are_sent_where_they_are_asked_for() -> None:
    pairs = ((rate("rpm", 60), Standing(59, 1.0)), (rate("tpm", 150_000), Standing(149_984, 6.2)))
    assert "ratelimit" not in told(*pairs)
    found = told(*pairs, ietf=True)
    assert found["ratelimit-policy"] == '"rpm";q=60;w=60, "tpm";q=150000;w=60'
    assert found["ratelimit"] == '"rpm";r=59;t=1, "tpm";r=149984;t=7'
    assert found["x-ratelimit-limit-requests"] == "60"


def no(
    dimension: Dimension, wait: float, *others: Dimension, reset: float = 1.0, left: int = 0, asked: int = 1
) -> LimitReached:
    """The denial by `dimension`, which stands after the others and of which so much is `left`."""
    dimensions = (*others, dimension)
    standings = tuple(Standing(left, reset) for _ in dimensions)
    ask = Ask("c", Plan((), dimensions), [asked] * len(dimensions))
    return denial(ask, Verdict(standings, len(others), wait), [(b"x-ratelimit-limit-requests", b"60")])


@pytest.mark.parametrize(
    ("dimension", "words"),
    [
        (rate("rpm", 60), "60 requests per minute"),
        (rate("tpm", 500), "500 tokens per minute"),
        (rate("itpm", 500), "500 prompt tokens per minute"),
        (rate("otpm", 500), "500 completion tokens per minute"),
        (slots(3), "3 calls at the same time"),
    ],
    ids=lambda value: value.name if isinstance(value, Dimension) else "",
)
@pytest.mark.parametrize(
    ("scope", "whose"),
    [("key", "key"), ("tenant", "tenant"), ("model", "model"), ("key_model", "key on this model")],
)
def test_a_denial_says_whose_limit_which_and_when(dimension: Dimension, words: str, scope: str, whose: str) -> None:
    error = no(structs.replace(dimension, scope=scope), 1.2, rate("rpm", 9), budget(4))
    assert isinstance(error, RateLimited)
    assert f"This {whose} " in error.message and words in error.message and "2s" in error.message
    assert (error.scope, error.dimension) == (scope, dimension.name)
    assert error.retry_after == 1.2
    assert error.should_retry is True and error.code == "rate_limit_exceeded"
    assert error.headers == {"x-ratelimit-limit-requests": "60"}


@pytest.mark.parametrize("period", ["day", "week", "month"])
@pytest.mark.parametrize(("unit", "words"), [("tokens", "100 tokens"), ("cost", "money")])
def test_a_spent_budget_is_no_matter_of_waiting(period: str, unit: str, words: str) -> None:
    error = no(budget(100, unit, period), 3600.0, reset=3600.0)
    assert isinstance(error, OutOfBudget)
    assert words in error.message and period in error.message
    assert error.should_retry is False and error.code == "insufficient_quota"
    assert (error.scope, error.dimension) == ("key", "budget")


def test_a_budget_that_others_have_only_reserved_is_worth_another_try() -> None:
    error = no(budget(100), 1.0, reset=3600.0)
    assert isinstance(error, OutOfBudget)
    assert error.should_retry is True and error.retry_after == 1.0
    assert "used up" not in error.message


@pytest.mark.parametrize("wait", [1.0, 3600.0])
def test_a_budget_of_which_something_is_left_says_how_much_and_what_the_call_would_take(wait: float) -> None:
    error = no(budget(100), wait, reset=3600.0, left=25, asked=40)
    assert "used up" not in error.message
    assert "25 tokens left of its budget of 100 tokens" in error.message and "reserve 40 tokens" in error.message
    assert ("others under way" in error.message) == (wait < 3600.0)
    money = no(budget(12_500_000, "cost"), 9.0, reset=9.0, left=1_250_000, asked=2_000_000)
    assert "1.25 left" in money.message and "reserve 2" in money.message


def test_money_is_not_shown_in_micro_units() -> None:
    assert "12500000" not in no(budget(12_500_000, "cost"), 9.0, reset=9.0).message
    assert "12500000" not in never_fits(budget(12_500_000, "cost")).message


@pytest.mark.parametrize(
    ("dimension", "words"),
    [
        (rate("tpm", 50, "tenant"), "50 tokens per minute"),
        (rate("otpm", 50), "50 completion tokens per minute"),
        (budget(70), "70 tokens"),
        (budget(70, "cost"), "money"),
    ],
)
def test_what_never_fits_says_so_and_is_no_matter_of_waiting(dimension: Dimension, words: str) -> None:
    error = never_fits(dimension)
    assert isinstance(error, NeverFits)
    assert words in error.message
    assert (error.status, error.code, error.should_retry, error.retry_after) == (400, "exceeds_limit", False, None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.017, "17ms"),
        (0.0171, "18ms"),
        (0.5, "500ms"),
        (1, "1s"),
        (1.2, "2s"),
        (59.5, "1m0s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (90061, "25h1m1s"),
    ],
)
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e6))
@example(0.9995)
@example(0.0)
@example(3599.5)
def test_a_duration_is_rounded_up_and_each_part_in_its_range(seconds: float) -> None:
    match = PIECE.fullmatch(duration(seconds))
    assert match is not None
    hours, minutes, whole, milliseconds = (int(part or 0) for part in match.groups())
    assert minutes < 60 and whole < 60 and milliseconds < 1000
    written = hours * 3600 + minutes * 60 + whole + milliseconds / 1000
    assert written >= seconds - 1e-9
    assert written - seconds < (0.001 if seconds < 0.999 else 1) + 1e-9
