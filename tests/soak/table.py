"""The routing table of the soak: a route for each thing that may go wrong, and some where nothing may."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

HASTY = {"connect": "1s", "first_output": "1500ms", "whole": "1500ms", "idle": "1s"}
CALM = {"connect": "20s", "first_output": "20s", "whole": "20s", "idle": "20s"}
PRICE = {"input": 1, "output": 2}
WIDE = 6
"""Calls at once at each target of the route `plain`."""
CAPPED = 3
"""Calls at once at the target of the route `capped`."""
READER = 2.0
"""Seconds that a client may leave unread what was sent to it."""
BODY = 1024**2
"""Bytes of the largest body."""
SPOILED = ("vllm-a", "vllm-b", "tgi-a", "openai-a", "openai-b")
"""The fake backends that misbehave."""
STEADY = ("narrow", "rpm", "tpm", "spent", "capped")
"""The routes to the target that does not."""
BROKEN = "routes: {chat: [this is no route"


def table(urls: Mapping[str, str], turn: int = 0) -> str:
    """The table of a turn: they differ in a target, and in how long a queue may be. `urls` are those of targets."""

    def at(route: str, *names: str, **fields: Any) -> list[dict[str, Any]]:
        return [
            {"name": f"{route}-{name}", "backend": name.split("-")[0], "url": urls[name], **fields} for name in names
        ]

    def hasty(route: str, *names: str, **fields: Any) -> dict[str, Any]:
        return {"targets": at(route, *names), "timeouts": HASTY, "price": PRICE, **fields}

    plain = ("openai-a", "vllm-a", "vllm-b") if turn % 2 else ("openai-a", "vllm-a")
    routes: dict[str, Any] = {
        "chat": hasty("chat", "vllm-a", "vllm-b", fallback=at("chat", "tgi-a"), resume="text", retry={"attempts": 3}),
        "story": hasty("story", "tgi-a", "vllm-b", resume="text", policy="least-tokens"),
        "plain": {
            **hasty("plain", *plain, policy="round-robin", limits={"concurrency": 200, "tpm": "50M"}),
            "targets": at("plain", *plain, max_inflight=WIDE),
            "queue": {"calls": 32 + turn, "wait": "700ms"},
        },
        "held": hasty("held", "openai-b", hold="3s"),
        "embed": hasty("embed", "vllm-a", "openai-a"),
        "long": {"targets": at("long", "openai-long"), "timeouts": CALM},
    }
    for name in STEADY:
        target = {"name": f"steady-{name}", "backend": "openai", "url": urls["steady"]}
        routes[name] = {"targets": [target], "timeouts": CALM, "price": PRICE}
    routes["capped"]["targets"][0]["max_inflight"] = CAPPED
    routes["capped"]["queue"] = {"calls": 64, "wait": "2s"}
    bodies = {"request": BODY, "reader": f"{READER:g}s", "timeout": "3s"}
    return json.dumps({"routes": routes, "bodies": bodies})
