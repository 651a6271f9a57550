"""What it costs to pick a target, with all that goes with it: filter, score, pick, charge, remember; to read keys."""

from __future__ import annotations

import time
from random import Random

import msgspec

from backends.api import Call
from backends.body import Body
from backends.capabilities import Capabilities
from backends.vllm import VLLM
from gateway.config import TargetSpec, Timeouts
from gateway.routing.attempt import Attempt
from gateway.routing.features import read
from gateway.routing.policies.api import Prompt
from gateway.routing.tier import Tier
from gateway.targets.health import Breaker
from gateway.targets.target import Target

ENGINE = Capabilities.of(VLLM())
CALLS = 5_000
IN_FLIGHT = 20


def _tier(count: int) -> Tier:
    def target(name: str) -> Target:
        spec = TargetSpec(name=name, backend="vllm", url=f"http://{name}")
        return Target(spec, f"http://{name}", ENGINE, Timeouts(), Breaker(name, time.monotonic), time.monotonic)

    return Tier([target(f"target-{number}") for number in range(count)], "home-cost")


def _prompts(chance: Random) -> list[Prompt]:
    """Half of them follow-ups, in groups of which a few are large: what makes the rule look longest."""
    groups = [chance.getrandbits(64) | 1 for _ in range(100)]
    return [
        Prompt(
            chance.randrange(1500, 9000),
            chance.getrandbits(64) | 1,
            groups[int(100 * chance.random() ** 3)],
            1200,
            chance.random() < 0.5,
        )
        for _ in range(CALLS)
    ]


def choice_us(targets: int) -> float:
    """CPU microseconds for each choice among so many targets, from the usable ones to the released load."""
    tier, prompts = _tier(targets), _prompts(Random(1))
    flying: list[Attempt] = []
    started = time.process_time()
    for prompt in prompts:
        now = time.monotonic()
        attempt = Attempt(tier, tier.pick(prompt, tier.usable(prompt, now), now), prompt)
        attempt.begin()
        flying.append(attempt)
        if len(flying) > IN_FLIGHT:
            flying.pop(0).end()
    return (time.process_time() - started) / CALLS * 1e6


def keys_us() -> float:
    """CPU microseconds to read the keys of a chat of five messages, with a system prompt of 4 KiB."""
    roles = ("system", "user", "assistant", "user", "assistant", "user")
    messages = [{"role": role, "content": "words " * (700 if role == "system" else 60)} for role in roles]
    call = Call("c", "chat/completions", "m", Body(msgspec.json.encode({"model": "m", "messages": messages})))
    started = time.process_time()
    for _ in range(CALLS):
        read(call, {}, model="m", tenant="t", tokens=1500)
    return (time.process_time() - started) / CALLS * 1e6
