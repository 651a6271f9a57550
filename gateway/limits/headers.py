"""How limits are told to clients: OpenAI's headers, the IETF's where the table asks for them, words of denial."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gateway.core.dimensions import WORDS
from gateway.core.errors import LimitReached, NeverFits, OutOfBudget, RateLimited
from gateway.core.types import Ask, Dimension, Standing, Verdict

Headers = list[tuple[bytes, bytes]]

_WHOSE = {"key": "This key", "tenant": "This tenant", "model": "This model", "key_model": "This key on this model"}
_WORDS = (b"limit", b"remaining", b"reset")


class RateHeaders:
    """OpenAI's headers for requests and for tokens, of the same dimensions for many calls."""

    __slots__ = ("_dimensions", "_groups", "ietf")

    def __init__(self, dimensions: Sequence[Dimension], ietf: bool = False) -> None:
        self._dimensions, self.ietf = dimensions, ietf
        requests = [i for i, d in enumerate(dimensions) if d.kind == "rate" and d.unit == "requests"]
        tokens = [i for i, d in enumerate(dimensions) if d.kind == "rate" and d.unit != "requests"]
        found = ((b"requests", requests), (b"tokens", tokens))
        self._groups = [_Group(name, members, dimensions) for name, members in found if members]

    def of(self, standings: Sequence[Standing], denied: int | None = None) -> Headers:
        """Of what denied the call, else of what has the least left."""
        headers: Headers = []
        told = []
        for group in self._groups:
            members = group.members
            if len(members) == 1:
                chosen = members[0]
            elif denied in members:
                chosen = denied
            else:
                chosen = min(members, key=lambda member: standings[member].remaining)
            standing = standings[chosen]
            reset = standing.reset
            headers += (
                group.limits[chosen],
                (group.remaining, b"%d" % standing.remaining),
                # Most are short; the longer ones are worth a call.
                (group.reset, b"%dms" % math.ceil(reset * 1000) if reset <= 0.999 else duration(reset).encode()),
            )
            told.append(chosen)
        if self.ietf and told:
            headers += self._ietf_headers([(self._dimensions[i], standings[i]) for i in told])
        return headers

    def _ietf_headers(self, told: Sequence[tuple[Dimension, Standing]]) -> Headers:
        policy = ", ".join(f'"{d.name}";q={d.limit};w={d.window:.0f}' for d, _ in told)
        state = ", ".join(f'"{d.name}";r={s.remaining};t={math.ceil(s.reset)}' for d, s in told)
        return [(b"ratelimit-policy", policy.encode()), (b"ratelimit", state.encode())]


class _Group:
    """The dimensions of which one is told, and the names it is told under."""

    __slots__ = ("limits", "members", "remaining", "reset")

    def __init__(self, name: bytes, members: list[int], dimensions: Sequence[Dimension]) -> None:
        self.members = members
        limit, self.remaining, self.reset = (b"x-ratelimit-%b-%b" % (word, name) for word in _WORDS)
        self.limits = {i: (limit, b"%d" % dimensions[i].limit) for i in members}
        """The header that tells the limit of a member."""


def denial(ask: Ask, verdict: Verdict, headers: Headers) -> LimitReached:
    """The error for the dimension that said no to what was asked for."""
    dimensions = ask.plan.dimensions
    assert verdict.denied is not None
    dimension, wait = dimensions[verdict.denied], verdict.retry_after
    whose = _WHOSE[dimension.scope]
    error: LimitReached
    if dimension.kind != "budget":
        what = f"{dimension.limit} {WORDS[dimension.name]}"
        error = RateLimited(f"{whose} is limited to {what}. Try again in {duration(wait)}.", retry_after=wait)
    else:
        what = f"{dimension.limit} tokens" if dimension.unit == "tokens" else "money"
        message = f"{whose} has used up its budget of {what} for the {dimension.period}"
        standing, amount = verdict.standings[verdict.denied], ask.amounts[verdict.denied]
        reserved = wait < standing.reset
        if reserved:  # by calls under way, which may use less
            message = f"{whose} has no budget of {what} left for this call while others are under way"
        left, needed = (_amount(each, dimension.unit) for each in (standing.remaining, amount))
        if standing.remaining > 0:
            message = f"{whose} has {left} left of its budget of {what} for the {dimension.period}"
            message += ", others under way aside" if reserved else ""
        message += f"; this call would reserve {needed}."
        error = OutOfBudget(message, retry_after=wait, reserved=reserved)
    error.dimension, error.scope = dimension.name, dimension.scope
    error.headers = {name.decode(): value.decode() for name, value in headers}
    return error


def _amount(amount: int, unit: str) -> str:
    """An amount of a budget for people: money is counted in millionths."""
    return f"{amount / 1e6:.6g}" if unit == "cost" else f"{amount} tokens"


def never_fits(dimension: Dimension) -> NeverFits:
    """The error for a call that is larger than a whole dimension."""
    what = "money" if dimension.unit == "cost" else f"{dimension.limit} {WORDS.get(dimension.name, 'tokens')}"
    return NeverFits(
        f"{_WHOSE[dimension.scope]} is limited to {what}, which is less than this call needs at the very least: it "
        "would never be admitted. Send a shorter prompt or a smaller 'max_tokens'.",
        param="max_tokens",
    )


def duration(seconds: float) -> str:
    """A duration as OpenAI writes it: `17ms`, `1s`, `6m0s`."""
    if (milliseconds := math.ceil(seconds * 1000)) < 1000:
        return f"{milliseconds}ms"
    whole = math.ceil(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s" if minutes else f"{rest}s"
