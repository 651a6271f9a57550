"""Fault 38: engines stop under load, one after the other, while the servers before them answer on."""

from __future__ import annotations

import json
import random
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import pytest
from faults.report import Report
from harness.gateway_process import GatewayProcess, gateway_process
from integration.client import Reply, ask, chat, eventually, samples, total
from integration.engine import table
from integration.hanging import ENGINES, Farm, farm, routes, spoken

SECONDS = 10.0
"""In which an engine that stops must be out."""
WORDS = 60
"""Of each answer: 1.2 s of work."""


class Load:
    """Callers of each route, a stream after the other and a whole answer after the other, until it is told to end."""

    def __init__(self, gateway: GatewayProcess, key: str) -> None:
        self._gateway, self._key, self._over = gateway, key, threading.Event()
        self.streams: list[Reply] = []
        self.wholes: list[Reply] = []
        self._pool = ThreadPoolExecutor(2 * ENGINES)
        self._callers = [
            self._pool.submit(self._call, f"r{number}", stream=stream)
            for number in range(ENGINES)
            for stream in (True, False)
        ]

    def _call(self, route: str, *, stream: bool) -> None:
        replies = self.streams if stream else self.wholes
        while not self._over.is_set():
            asked = chat(route, max_tokens=WORDS, ignore_eos=True, **({"stream": True} if stream else {}))
            replies.append(ask(self._gateway, asked, self._key))

    def end(self) -> None:
        self._over.set()
        for caller in self._callers:
            caller.result()
        self._pool.shutdown()


def order(engines: Farm, name: str, engine: str) -> Any:
    """An order to the server of this name, as an operator sends it."""
    body = json.dumps({"engine": engine}).encode()
    with urllib.request.urlopen(f"http://127.0.0.1:{engines.ports[name]}/fake", body, timeout=30) as answer:
        return json.load(answer)


def fate(reply: Reply) -> str:
    """What has become of a stream."""
    words = spoken(reply)
    if reply.status != 200 or not words:
        return "lost before its first token"
    assert words == [f"w{count}" for count in range(1, len(words) + 1)]
    if reply.data[-1] == b"[DONE]":
        return "whole" if len(words) == WORDS else "silent end"
    return "told" if b'"upstream_hung"' in reply.data[-1] else "silent end"


@pytest.mark.timeout(900)
def test_38_engines_stand_still(report: Report) -> None:
    chance, out = random.Random(38), dict[str, float]()
    names = [f"a{number}" for number in range(ENGINES)]
    with farm() as engines, gateway_process(table(routes(engines))) as gateway:
        load = Load(gateway, gateway.issue().secret)
        eventually(lambda: len(load.wholes) >= 3 * ENGINES or None, "all routes are served", 120)
        stopped = dict[str, float]()
        waiting = [(time.monotonic() + chance.uniform(0, 20), name) for name in names]

        def look() -> bool | None:
            now = time.monotonic()
            for due, name in waiting:
                if due <= now and name not in stopped:
                    assert order(engines, name, "stop")["engine"]["steps"] > 0
                    stopped[name] = now
            found = samples(gateway)
            for name in stopped:
                if name not in out and total(found, "target_hung", target=name):
                    out[name] = time.monotonic() - stopped[name]
            return len(out) == ENGINES or None

        eventually(look, "all are out", 120)
        for name in names:
            order(engines, name, "go")
        eventually(lambda: total(samples(gateway), "target_hung") == 0 or None, "all make progress again", 60)
        served = {name: order(engines, name, "go")["calls"] for name in names}

        def back() -> bool | None:
            return all(order(engines, name, "go")["calls"] > served[name] + 1 for name in names) or None

        eventually(back, "calls go there again", 120)
        load.end()
    fates = [fate(reply) for reply in load.streams]
    lost = fates.count("lost before its first token") + sum(reply.status != 200 for reply in load.wholes)
    longest, calls = max(out.values()), len(load.streams) + len(load.wholes)
    number = f"p50 {median(out.values()):.1f} s, longest {longest:.1f} s"
    report.fault(38, "out", ENGINES, f"within {SECONDS:.0f} s", f"{sum(s <= SECONDS for s in out.values())}", number)
    told = f"{fates.count('whole')} streams whole, {fates.count('told')} told"
    report.fault(38, "calls lost before their first token", calls, "0", f"{lost}", told)
    report.fault(38, "streams that end silently", len(fates), "0", f"{fates.count('silent end')}")
    report.fault(38, "back after progress", ENGINES, f"{ENGINES}", f"{ENGINES}")
    assert longest <= SECONDS and not lost and "silent end" not in fates
