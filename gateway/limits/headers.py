"""How limits are told to clients: OpenAI's headers, the IETF's where the table asks for them, words of denial."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gateway.core.errors import LimitReached, NeverFits, OutOfBudget, RateLimited
from gateway.core.types import Dimension, Standing, Verdict

Headers = list[tuple[bytes, bytes]]

_WHOSE = {"key": "This key", "tenant": "This tenant", "model": "This model", "key_model": "This key on this model"}
_WHAT = {
    "rpm": "requests per minute",
    "tpm": "tokens per minute",
    "itpm": "prompt tokens per minute",
    "otpm": "completion tokens per minute",
    "concurrency": "calls at the same time",
}


def rate_headers(
    dimensions: Sequence[Dimension], standings: Sequence[Standing], ietf: bool, denied: int | None = None
) -> Headers:
    """OpenAI's headers for requests and for tokens: of what denied the call, else of what has the least left."""
    tightest: dict[str, tuple[Dimension, Standing]] = {}
    decisive = None if denied is None else dimensions[denied]
    for dimension, standing in zip(dimensions, standings, strict=False):
        if dimension.kind == "rate":
            group = "requests" if dimension.unit == "requests" else "tokens"
            known = tightest.get(group)
            tighter = known is None or (known[0] is not decisive and standing.remaining < known[1].remaining)
            if tighter or dimension is decisive:
                tightest[group] = dimension, standing
    headers: Headers = []
    for group, (dimension, standing) in tightest.items():
        name = group.encode()
        headers += [
            (b"x-ratelimit-limit-" + name, b"%d" % dimension.limit),
            (b"x-ratelimit-remaining-" + name, b"%d" % standing.remaining),
            (b"x-ratelimit-reset-" + name, duration(standing.reset).encode()),
        ]
    if ietf and tightest:
        policy = ", ".join(f'"{d.name}";q={d.limit};w={d.window:.0f}' for d, _ in tightest.values())
        state = ", ".join(f'"{d.name}";r={s.remaining};t={math.ceil(s.reset)}' for d, s in tightest.values())
        headers += [(b"ratelimit-policy", policy.encode()), (b"ratelimit", state.encode())]
    return headers


def denial(dimensions: Sequence[Dimension], verdict: Verdict, headers: Headers) -> LimitReached:
    """The error for the dimension that said no."""
    assert verdict.denied is not None
    dimension, wait = dimensions[verdict.denied], verdict.retry_after
    whose = _WHOSE[dimension.scope]
    error: LimitReached
    if dimension.kind != "budget":
        what = f"{dimension.limit} {_WHAT[dimension.name]}"
        error = RateLimited(f"{whose} is limited to {what}. Try again in {duration(wait)}.", retry_after=wait)
    else:
        what = f"{dimension.limit} tokens" if dimension.unit == "tokens" else "money"
        message = f"{whose} has used up its budget of {what} for the {dimension.period}."
        reserved = wait < verdict.standings[verdict.denied].reset
        if reserved:  # by calls under way, which may use less
            message = f"{whose} has no budget of {what} left for this call while others are under way."
        error = OutOfBudget(message, retry_after=wait, reserved=reserved)
    error.dimension, error.scope = dimension.name, dimension.scope
    error.headers = {name.decode(): value.decode() for name, value in headers}
    return error


def never_fits(dimension: Dimension) -> NeverFits:
    """The error for a call that is larger than a whole dimension."""
    what = "money" if dimension.unit == "cost" else f"{dimension.limit} {_WHAT.get(dimension.name, 'tokens')}"
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
