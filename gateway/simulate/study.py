"""Policies compared: each runs over the same calls and an equal fleet, with empty caches and nothing learned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count as numbers
from typing import Final

from msgspec import Struct

from gateway.config import TargetSpec
from gateway.faults.engine import Shape, TimedEngine
from gateway.routing.policies import registry
from gateway.routing.policies.registry import Factory
from gateway.simulate import virtual_time
from gateway.simulate.cache_aware import CacheAware
from gateway.simulate.calls import Call
from gateway.simulate.gateways import Boards, SimulatedGateway
from gateway.simulate.oracle import Oracle
from gateway.simulate.replay import Replay

ORACLE: Final = "oracle"
"""The policy that only a simulation can have."""
CACHE_AWARE: Final = "cache_aware"
"""A model of another router's; it is always one router, however many gateways there are."""
CHUNK_SECONDS: Final = 0.25
"""What a step reads takes so long at most: slow engines have shorter chunks. 8,192 tokens at 33,000 a second."""
POLICIES: Final = ("home-cost", "least-tokens", "round-robin", "session")
KV_TOKENS: Final = 512_000
RATE: Final = 8000.0
"""Prompt tokens a second."""

Watch = Callable[[str, int], None]


class Member(Struct, frozen=True):
    """A target of the fleet."""

    name: str
    weight: float = 1.0
    kv_tokens: int = KV_TOKENS


class Fleet(Struct, frozen=True):
    """What the calls run on."""

    members: tuple[Member, ...]
    gateways: int = 4
    share_seconds: float = 0.2
    """Between two exchanges; 0: gateways know nothing of each other."""
    rate: float = RATE
    """Prompt tokens a second that a target of weight 1 reads."""
    skip: float = 0.0
    """The part of the time in which caches fill, and calls are not measured; 0: all count, from a cold start."""

    def shape(self, member: Member) -> Shape:
        """The engine of a target: twice the weight does all in half the time."""
        rate, weight = self.rate * member.weight, member.weight
        plain = Shape()
        return Shape(
            member.kv_tokens, rate, plain.step / weight, plain.write / weight, max(1, int(rate * CHUNK_SECONDS))
        )


class Outcome(Struct, frozen=True):
    """How a policy did, over the measured calls."""

    policy: str
    calls: int
    ttft_mean: float
    """Seconds from a call's arrival to its first token, as all that begin with `ttft`."""
    ttft_p50: float
    ttft_p95: float
    ttft_p99: float
    hit_ratio: float
    """The part of all prompt tokens that was cached where it went."""
    imbalance: float
    """Calls at the busiest target over the mean of all, weighted, as arriving calls find it: 1 is even."""
    token_imbalance: float
    """Prompt tokens sent to the target that got most over the mean of all, weighted."""
    queued: int
    """Calls that waited in a gateway's queue."""
    refused: int
    """Calls that a gateway's queue refused."""
    unfinished: int
    """Calls that had no first token a minute after the end; they count with the time they had."""
    reasons: dict[str, int]
    """Decisions by reason."""


class Run(Struct, frozen=True):
    """An outcome with what it was made from."""

    outcome: Outcome
    ttft: list[tuple[float, float]]
    """Of each measured call when it came, and the seconds to its first token."""
    cached: list[tuple[float, int, int]]
    """Of each measured call when it came, its prompt tokens, and those of them that were cached."""


def members(number: int, listed: Sequence[Member] = (), kv_tokens: int | None = None) -> tuple[Member, ...]:
    """So many targets: those listed first, then as many more like them as it takes, named `NAME-2` and so on."""
    listed = listed or (Member("replica"),)
    fleet: list[Member] = []
    for turn in numbers(1):
        for one in listed:
            if len(fleet) == number:
                return tuple(fleet)
            name = one.name if turn == 1 and len(listed) > 1 else f"{one.name}-{turn}"
            fleet.append(Member(name, one.weight, kv_tokens or one.kv_tokens))
    raise AssertionError("numbers end")


def unknown(policies: Sequence[str]) -> list[str]:
    """Those of the names that are no policy."""
    known = {*registry.installed(), ORACLE, CACHE_AWARE}
    return [name for name in policies if name not in known]


def simulate(
    calls: Sequence[Call], end: float, fleet: Fleet, policy: str, seed: int = 0, watch: Watch | None = None
) -> Run:
    """One policy's run over `calls`, of which those after `end` seconds are dropped. `KeyError`: no such policy."""
    return virtual_time.run(_simulate(calls, end, fleet, policy, seed, watch))


async def _simulate(
    calls: Sequence[Call], end: float, fleet: Fleet, policy: str, seed: int, watch: Watch | None
) -> Run:
    clock = asyncio.get_running_loop().time
    engines = [TimedEngine(fleet.shape(member)) for member in fleet.members]
    targets = [
        TargetSpec(name=name, backend="vllm", url=f"http://{name}", weight=each.weight, kv_tokens=each.kv_tokens)
        for each in fleet.members
        for name in [each.name]
    ]

    def policies(name: str) -> Factory:
        if name == ORACLE:
            return partial(Oracle, [engine.cache for engine in engines])
        return CacheAware if name == CACHE_AWARE else registry.load(name)

    boards = Boards(clock)
    gateways = [
        SimulatedGateway(f"gateway-{number}", targets, policy, policies, boards, clock, seed + number)
        for number in range(1 if policy == CACHE_AWARE else fleet.gateways)
    ]
    told = None if watch is None else partial(watch, policy)
    weights = [member.weight for member in fleet.members]
    replay = Replay(calls, engines, weights, gateways, fleet.share_seconds, end, fleet.skip * end, told)
    await replay.run()
    return Run(_outcome(policy, replay, weights), replay.ttft, replay.cached)


def _outcome(policy: str, replay: Replay, weights: Sequence[float]) -> Outcome:
    ttft = sorted(seconds for _, seconds in replay.ttft)
    prompts = sum(tokens for _, tokens, _ in replay.cached)
    sent = [tokens / weight for tokens, weight in zip(replay.tokens, weights, strict=True)]
    return Outcome(
        policy=policy,
        calls=len(ttft),
        ttft_mean=sum(ttft) / len(ttft) if ttft else 0.0,
        ttft_p50=quantile(ttft, 0.50),
        ttft_p95=quantile(ttft, 0.95),
        ttft_p99=quantile(ttft, 0.99),
        hit_ratio=sum(cached for _, _, cached in replay.cached) / prompts if prompts else 0.0,
        imbalance=replay.busiest / replay.busy if replay.busy else 1.0,
        token_imbalance=max(sent) * sum(weights) / sum(replay.tokens) if any(replay.tokens) else 1.0,
        queued=replay.queued,
        refused=replay.refused,
        unfinished=replay.unfinished,
        reasons=dict(replay.reasons),
    )


def quantile(ordered: Sequence[float], part: float) -> float:
    """The smallest of the values, in rising order, that so large a part of them does not exceed; of none 0."""
    return ordered[max(0, -int(-part * len(ordered) // 1) - 1)] if ordered else 0.0
