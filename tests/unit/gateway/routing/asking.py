"""How the tests of `home-cost` ask it: calls by example, and what it thinks of each target."""

from __future__ import annotations

from harness.routing import Gateway, fleet, key

from gateway.routing.policies.api import Prompt, Score
from gateway.routing.policies.registry import load

HOME_COST = load("home-cost")


def gateway(count: int = 4, **values: float) -> Gateway:
    return fleet(HOME_COST, 1, count, **values)[0]


def first(n: object, tokens: int = 1000) -> Prompt:
    """The first call of a conversation without a system prompt."""
    return Prompt(tokens, key("c", n))


def follow(n: object, tokens: int = 1000) -> Prompt:
    return Prompt(tokens, key("c", n), follow_up=True)


def grouped(group: object, n: object, prefix: int = 2000, tokens: int = 3000) -> Prompt:
    return Prompt(tokens, key("c", group, n), key("g", group), prefix)


def by_place(of: Gateway, prompt: Prompt, now: float = 0.0) -> dict[int, Score]:
    return {score.index: score for score in of.scores(prompt, now)}


def home(of: Gateway, prompt: Prompt) -> int:
    return next(score.index for score in of.scores(prompt) if score.reason == "home")


def others(of: Gateway, place: int) -> list[int]:
    return [n for n in range(len(of.replicas)) if n != place]


def spilled(of: Gateway, prompt: Prompt) -> int:
    """Serve the call away from home, where there is too much to read for a moment; where to."""
    at = home(of, prompt)
    of.replicas[at].load.prefill += 10**6
    placed = of.serve(prompt)
    of.replicas[at].load.prefill -= 10**6
    assert placed.score.index != at
    return placed.score.index
