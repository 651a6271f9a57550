"""Policies compared: each runs over the same calls and an equal fleet, with empty caches and nothing learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count as numbers
from typing import Final

from msgspec import Struct

from gateway.routes.policies import registry
from gateway.routes.policies.api import Policy
from gateway.simulate.calls import Call
from gateway.simulate.oracle import Oracle, Truth
from gateway.simulate.replay import Replay
from gateway.simulate.replica import Replica
from gateway.simulate.side import Side

ORACLE: Final = "oracle"
"""The policy that only a simulation can have."""
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


class Outcome(Struct, frozen=True):
    """How a policy did, over the calls of the last three quarters of the time."""

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


class Run(Struct, frozen=True):
    """An outcome with what it was made from."""

    outcome: Outcome
    ttft: list[float]
    """Seconds, of each measured call, in rising order."""


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
    known = {*registry.installed(), ORACLE}
    return [name for name in policies if name not in known]


def simulate(
    calls: Sequence[Call], end: float, fleet: Fleet, policy: str, seed: int = 0, watch: Watch | None = None
) -> Run:
    """One policy's run over `calls`, of which those after `end` seconds are dropped. `KeyError`: no such policy."""
    replicas = [Replica(each.name, each.weight, fleet.rate, each.kv_tokens) for each in fleet.members]
    truth = Truth(replicas)
    sides = [
        Side(f"gateway-{number}", _policy(policy, truth, replicas, seed + number), replicas)
        for number in range(fleet.gateways)
    ]
    replay = Replay(calls, replicas, sides, fleet.share_seconds, end, truth)
    replay.run(None if watch is None else lambda arrived: watch(policy, arrived))
    return Run(_outcome(policy, replay, replicas), sorted(replay.ttft))


def _policy(name: str, truth: Truth, replicas: Sequence[Replica], seed: int) -> Policy:
    if name == ORACLE:
        return Oracle(truth, seed)
    return registry.load(name)([replica.name for replica in replicas], seed)


def _outcome(policy: str, replay: Replay, replicas: Sequence[Replica]) -> Outcome:
    ttft = sorted(replay.ttft)
    weight = sum(replica.weight for replica in replicas)
    tokens = sum(replica.tokens for replica in replicas)
    return Outcome(
        policy=policy,
        calls=len(ttft),
        ttft_mean=sum(ttft) / len(ttft) if ttft else 0.0,
        ttft_p50=quantile(ttft, 0.50),
        ttft_p95=quantile(ttft, 0.95),
        ttft_p99=quantile(ttft, 0.99),
        hit_ratio=replay.cached_tokens / replay.prompt_tokens if replay.prompt_tokens else 0.0,
        imbalance=replay.busiest / replay.busy if replay.busy else 1.0,
        token_imbalance=max(each.tokens / each.weight for each in replicas) * weight / tokens if tokens else 1.0,
    )


def quantile(ordered: Sequence[float], part: float) -> float:
    """The smallest of the values, in rising order, that so large a part of them does not exceed; of none 0."""
    return ordered[max(0, -int(-part * len(ordered) // 1) - 1)] if ordered else 0.0
