"""Clients that leave, and what a gateway must then be found to have given back and to have counted."""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Final, get_args

from harness.gateway_process import GatewayProcess
from harness.redis_server import RedisServer
from harness.upstream import Received
from integration.client import UNEXPIRED, Wire, ask, chat, eventually, samples, total

from gateway.core.types import Allowance, Budget, Limit
from gateway.metering.aborts import Phase

TRIES: Final = 5
"""Of each case."""
SOON: Final = 5.0
"""Seconds between a client's leaving and the end of its call at the target. By the target's silence it would end
after a minute at the earliest; that it takes milliseconds is for the benchmarks to show."""
PHASES: Final[tuple[Phase, ...]] = get_args(Phase)
LIMIT: Final = Limit(concurrency=50, tpm=10**9, budget=Budget(month=Allowance(tokens=10**12)))
"""Of keys here: every call of theirs holds a slot and reserves tokens of a budget."""


def shut(wire: Wire) -> None:
    """Leave as a client does that ends its sending side first."""
    wire.socket.shutdown(socket.SHUT_WR)


WAYS: Final[dict[str, Callable[[Wire], None]]] = {"close": Wire.leave, "reset": Wire.reset, "shut": shut}


def closed_after(received: Received, left: float) -> float:
    """Seconds from `left`, by the monotonic clock, until the target saw its connection closed."""
    assert received.closed.wait(30), "the target's connection was never closed"
    assert received.closed_at is not None
    return received.closed_at - left


def leave(way: Callable[[Wire], None], wire: Wire, received: Received) -> float:
    """Have the client leave; seconds until its target knew."""
    left = time.monotonic()
    way(wire)
    return closed_after(received, left)


def in_time(seconds: Sequence[float]) -> None:
    """Assert that clients' leaving was told soon."""
    assert statistics.median(seconds) < SOON, sorted(seconds)


def passed_through(gateway: GatewayProcess, key: str) -> None:
    """Return when a worker alone has taken in what targets have sent so far: an answer that was asked for later came.

    Targets share a thread, so that this answer leaves behind what was sent before.
    """
    assert ask(gateway, chat("good"), key).status == 200


def aborts(gateway: GatewayProcess, route: str) -> dict[str, float]:
    """Those of this route so far by phase, and how many were timed, of all routes."""
    found = samples(gateway)
    counts: dict[str, float] = {phase: total(found, "aborts_total", route=route, phase=phase) for phase in PHASES}
    return counts | {"timed": total(found, "abort_seconds_count")}


class Counted:
    """What is counted of clients that leave from now on."""

    def __init__(self, gateway: GatewayProcess, route: str) -> None:
        self._gateway, self._route = gateway, route
        self._before, self._unknown = aborts(gateway, route), aborts(gateway, "other")

    def __call__(self, **phases: int) -> None:
        """Assert that it is this, each call once, and that calls timed are as many."""
        expected: dict[str, float] = {phase: phases.get(phase, 0) for phase in PHASES}
        expected["timed"] = sum(phases.values())

        def so_far() -> dict[str, float]:
            now = aborts(self._gateway, self._route)
            return {name: now[name] - self._before[name] for name in now}

        eventually(lambda: so_far()["timed"] >= expected["timed"] or None, "aborts are counted")
        assert so_far() == expected

    def one_of(self, *phases: str) -> None:
        """Assert that it is one call, in one of these phases; it may have ended before its route was looked at."""

        def so_far() -> dict[str, float]:
            now, unknown = aborts(self._gateway, self._route), aborts(self._gateway, "other")
            return {
                name: now[name] - self._before[name] + (unknown[name] - self._unknown[name]) * (name != "timed")
                for name in now
            }

        eventually(lambda: so_far()["timed"] >= 1 or None, "an abort is counted")
        found = so_far()
        if found["timed"] != 1 or sum(found[phase] for phase in phases) != 1:
            raise AssertionError(f"one call, in {' or '.join(phases)}: {found}")


def held(gateway: GatewayProcess, redis: RedisServer) -> dict[str, float]:
    """What calls hold now, here and in the store."""
    found = samples(gateway)
    return {
        "in flight": total(found, "in_flight"),
        "queue": total(found, "queue_calls"),
        "on hold": total(found, "held_calls"),
        "slots": sum(redis.ask("ZCARD", name) for name in redis.keys("{tl}:lease:*")),
        "reservations": sum(redis.ask("ZCARD", name) for name in redis.keys("{tl}:budget:*:open")),
    }


def nothing_left(gateway: GatewayProcess, redis: RedisServer) -> None:
    """Assert that nothing is held, well before a lease could have run out."""
    eventually(lambda: not any(held(gateway, redis).values()) or None, "nothing is held", UNEXPIRED)
