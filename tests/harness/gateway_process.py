"""A real gateway for tests: `trunkline serve` as a child process on a free loopback port."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from harness.fork_server import Forked, fork_server
from harness.redis_server import free_port

from gateway.admin import Registrar
from gateway.core.clock import SystemClock
from gateway.core.types import KeyRecord
from gateway.store.local import LocalStore
from gateway.store.redis.store import RedisStore

TRUNKLINE = [sys.executable, "-P", "-m", "gateway"]


def start(
    command: Sequence[str], out: Path, err: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes] | Forked:
    """Run a command whose output goes to these files."""
    with out.open("wb") as to, err.open("wb") as errors:
        return subprocess.Popen(command, stdout=to, stderr=errors, env=environment)


class Issued(NamedTuple):
    """A new key, and the token that its client sends."""

    record: KeyRecord
    secret: str


class GatewayProcess:
    """A running gateway; `records()` are the call lines it logged so far."""

    def __init__(
        self,
        table: str,
        folder: Path,
        *,
        redis_url: str | None,
        workers: int,
        env: dict[str, str],
        admin: bool = False,
        trunkline: Sequence[str] = TRUNKLINE,
        forked: bool = False,
    ) -> None:
        """`trunkline` is the command; another version of it may be put there. Where it is `forked` it and the commands
        beside it need not import anything first: `harness.fork_server` says what is alike and what is not."""
        self._trunkline = trunkline
        self._start = fork_server().start if forked else start
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin_port = free_port() if admin else 0
        self.routing = folder / "routing.yaml"
        self.routing.write_text(table)
        self._store = ["--redis-url", redis_url] if redis_url else ["--state", str(folder / "keys.json")]
        self._out, self._err = folder / "stdout.log", folder / "stderr.log"
        left = folder / "left"  # whoever is killed leaves its temporary files there, which go with the folder
        left.mkdir(exist_ok=True)
        # Nobody needs time to learn that it ends.
        calm = {"PYTHONUNBUFFERED": "1", "TRUNKLINE_DRAIN_ACCEPT": "0", "TMPDIR": str(left)}
        self._env = {**os.environ, **calm, "TRUNKLINE_ROUTING": str(self.routing), **env}
        command = [*trunkline, "serve", str(self.routing), "--port", str(self.port), "--workers", str(workers)]
        if admin:
            command += ["--admin-port", str(self.admin_port)]
        self.process = self._start([*command, *self._store], self._out, self._err, self._env)

    def wait_ready(self, seconds: float = 90) -> None:
        """Until the gateway is ready, and its admin listener answers if it has one."""
        self._wait(self.url + "/ready", seconds)
        if self.admin_port:
            self._wait(f"http://127.0.0.1:{self.admin_port}/health", seconds)

    def _wait(self, url: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            try:
                urllib.request.urlopen(url, timeout=10).close()
                return
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the gateway did not become ready:\n{self.stderr()}") from None
                time.sleep(0.03)

    def key(self, *options: str) -> dict[str, Any]:
        """Create a key with `trunkline keys create`; its token is under "secret", its id under "id"."""
        return self.keys("create", "--name", "test", *options)

    def issue(self, **options: Any) -> Issued:
        """Create a key as the command does, by the same classes, without paying for a process."""

        async def create() -> Issued:
            where = self._store[1]
            store = RedisStore(where, timeout=30) if self._store[0] == "--redis-url" else LocalStore(Path(where))
            await store.open()
            try:
                return Issued(
                    *await Registrar(store.records, {0: b""}, SystemClock(), "test").create("test", **options)
                )
            finally:
                await store.close()

        return asyncio.run(create())

    def keys(self, *arguments: str) -> Any:
        """What `trunkline keys ... --json` says."""
        return self.said("keys", *arguments)

    def said(self, *arguments: str) -> Any:
        """What a command on the store says in JSON."""
        command = [*self._trunkline, *arguments, *self._store, "--json"]
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            code = self._start(command, out, err, self._env).wait(90)
            if code:
                raise subprocess.CalledProcessError(code, command, out.read_text(), err.read_text())
            return json.loads(out.read_text())

    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stdout().splitlines() if line.startswith("{")]

    def stdout(self) -> str:
        return self._out.read_text(errors="replace")

    def stderr(self) -> str:
        return self._err.read_text(errors="replace")

    def metrics(self) -> str:
        with urllib.request.urlopen(self.url + "/metrics", timeout=60) as answer:
            text: str = answer.read().decode()
            return text

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


@contextmanager
def gateway_process(
    table: str,
    *,
    redis_url: str | None = None,
    workers: int = 1,
    env: dict[str, str] | None = None,
    admin: bool = False,
) -> Iterator[GatewayProcess]:
    """A gateway serving `table`, ready, for as long as the block lasts; with `admin` its admin listener too."""
    with tempfile.TemporaryDirectory() as folder:
        gateway = GatewayProcess(
            table, Path(folder), redis_url=redis_url, workers=workers, env=env or {}, admin=admin, forked=True
        )
        try:
            gateway.wait_ready()
            yield gateway
        finally:
            gateway.stop()
