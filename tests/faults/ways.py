"""The ways in which a call can end: what the target does, and when the client leaves."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from faults.fleet import ANSWER, serving
from faults.volley import OUTPUT, PROMPT, Exchange
from harness.upstream import DONE, Act, Script, Slowly, Upstream, chunk, event, head, stream, usage_event, whole

HASTY = {"connect": "10s", "first_output": "400ms", "whole": "400ms", "idle": "400ms"}
GOOD = (*[event("x") for _ in range(8)], event(finish="stop"), usage_event(PROMPT, OUTPUT), DONE)
ERROR = {"error": {"message": "no", "type": "x", "param": None, "code": None}}

TARGETS: dict[str, tuple[Script, Script]] = {
    "good": (ANSWER, stream(*GOOD)),
    "slow": (ANSWER, [*stream(end=False), Slowly(b"".join(map(chunk, GOOD)) + b"0\r\n\r\n", 60)]),
    "uncounted": (whole({"choices": []}), stream(event("x"), event(finish="stop"), DONE)),
    "reset": ([Act.RESET], [Act.RESET]),
    "reset-later": ([head(content_length=100), b"{", Act.RESET], stream(event("x"), Act.RESET)),
    "cut": ([head(content_length=100), b"{", Act.CUT], stream(event("x"), Act.CUT)),
    "silent": ([Act.STALL], [Act.STALL]),
    "stalls": ([head(content_length=100), b"{", Act.STALL], stream(event("x"), Act.STALL)),
    "error": (whole(ERROR, 500), whole(ERROR, 500)),
    "busy": (whole(ERROR, 503, retry_after=1), whole(ERROR, 429, retry_after=1)),
    "refuses": (whole(ERROR, 400), whole(ERROR, 400)),
    "lies": (whole(b"<html>", content_type="text/html"), stream(b"data: {\n\n", DONE)),
}
"""What a target does to a call for a whole answer, and to one for a stream."""
CLIENTS = ("stays", "stays", "stays", "half", "at once", "soon", "later", "on the head", "on data", "at the end")
"""When a client leaves; "half": before its request is whole."""


def target_names() -> list[str]:
    """One for each thing to do and kind of call."""
    return [f"{name}-{kind}" for name in TARGETS for kind in ("w", "s")]


def prepare(upstream: Upstream) -> None:
    """Have every target do its thing."""
    for name, (plain, streamed) in TARGETS.items():
        serving(upstream, f"{name}-w").script = plain
        serving(upstream, f"{name}-s").script = streamed


async def live(call: Exchange, port: int, way: str, chance: random.Random) -> None:
    """Make this call and end it this way."""
    if way == "half":
        call.raw = call.raw[: chance.randrange(len(call.raw))]
    await call.join(port)
    call.send()
    match way:
        case "half" | "at once":
            await asyncio.sleep(0)
        case "soon":
            await asyncio.sleep(chance.uniform(0, 0.01))
        case "later":
            await asyncio.sleep(chance.uniform(0, 0.1))
        case "on the head":
            await call.head
        case "on data":
            await call.head
            await _some(call, chance.randrange(1, 2000))
        case _:
            async with asyncio.timeout(20):
                await call.end
    call.leave(reset=chance.random() < 0.3)


async def _some(call: Exchange, size: int) -> None:
    """Until so many bytes have come, or all."""
    while len(call.seen) < size and not call.end.done():
        await asyncio.sleep(0.001)


def any_of(chance: random.Random, secrets: dict[str, str]) -> tuple[str, str, str, dict[str, Any]]:
    """A client's way, a target's name, a secret, and whether the call streams."""
    streams = chance.random() < 0.6
    name = f"{chance.choice(list(TARGETS))}-{'s' if streams else 'w'}"
    return chance.choice(CLIENTS), name, secrets[chance.choice(list(secrets))], {"stream": streams}
