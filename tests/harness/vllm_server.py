"""A real vLLM for tests: `tests/vllm/environment.py serve` as a child process on a loopback port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from harness.redis_server import free_port

HERE = Path(__file__).parents[1] / "vllm"
START_LIMIT = 300.0


def client(url: str, **headers: str) -> httpx.Client:
    """A client that takes the bytes as the server made them, not a compression of them."""
    return httpx.Client(base_url=url, headers={"accept-encoding": "identity", **headers}, timeout=120, trust_env=False)


def metric(towards: httpx.Client, name: str) -> int:
    """One of a vLLM's own metrics, named without `vllm:`, summed over its labels."""
    lines = towards.get("/metrics").text.splitlines()
    return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"vllm:{name}{{")))


class VLLMServer:
    """One server; without `process` it is somebody else's."""

    def __init__(self, url: str, process: subprocess.Popen[bytes] | None = None, log: Path | None = None) -> None:
        self.url, self.process, self._log = url, process, log
        self.client = client(url)

    def wait_ready(self, tell: Callable[[str], None]) -> None:
        """Until it answers; fails with the end of its log when it does not."""
        began = told = time.monotonic()
        while True:
            now = time.monotonic()
            if (self.process is not None and self.process.poll() is not None) or now - began > START_LIMIT:
                said = f"vLLM did not start within {now - began:.0f} s; {self._log} ends in:\n{self._log_end()}"
                pytest.fail(said, pytrace=False)
            with suppress(httpx.TransportError):
                if self.client.get("/health").status_code == 200:
                    return tell(f"vLLM answers after {now - began:.0f} s; its log is {self._log}")
            if now - told > 15:
                told = now
                tell(f"vLLM is starting: {now - began:.0f} s")
            time.sleep(0.25)

    def _log_end(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-30:]) if self._log else ""

    def metric(self, name: str) -> int:
        """One of its own metrics."""
        return metric(self.client, name)

    @property
    def busy(self) -> tuple[int, int]:
        """Calls running and waiting."""
        return self.metric("num_requests_running"), self.metric("num_requests_waiting")

    @property
    def kv_tokens(self) -> int:
        """Tokens that its cache holds."""
        [line] = re.findall(r"^vllm:cache_config_info\{.*", self.client.get("/metrics").text, re.MULTILINE)
        blocks, size = (re.search(rf'[{{,]{name}="(\d+)"', line) for name in ("num_gpu_blocks", "block_size"))
        assert blocks is not None and size is not None, line
        return int(blocks[1]) * int(size[1])

    def forget(self) -> None:
        """Empty its prefix cache, as at the start; only a replica can."""
        assert self.client.post("/reset_prefix_cache").json() == {"success": True}

    def kill(self) -> None:
        """End the server and its engine without a word, as a machine that loses its power does."""
        assert self.process is not None, "this vLLM is not ours to kill"
        [leader] = psutil.Process(self.process.pid).children()  # of its process group
        os.killpg(leader.pid, signal.SIGKILL)
        self.process.wait(20)


@contextmanager
def vllm_server(folder: Path, *arguments: str, port: int = 0) -> Iterator[VLLMServer]:
    """A vLLM that is starting, for as long as the block lasts; `arguments` are more of `environment.py serve`."""
    port = port or free_port()
    log = folder / f"vllm-{port}.log"
    serve = [str(HERE / "environment.py"), "serve", str(port), *arguments]
    with (
        log.open("wb") as sink,
        subprocess.Popen(
            [sys.executable, str(HERE / "leash.py"), sys.executable, *serve],
            stdin=subprocess.PIPE,  # held, not written to: vLLM ends when this closes, which leaving the block does
            stdout=sink,
            stderr=subprocess.STDOUT,
            cwd=folder,
            start_new_session=True,  # Ctrl-C is for pytest
        ) as process,
    ):
        server = VLLMServer(f"http://127.0.0.1:{port}", process, log)
        with server.client:
            yield server
