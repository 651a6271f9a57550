"""Engines are stopped under load while their servers answer on: their calls are taken away from them.

Twenty at once, each on a route with another target; half of the routes resume streams.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from integration.client import Reply, ask, chat, eventually, get, samples, total
from integration.engine import table
from integration.hanging import ENGINES, WORDS, Farm, farm, routes, spoken


@pytest.fixture
def engines() -> Iterator[Farm]:
    with farm() as made:
        yield made


@pytest.fixture
def gateway(engines: Farm) -> Iterator[GatewayProcess]:
    with gateway_process(table(routes(engines))) as started:
        yield started


def test_calls_are_taken_away_from_engines_that_hang(gateway: GatewayProcess, engines: Farm) -> None:
    key = gateway.issue().secret
    up = lambda: set(get(gateway, "/ready").json()["targets"].values()) == {"up"} or None  # noqa: E731
    eventually(up, "all targets are up")

    def one(number: int, **fields: Any) -> tuple[int, Reply]:
        asked = chat(f"r{number}", ignore_eos=True, **fields)
        return number, ask(gateway, asked, key)

    numbers = list(range(ENGINES)) * 2  # round robin: one of two is at the engine that stops
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(6 * ENGINES))
        begun = [pool.submit(one, number, stream=True, max_tokens=WORDS) for number in numbers]
        eventually(lambda: _running(gateway) == len(begun) or None, "all streams have begun")
        seen = set[str]()
        eventually(lambda: len(_looked_at(gateway, seen)) == 2 * ENGINES or None, "looks have seen the engines work")
        engines.stop_engines()
        stopped = time.monotonic()
        later = [pool.submit(one, number, stream=True, max_tokens=5) for number in numbers]
        whole = [pool.submit(one, number, max_tokens=5) for number in numbers]
        eventually(lambda: total(samples(gateway), "target_hung") == ENGINES or None, "all are found to hang", 60)
        print(f"all are out {time.monotonic() - stopped:.1f} s after they stopped")
        first = [future.result() for future in later + whole]
        streams = [future.result() for future in begun]

    assert [reply.status for _, reply in first] == [200] * len(first), "none is lost before its first token"
    assert all(len(spoken(reply)) == 5 for _, reply in first[: len(later)])
    ended = {True: 0, False: 0}
    for number, reply in streams:
        words, whole_one = spoken(reply), reply.data[-1] == b"[DONE]"
        assert words == [f"w{count}" for count in range(1, len(words) + 1)]
        assert whole_one == (len(words) == WORDS), "none ends silently"
        if not whole_one:
            assert number % 2 == 0, "this route resumes"
            assert b'"upstream_hung"' in reply.data[-1]
        ended[whole_one] += 1
    assert ended == {True: 3 * ENGINES // 2, False: ENGINES // 2}

    engines.stop_engines(False)
    eventually(lambda: total(samples(gateway), "target_hung") == 0 or None, "they make progress again", 60)


def _running(gateway: GatewayProcess) -> int:
    """Calls with a first token."""
    found = samples(gateway)
    return round(total(found, "target_running") - total(found, "target_waiting"))


def _looked_at(gateway: GatewayProcess, seen: set[str]) -> set[str]:
    """Engines that have told that they work, now or when they were `seen`."""
    for (name, labels), value in samples(gateway).items():
        if name == "trunkline_engine_running" and value > 0:
            seen.add(dict(labels)["target"])
    return seen
