"""What was admitted against what the limits allow, and what the budgets were charged against what the ledger says."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from faults.volley import post, volley
from harness.redis_server import RedisServer
from soak.calls import PROMPT, saying
from soak.chaos import Chaos
from soak.keys import NARROW, RPM, SPENT, TPM
from soak.place import TOKENS, Place
from soak.table import CAPPED
from soak.tally import Tally

CALL_TOKENS = len(PROMPT.split()) + TOKENS
AT_ONCE = 16
"""Calls of one limited key at once, at most: clients. Each may take a little more than was reserved for it."""
OUTAGE_SECONDS = 3.0
"""So long after an outage of Redis what had to wait for it may not be written yet."""
FLUSH_SECONDS = 0.5
"""The ledger is written so often that a killed worker may take this much with it."""


def admitted(place: Place, tally: Tally, calm: Counter[str], rough: Counter[str]) -> dict[str, tuple[float, float]]:
    """By limit: the most that may have been admitted, and what was."""
    workers = place.fleet.workers * (len(place.fleet.gateways) + 1)
    found: dict[str, tuple[float, float]] = {
        f"concurrency {NARROW}, at the target": (NARROW, calm["narrow"]),
        f"concurrency {NARROW}, around Redis outages": (2 * NARROW + workers, rough["narrow"]),
        f"max_inflight {CAPPED}, at the target": (CAPPED, calm["capped"]),
        f"max_inflight {CAPPED}, around Redis outages": (2 * CAPPED + workers, rough["capped"]),
    }
    slack = AT_ONCE * CALL_TOKENS
    for label, limit in (("rpm", RPM), ("tpm", TPM)):
        calls = tally.spent[label]
        seconds = max(call.sent for call in calls) - min(call.sent for call in calls) if calls else 0
        seen = len(calls) if label == "rpm" else sum(call.tokens for call in calls)
        bound = limit * (1 + seconds / 60) + (1 if label == "rpm" else slack)
        found[f"{label} {limit}"] = (round(bound), seen)
    found[f"budget of {SPENT} tokens"] = (SPENT + slack, sum(call.tokens for call in tally.spent["spent"]))
    return found


def charged(redis: RedisServer, id: str) -> int:
    """Tokens that the key's budget was charged."""
    return int(redis.ask("HGET", f"{{tl}}:budget:key:{id}:month:tokens", "s") or 0)


def written(redis: RedisServer) -> Counter[str]:
    """Tokens by key id, as the ledger's sums tell."""
    found: Counter[str] = Counter()
    for day in redis.ask("ZRANGE", "{tl}:usage", 0, -1):
        for field, count in redis.ask("HGETALL", f"{{tl}}:usage:{day}").items():
            what, id, _ = field.split("|", 2)
            if what in ("input", "output"):
                found[id] += int(count)
    return found


def lost(tally: Tally, chaos: Chaos) -> int:
    """Tokens at most that killed workers had charged and not written yet, or written and not charged."""
    calls = 0
    for at, port in chaos.kills:
        outages = [each.at for each in chaos.happened if each.name.startswith("redis") and each.at <= at]
        since = at - FLUSH_SECONDS
        if outages and chaos.spoilt("redis", at - OUTAGE_SECONDS, at):
            since = min(since, outages[-1])
        calls += sum(ended_at == port and since <= ended <= at + 0.1 for ended, ended_at in tally.budgeted)
    return calls * CALL_TOKENS


async def usable(place: Place) -> int:
    """How many calls of the narrow key can be under way at once; 0 if a gateway cannot be reached."""
    body: dict[str, Any] = {**saying("narrow", 8, chats=True, stream=True), "x_fault": "stall=4"}
    raw = post(json.dumps(body).encode(), place.keys.secret("narrow"))
    ports = [gateway.port for gateway in place.fleet.gateways]
    try:
        calls = await volley(ports, [raw] * (NARROW + 4), hold=True, seconds=20)
    except OSError:
        return 0  # a gateway is gone, which another row tells
    found = sum(call.status == 200 for call in calls)
    for call in calls:
        call.leave()
    return found
