"""A policy as a gateway uses it: replicas it chooses among, calls that come and end, several gateways that tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import inf

from gateway.routing.policies.api import Gossips, Learns, Policy, Prompt, Remembers, Score
from gateway.targets.load import Load, LoadReport, Share

Make = Callable[[Sequence[str], int], Policy]


def key(*parts: object) -> int:
    """A hash of 64 bits, never 0, as a prompt has them."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little") or 1


@dataclass
class Replica:
    """A candidate that is what a test says."""

    name: str
    weight: float = 1.0
    kv_tokens: int = 1_000_000
    since: float = -inf
    load: Load = field(default_factory=Load)


@dataclass
class Placed:
    """Where a call went."""

    replica: Replica
    score: Score
    share: Share
    prompt: Prompt

    @property
    def charge(self) -> int:
        """Tokens that the target has to read, as far as the policy expects."""
        return max(16, self.prompt.tokens - self.score.cached)


class Gateway:
    """One gateway's part: its policy, its view of the load, the clock that the test moves."""

    def __init__(self, make: Make, replicas: Sequence[Replica], seed: int = 0) -> None:
        self.replicas = list(replicas)
        self.policy = make([each.name for each in replicas], seed)

    def scores(self, prompt: Prompt, now: float = 0.0, usable: Sequence[int] | None = None) -> list[Score]:
        return self.policy.score(prompt, self.replicas, range(len(self.replicas)) if usable is None else usable, now)

    def place(self, prompt: Prompt, now: float = 0.0, usable: Sequence[int] | None = None) -> Placed:
        """Choose, charge, remember: the three steps of every call."""
        score = self.policy.pick(self.scores(prompt, now, usable))
        replica = self.replicas[score.index]
        placed = Placed(replica, score, Share(replica.load, prompt.tokens - score.cached), prompt)
        if isinstance(self.policy, Remembers):
            self.policy.placed(prompt, score, self.replicas)
        return placed

    def serve(self, prompt: Prompt, now: float = 0.0, usable: Sequence[int] | None = None) -> Placed:
        """A call that has ended when this returns."""
        placed = self.place(prompt, now, usable)
        placed.share.end()
        return placed

    def learn(self, placed: Placed, prompt_tokens: int, cached_tokens: int) -> None:
        """What the usage of the answer tells."""
        placed.share.read(min(prompt_tokens - max(0, cached_tokens), placed.replica.kv_tokens))
        if isinstance(self.policy, Learns):
            self.policy.told(placed.prompt, placed.score, prompt_tokens, cached_tokens)


def fleet(make: Make, count: int, names: Sequence[str] | int, **values: float) -> list[Gateway]:
    """Gateways over the same targets, each with its own view."""
    called = [f"t{n}" for n in range(names)] if isinstance(names, int) else names
    return [Gateway(make, [Replica(name, **values) for name in called], seed) for seed in range(count)]  # type: ignore[arg-type]


def exchange(gateways: Sequence[Gateway], now: float) -> None:
    """Each tells the others all that it has to tell, and that at once."""
    reports: list[list[LoadReport]] = [[each.load.report() for each in gateway.replicas] for gateway in gateways]
    notes = [gateway.policy.notes() if isinstance(gateway.policy, Gossips) else [] for gateway in gateways]
    for mine, gateway in enumerate(gateways):
        others = [n for n in range(len(gateways)) if n != mine]
        for index, replica in enumerate(gateway.replicas):
            replica.load.apply({f"g{n}": (reports[n][index], 0.0) for n in others}, now)
        if isinstance(gateway.policy, Gossips):
            for n in others:
                gateway.policy.heard(notes[n], gateway.replicas)
