"""Dimensions that know how many units a call asks for, so that a test can say both in one breath."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gateway.core.types import Ask, Dimension, Plan


class Wanted(Dimension, frozen=True):
    """A dimension, and the units of it that are asked for."""

    amount: int = 1


def asking(call_id: str, records: Sequence[tuple[str, int]], *dimensions: Wanted) -> Ask:
    """The ask for these."""
    return Ask(call_id, Plan(tuple(records), dimensions), tuple(each.amount for each in dimensions))


def wanted(ask: Ask) -> list[Wanted]:
    """What it asks for."""
    return [changed(dimension, amount=n) for dimension, n in zip(ask.plan.dimensions, ask.amounts, strict=True)]


def changed(dimension: Dimension, **fields: Any) -> Wanted:
    """The same but for these fields."""
    known = {name: getattr(dimension, name) for name in dimension.__struct_fields__}
    return Wanted(**{**known, **fields})
