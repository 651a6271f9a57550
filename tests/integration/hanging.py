"""Servers whose timed engines can be stopped while they answer on, in pairs, and routes to them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from integration.client import Reply

from gateway.faults.backend import FakeBackend
from gateway.faults.engine import Shape
from gateway.faults.openai import Served
from gateway.faults.orders import Orders

ENGINES = 20
WORDS = 800
SHAPE = Shape(step=0.02, rate=1e6)
"""An answer of so many words takes sixteen seconds."""


class Farm:
    """Servers with timed engines, all in a thread of their own: `a0` to be stopped, beside it `b0`, and so on."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engines", daemon=True)
        self._thread.start()
        self.backends: dict[str, FakeBackend] = {}
        self.ports: dict[str, int] = {}
        for name in [f"{side}{number}" for number in range(ENGINES) for side in "ab"]:
            backend = FakeBackend("vllm", Served(), Orders("", name=name), engine=SHAPE)
            self.ports[name] = asyncio.run_coroutine_threadsafe(backend.open(), self._loop).result(30)
            self.backends[name] = backend

    def stop_engines(self, stopped: bool = True) -> None:
        """Those beside which there is another."""

        def stop() -> None:
            for number in range(ENGINES):
                engine = self.backends[f"a{number}"].engine
                assert engine is not None
                engine.stop(stopped)

        self._loop.call_soon_threadsafe(stop)

    def close(self) -> None:
        for backend in self.backends.values():
            asyncio.run_coroutine_threadsafe(backend.close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


@contextmanager
def farm() -> Iterator[Farm]:
    made = Farm()
    try:
        yield made
    finally:
        made.close()


def routes(engines: Farm) -> dict[str, Any]:
    """A route for each pair, `r0` and so on; every other one resumes streams."""

    def target(name: str) -> dict[str, Any]:
        return {"name": name, "backend": "vllm", "url": f"http://127.0.0.1:{engines.ports[name]}"}

    return {
        f"r{number}": {
            "targets": [target(f"a{number}"), target(f"b{number}")],
            "policy": "round-robin",
            **({"resume": "text"} if number % 2 else {}),
        }
        for number in range(ENGINES)
    }


def spoken(reply: Reply) -> list[str]:
    """The words of a stream."""
    events = [json.loads(data) for data in reply.data if data.startswith(b"{")]
    return "".join(
        choice["delta"].get("content") or "" for event in events for choice in event.get("choices", ())
    ).split()
