"""The fault kit's model server: in a thread of the test's process, or as the command that operators run."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.gateway_process import TRUNKLINE

from gateway.faults.backend import FakeBackend, Told
from gateway.faults.openai import Served
from gateway.faults.orders import Entry, Orders, parse


class Fake:
    """A fake backend in a thread of its own; `calls` are those that are over."""

    def __init__(
        self, dialect: str, name: str, served: Served, script: Sequence[Entry], address: tuple[str, int]
    ) -> None:
        self.name, self.dialect = name, dialect
        self.calls: list[Told] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fake-backend", daemon=True)
        self._thread.start()
        self.backend = FakeBackend(dialect, served, Orders("", script, name=name), told=self.calls.append)
        self.port: int = asyncio.run_coroutine_threadsafe(self.backend.open(*address), self._loop).result(30)
        self.url = f"http://{address[0]}:{self.port}"

    def order(self, spec: str) -> None:
        """The fault of every call from now on; none: well again."""
        self.backend.orders.default = parse(spec)

    def tells(self) -> dict[str, Any]:
        """What `GET /fake` says."""
        return self.backend.tells()

    def spec(self, **fields: Any) -> dict[str, Any]:
        """As a routing table lists it."""
        return {"name": self.name, "backend": self.dialect, "url": self.url, **fields}

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.backend.close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()


@contextmanager
def fake(
    dialect: str = "vllm",
    name: str = "fake",
    script: Sequence[Entry] = (),
    *,
    tokens: int = 16,
    interval: float = 0.0,
    address: tuple[str, int] = ("127.0.0.1", 0),
) -> Iterator[Fake]:
    """One for as long as the block lasts."""
    made = Fake(dialect, name, Served(tokens=tokens, interval=interval), script, address)
    try:
        yield made
    finally:
        made.stop()


class FakeProcess:
    """`trunkline fake-backend` or `fake-link` as a child process; `lines()` are what it printed so far."""

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self._out, self._err = folder / "out.log", folder / "err.log"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*TRUNKLINE, *arguments],
                stdout=out,
                stderr=err,
                stdin=subprocess.PIPE,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def say(self, line: str) -> None:
        """A line on its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def lines(self) -> list[str]:
        return self._out.read_text().splitlines()

    def errors(self) -> str:
        return self._err.read_text()

    def told(self) -> list[dict[str, Any]]:
        """Its JSON lines."""
        return [json.loads(line) for line in self.lines() if line.startswith("{")]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def fake_process(*arguments: str) -> Iterator[FakeProcess]:
    """The command, for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        made = FakeProcess(arguments, Path(folder))
        try:
            yield made
        finally:
            made.stop()
