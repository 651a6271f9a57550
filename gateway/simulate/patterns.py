"""Workloads with one trait each, and mixtures of them: what the routing rule was chosen by."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from random import Random
from typing import Final

from msgspec import structs

from gateway.faults.engine import Segment
from gateway.simulate.calls import Asked, Call, Make, key

ANSWER: Final = 128
"""Tokens of every answer; the next call of the conversation has it in its prompt."""
PAUSE: Final = 10.0
"""Seconds, in the mean, from an answer to the next question of a chat."""
QUESTION: Final = 1200
BURST: Final = 64
LEAST_GROUP: Final = 1024
"""Tokens; gateways take no notice of a shorter common prefix."""


def arrivals(rng: Random, rate: float, seconds: float) -> Iterator[float]:
    """Times in a Poisson process of so many events a second."""
    time = rng.expovariate(rate)
    while time < seconds:
        yield time
        time += rng.expovariate(rate)


def about(rng: Random, tokens: int) -> int:
    """Half as many to half as many more."""
    return rng.randint(tokens // 2, tokens * 3 // 2)


def opening(rng: Random, after: float, system: Segment | None, question: int, answer: int = ANSWER) -> Call:
    """The first call of a conversation: a system prompt that others may share, and a question of its own."""
    conversation = key(rng)
    segments = (*([system] if system else []), (key(rng), question))
    group, prefix = system if system and system[1] >= LEAST_GROUP else (None, 0)
    tokens = sum(size for _, size in segments)
    prompt = Asked(tokens, conversation, group, prefix, session=conversation, segments=segments)
    return Call(after, prompt, answer, rng.random())


def following(rng: Random, call: Call, after: float, tokens: int) -> Call:
    """A later call of the same conversation: all that `call` held, then its answer and `tokens` more, to be read."""
    earlier, tokens = call.prompt, tokens + call.answer
    prompt = structs.replace(
        earlier, tokens=earlier.tokens + tokens, follow_up=True, segments=(*call.segments, (key(rng), tokens))
    )
    return Call(after, prompt, call.answer, rng.random())


def grouped(groups: int, system: int, zipf: bool = False, *, question: int = QUESTION, answer: int = ANSWER) -> Make:
    """Calls that share one of so many system prompts of so many tokens: equally often, or as 1, 1/2, 1/3, ..."""
    shares = list(accumulate(1 / rank if zipf else 1.0 for rank in range(1, groups + 1)))

    def make(rng: Random, rate: float, seconds: float) -> list[Call]:
        prompts = [(key(rng), system) for _ in range(groups)]
        return [
            opening(rng, time, rng.choices(prompts, cum_weights=shares)[0], about(rng, question), answer)
            for time in arrivals(rng, rate, seconds)
        ]

    return make


def one_prefix(rng: Random, rate: float, seconds: float) -> list[Call]:
    """Calls that all share one system prompt."""
    return grouped(1, 2500)(rng, rate, seconds)


def chats(turns: int, turn: int, system: int, groups: int = 1, *, pause: float = PAUSE, answer: int = ANSWER) -> Make:
    """Conversations of so many calls, each with about `turn` tokens more, on one of so many system prompts."""

    def make(rng: Random, rate: float, seconds: float) -> list[Call]:
        prompts = [(key(rng), system) for _ in range(groups)]
        first = []
        for time in arrivals(rng, rate / turns, seconds):
            call = opening(rng, time, rng.choice(prompts), about(rng, turn), answer)
            first.append(call)
            for _ in range(turns - 1):
                later = following(rng, call, rng.expovariate(1 / pause), about(rng, turn))
                call.next = (later,)
                call = later
        return first

    return make


def unique(rng: Random, rate: float, seconds: float) -> list[Call]:
    """Prompts that share nothing: affinity can only harm."""
    return [opening(rng, time, None, about(rng, 2400)) for time in arrivals(rng, rate, seconds)]


def unique_system(rng: Random, rate: float, seconds: float) -> list[Call]:
    """Each call has a long system prompt, and no other call has the same: groups promise what they do not keep."""
    return [opening(rng, time, (key(rng), 3000), about(rng, 600)) for time in arrivals(rng, rate, seconds)]


def bursts(rng: Random, rate: float, seconds: float) -> list[Call]:
    """Calls that come many at a time, on one system prompt."""
    system = (key(rng), QUESTION)
    times = arrivals(rng, rate / BURST, seconds)
    return [opening(rng, time, system, about(rng, QUESTION)) for time in times for _ in range(BURST)]


def mixed(*parts: tuple[float, Make]) -> Make:
    """Workloads at the same time, each with its share of the calls."""

    def make(rng: Random, rate: float, seconds: float) -> list[Call]:
        return [call for share, part in parts for call in part(rng, rate * share, seconds)]

    return make
