"""The limits of the exactness cases: each dimension alone, sized for a number of calls of `volley.chat`."""

from __future__ import annotations

from typing import Any

from faults.volley import CALL, OUTPUT, PROMPT
from msgspec import structs

from gateway.core.types import Allowance, Budget, Limit

RATES = {"rpm": ("requests", 1), "tpm": ("tokens", CALL), "itpm": ("input", PROMPT), "otpm": ("output", OUTPUT)}
"""Rate dimensions, and how many of their units a call takes."""
DIMENSIONS = (*RATES, "concurrency", "tokens", "money")


def limit(dimension: str, calls: int) -> Limit:
    """A limit that so many calls exhaust; a token costs a micro-unit."""
    if dimension in RATES:
        return structs.replace(Limit(), **{dimension: calls * RATES[dimension][1]})
    if dimension == "concurrency":
        return Limit(concurrency=calls)
    spent = calls * CALL
    month = Allowance(tokens=spent) if dimension == "tokens" else Allowance(cost_micros=spent)
    return Limit(budget=Budget(month=month))


def in_table(dimension: str, calls: int) -> dict[str, Any]:
    """The same limit as the routing table writes it."""
    made = limit(dimension, calls)
    if dimension == "tokens":
        return {"budget": {"month": {"tokens": made.budget.month.tokens}}}
    if dimension == "money":
        return {"budget": {"month": {"money": f"{calls * CALL / 1e6:.6f}"}}}
    return {dimension: getattr(made, dimension)}


def key(dimension: str, scope: str, id: str) -> str:
    """Where Redis counts it."""
    if dimension in RATES:
        return f"{{tl}}:rate:{scope}:{id}:{dimension}"
    if dimension == "concurrency":
        return f"{{tl}}:lease:{scope}:{id}"
    return f"{{tl}}:budget:{scope}:{id}:month:{'tokens' if dimension == 'tokens' else 'cost'}"
