"""Many calls during many reloads of the routing table, each of which names the one target that may answer it."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

from faults.volley import Exchange, post
from harness.gateway_process import GatewayProcess
from harness.upstream import Upstream
from integration.client import samples, total
from integration.engine import Engine, table, talk

ROUTES = 4
BROKEN = "routes: {r0: [this is no route"


class Storm:
    """A table whose routes each have a target of their own; a second one comes and goes with the reloads."""

    def __init__(self, upstream: Upstream, reloads: int = 20) -> None:
        self.reloads = reloads
        self.engines = {
            name: Engine(upstream, name) for n in range(ROUTES) for name in (f"storm-{n}", f"storm-{n}-extra")
        }

    def text(self, turn: int) -> str:
        """The table of a turn: every other one has more targets, and its queue tells it from all others."""

        def route(n: int) -> dict[str, Any]:
            names = [f"storm-{n}", f"storm-{n}-extra"] if turn % 2 else [f"storm-{n}"]
            return {"targets": [self.engines[name].spec() for name in names], "queue": {"calls": 100 + turn}}

        return table({f"r{n}": route(n) for n in range(ROUTES)})

    def reload(self, gateway: GatewayProcess, turn: int) -> None:
        """Written in place, or renamed into it; turn 7 is broken, and every fifth one is told by a signal, too."""
        text = BROKEN if turn == 7 else self.text(turn)
        if turn % 3 == 0:
            fresh = gateway.routing.with_name("fresh.yaml")
            fresh.write_text(text)
            fresh.replace(gateway.routing)
        else:
            gateway.routing.write_text(text)
        if turn % 5 == 0:
            gateway.process.send_signal(signal.SIGHUP)


async def storm(gateway: GatewayProcess, weather: Storm, key: str, calls: int, at_once: int = 16) -> list[Exchange]:
    """That many calls, or more if the reloads take longer: the first of them before, the last after all reloads."""
    done: list[Exchange] = []
    over = asyncio.Event()

    async def caller(number: int) -> None:
        while not over.is_set() or len(done) < calls:
            n = len(done) + number
            body = json.dumps(talk(f"r{n % ROUTES}", f"Call {n}", stream=n % 3 == 0)).encode()
            call = Exchange(post(body, key), str(n % ROUTES))
            await call.join(gateway.port)
            call.send()
            await asyncio.wait([call.end], timeout=30)  # one that hangs is lost, and seen to be
            call.leave()
            done.append(call)

    callers = [asyncio.create_task(caller(number)) for number in range(at_once)]
    for turn in range(1, weather.reloads + 1):
        before = await outcomes(gateway)
        weather.reload(gateway, turn)
        async with asyncio.timeout(20):
            while await outcomes(gateway) <= before:
                await asyncio.sleep(0.02)
    over.set()
    await asyncio.gather(*callers)
    return done


async def outcomes(gateway: GatewayProcess) -> float:
    """Tables that were applied or refused so far."""
    return total(await asyncio.to_thread(samples, gateway), "config_reloads_total")
