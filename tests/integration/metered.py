"""A gateway whose calls are charged: its routes, their targets, and how a test reads what a call took."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from harness.gateway_process import GatewayProcess, Issued, gateway_process
from harness.upstream import Script, Target, Upstream, answer, whole
from integration.client import Reply, ask, chat, eventually

from gateway.core.types import Allowance, Budget, Limit

ROUTES: Final = ("plain", "priced", "learned", "modest", "private", "pair", "hasty")
PROMPT: Final = 200
"""Tokens, more than any of the short prompts here is ever estimated at."""


@contextmanager
def metered_gateway(upstream: Upstream, redis_url: str | None) -> Iterator[GatewayProcess]:
    """One worker. "priced" costs a micro-unit for a prompt token, a tenth for a cached one, ten for one of the answer;
    "modest" has a limit of its own, "private" one for each key, "pair" two targets, "hasty" little patience."""

    def route(name: str, *targets: str, **fields: Any) -> dict[str, Any]:
        found = [
            {"name": each, "backend": "openai", "url": upstream.target(each).url} for each in targets or (f"t-{name}",)
        ]
        return {"targets": found, **fields}

    routes = {
        "plain": route("plain"),
        "learned": route("learned"),
        "priced": route("priced", price={"input": 1, "cached": 0.1, "output": 10}),
        "modest": route("modest", limits={"rpm": 4}),
        "private": route("private", key_limits={"rpm": 2}),
        "pair": route("pair", "t-pair-a", "t-pair-b", policy="round-robin"),
        "hasty": route("hasty", timeouts={"first_output": "300ms", "whole": "300ms"}),
    }
    with gateway_process(json.dumps({"routes": routes}), redis_url=redis_url) as started:
        yield started


def renewed_targets(upstream: Upstream) -> dict[str, Target]:
    """The target of each route, as new; "pair-b" is the second one of "pair"."""
    names = {route: f"t-{route}" for route in ROUTES} | {"pair": "t-pair-a", "pair-b": "t-pair-b"}
    found = {route: upstream.target(name) for route, name in names.items()}
    for each in found.values():
        each.restore()
    return found


def tokens(reply: Reply) -> int:
    """Tokens left, as an answer tells."""
    left = reply.header("x-ratelimit-remaining-tokens")
    assert left is not None, reply
    return int(left)


def left(gateway: GatewayProcess, issued: Issued, model: str = "plain", **fields: Any) -> int:
    """What is left of a key's tokens after one more small call, which reserves at most `PROMPT` and one token."""
    reply = ask(gateway, chat(model, max_tokens=1, **fields), issued.secret)
    assert reply.status == 200, reply
    return tokens(reply)


def used(prompt: int, completion: int, **fields: Any) -> Script:
    """An answer that took so many tokens."""
    return whole(answer(prompt=prompt, completion=completion) | fields)


def of(gateway: GatewayProcess, issued: Issued) -> dict[str, Any]:
    """The record of a key's one call."""

    def look() -> dict[str, Any] | None:
        found = [line for line in gateway.records() if line["key_id"] == issued.record.id]
        return found[-1] if found else None

    return eventually(look, "the record of the key's call")


def day(**allowed: int) -> Limit:
    return Limit(budget=Budget(day=Allowance(**allowed)))
