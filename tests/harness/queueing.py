"""Targets that read one prompt after the other, and gateways that send them calls at random times."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import count
from random import Random

from harness.routing import Gateway, exchange

from gateway.routing.policies.api import Prompt

READS = 8000.0
"""Tokens a second."""


def play(
    gateways: Sequence[Gateway],
    prompts: Callable[[Random, int], Prompt],
    *,
    calls: int,
    per_second: float,
    share_seconds: float = 0.2,
    seed: int = 0,
) -> list[int]:
    """Prompt tokens that each target was sent. Every call has ended when this returns."""
    chance, number = Random(seed), count()
    events: list[tuple[float, int, Callable[[float], None]]] = []
    sent = [0] * len(gateways[0].replicas)
    free_at = [0.0] * len(sent)

    def later(when: float, what: Callable[[float], None]) -> None:
        heapq.heappush(events, (when, next(number), what))

    def arrive(now: float) -> None:
        nonlocal calls
        gateway = gateways[chance.randrange(len(gateways))]
        placed = gateway.place(prompts(chance, calls), now)
        index = placed.score.index
        sent[index] += placed.prompt.tokens
        free_at[index] = max(now, free_at[index]) + placed.charge / READS / placed.replica.weight
        later(free_at[index], lambda _: placed.share.first_token())
        later(free_at[index] + chance.expovariate(1.0), lambda _: placed.share.end())
        calls -= 1
        if calls:
            later(now + chance.expovariate(per_second), arrive)

    def tell(now: float) -> None:
        exchange(gateways, now)
        if calls:
            later(now + share_seconds, tell)

    later(0.0, arrive)
    if len(gateways) > 1:
        later(share_seconds, tell)
    while events:
        when, _, what = heapq.heappop(events)
        what(when)
    return sent


def imbalance(sent: Sequence[float]) -> float:
    """The most a target has, in means."""
    return max(sent) * len(sent) / sum(sent)
