"""The targets of the soak: fake backends that are processes of their own, and one that always answers well."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.request
from collections import Counter
from typing import Any

from harness.gateway_process import TRUNKLINE
from harness.redis_server import free_port, wait_listening

from gateway.faults.backend import FakeBackend
from gateway.faults.openai import Served
from gateway.faults.orders import Orders
from gateway.faults.wire import Connection, HttpRequest

CONTROL_SECONDS = 10.0


class Fake:
    """A `trunkline fake-backend`, which may be spoiled, frozen, killed and started again on its port."""

    def __init__(self, name: str, dialect: str, tokens: int, interval: float) -> None:
        self.name, self.tokens = name, tokens
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        told = ["--tokens", str(tokens), "--token-interval", str(interval), "--quiet"]
        self._command = [*TRUNKLINE, "fake-backend", "--dialect", dialect, "--name", name, "--port", str(self.port)]
        self._command += told
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Listen; nothing if it does already."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            wait_listening(self._process, self.port)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def order(self, fault: str) -> None:
        """Have every call spoiled like this from now on, if it does not order something itself; "": none."""
        self._control({"fault": fault})

    def tells(self) -> dict[str, Any]:
        """What it has done since it was started, and what it is doing."""
        return self._control(None)

    def _control(self, body: dict[str, str] | None) -> dict[str, Any]:
        request = urllib.request.Request(self.url + "/fake", None if body is None else json.dumps(body).encode())
        deadline = time.monotonic() + CONTROL_SECONDS
        while True:
            try:
                with urllib.request.urlopen(request, timeout=5) as answer:
                    told: dict[str, Any] = json.load(answer)
                    return told
            except OSError:  # it refuses connections for a while if it is told to
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self.kill()


class Steady(FakeBackend):
    """A target in this process that nothing spoils; it knows how many calls of each model it had at once."""

    def __init__(self, tokens: int, interval: float) -> None:
        super().__init__("openai", Served(tokens=tokens, interval=interval), Orders(name="steady"))
        self.url = ""
        self.now: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        """Since it was last cleared."""

    async def start(self) -> None:
        self.url = f"http://127.0.0.1:{await self.open()}"

    async def _serve(self, connection: Connection, request: HttpRequest) -> None:
        if request.method != "POST":
            return await super()._serve(connection, request)
        model = str(request.json().get("model"))
        self.calls[model] += 1
        self.now[model] += 1
        self.peak[model] = max(self.peak[model], self.now[model])
        try:
            await super()._serve(connection, request)
        finally:
            self.now[model] -= 1
