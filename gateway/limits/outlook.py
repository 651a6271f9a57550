"""What admission would say to a call now, without charging it anything: for whoever explains."""

from __future__ import annotations

from msgspec import Struct

from backends.api import Call
from gateway.core.errors import LimitReached, NeverFits
from gateway.core.types import Dimension
from gateway.limits.estimate import Estimate
from gateway.limits.headers import denial
from gateway.limits.plan import Terms
from gateway.store import Limits


class LimitLook(Struct, frozen=True, omit_defaults=True):
    """How one limit of a call stands. Money is in millionths."""

    scope: str
    """Whose it is: `key`, `tenant`, `model`, `key_model`."""
    name: str
    """`rpm`, `tpm`, `itpm`, `otpm`, `concurrency`, `budget`."""
    unit: str
    limit: int
    reserves: int
    """What the call would take of it while it runs."""
    left: int
    period: str = ""
    """Of a budget."""


class Outlook(Struct, frozen=True):
    """What a call would meet."""

    limits: list[LimitLook]
    refusal: LimitReached | NeverFits | None
    """Why it would not be admitted now."""


async def outlook(limits: Limits, terms: Terms, call: Call, estimate: Estimate) -> Outlook:
    """As the next call would meet its limits if nobody else came before it. Raises `StoreDown`."""
    if not terms.plan.dimensions:
        return Outlook([], None)
    try:
        ask = terms.ask(call.id, estimate)
    except NeverFits as error:
        return Outlook([], error)
    while True:
        verdict, refusal = await limits.look(ask), None
        if verdict.denied is None:
            break
        smaller = terms.smaller(ask, verdict, estimate)
        if smaller is None:
            refusal = denial(ask, verdict, [])
            break
        ask = smaller
    found = zip(ask.plan.dimensions, ask.amounts, verdict.standings, strict=True)
    return Outlook([_shown(each, amount, standing.remaining) for each, amount, standing in found], refusal)


def _shown(dimension: Dimension, reserves: int, left: int) -> LimitLook:
    period = dimension.period or ""
    return LimitLook(dimension.scope, dimension.name, dimension.unit, dimension.limit, reserves, left, period)
