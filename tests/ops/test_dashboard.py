"""Every panel of the dashboard has data: a real Prometheus scrapes two real gateways under load (`make test-ops`)."""

from __future__ import annotations

import json
import math
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.fake_backend import FakeProcess
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import free_port, redis_server
from harness.upstream import scripted_upstream, whole
from integration.client import ask, chat, request, wire
from ops.prometheus import programs

from gateway.core.types import Limit

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/trunkline.json").read_text())
ASKED = [
    (panel["title"], target["expr"])
    for panel in DASHBOARD["panels"]
    if panel["type"] != "row"
    for target in panel["targets"]
]
WELL_WITHOUT = {"max by (target) (trunkline_target_hung) == 1"}
"""What has data only when something is wrong."""
CACHE = ("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")


def table(engines: list[int], broken: str) -> dict[str, Any]:
    def engine(name: str, port: int, **more: Any) -> dict[str, Any]:
        return {"name": name, "backend": "vllm", "url": f"http://127.0.0.1:{port}", "model": "fake", **more}

    return {
        "routes": {
            "m": {
                "targets": [engine(f"engine-{n}", port, max_inflight=2) for n, port in enumerate(engines[:2])],
                "shadow": {"target": engine("shadow", engines[2]), "share": 1.0},
                "response_cache": {"wait": "1s"},
                "price": {"input": 1, "output": 2},
            },
            "broken": {
                "targets": [{"name": "broken", "backend": "openai", "url": broken}],
                "fallback": [engine("spare", engines[2])],
            },
        }
    }


def leave(gateway: GatewayProcess, key: str) -> None:
    """A client that leaves in the middle of its stream."""
    with wire(gateway) as connection:
        connection.send(request(chat("m", stream=True, max_tokens=60, ignore_eos=True), key))
        connection.read_until(b"data: ")


def some_of_all(gateway: GatewayProcess, key: str, limited: str, turn: int) -> None:
    prompt = f"Say it again, number {turn % 5}, and then in full. " * 40
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": prompt}], "max_tokens": 20}
    ask(gateway, {**body, "stream": True, "ignore_eos": True}, key)
    ask(gateway, {**body, "temperature": 0, "seed": turn % 3}, key)
    ask(gateway, chat("broken", max_tokens=4), key)
    ask(gateway, chat("m", max_tokens=4), limited)
    leave(gateway, key)


@contextmanager
def under_load(gateways: list[GatewayProcess]) -> Iterator[None]:
    """Twelve clients, which never rest."""
    over = threading.Event()
    key = gateways[0].issue().secret
    limited = gateways[0].issue(limit=Limit(rpm=2)).secret

    def client(number: int) -> None:
        turn = number
        while not over.is_set():
            with suppress(OSError, AssertionError):
                some_of_all(gateways[turn % len(gateways)], key, limited, turn)
            turn += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        over.set()
        for each in threads:
            each.join()


class Prometheus:
    """A real one, which looks each second."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.port = free_port()
        jobs = [
            {"job_name": "trunkline", "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]},
        ]
        settings = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "scrape_configs": jobs}
        (folder / "prometheus.yml").write_text(yaml.safe_dump({**settings, "rule_files": [str(DEPLOY / "alerts.yml")]}))
        files = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [str(programs()[0]), *files, f"--web.listen-address=127.0.0.1:{self.port}"], stdout=log, stderr=log
            )

    def values(self, expr: str) -> list[float]:
        """What an expression gives now; none while it cannot be asked."""
        asked = expr.replace("$__rate_interval", "20s").replace("$route", ".*")
        url = f"http://127.0.0.1:{self.port}/api/v1/query?{urllib.parse.urlencode({'query': asked})}"
        try:
            with urllib.request.urlopen(url, timeout=20) as reply:
                found = json.load(reply)["data"]["result"]
        except OSError:
            return []
        return [value for each in found if math.isfinite(value := float(each["value"][1]))]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def within(seconds: float, found: Callable[[], Any]) -> Any:
    """What is found, as soon as there is something, or nothing."""
    end = time.monotonic() + seconds
    while not (seen := found()) and time.monotonic() < end:
        time.sleep(0.5)
    return seen


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with ExitStack() as stack:
        upstream = stack.enter_context(scripted_upstream())
        broken = upstream.target("broken")
        broken.script = whole({"error": {"message": "no"}}, 500)
        redis, cache = stack.enter_context(redis_server()), stack.enter_context(redis_server(options=CACHE))
        ports = [free_port() for _ in range(3)]
        for port in ports:
            options = ("fake-backend", "--engine", "--model", "fake", "--port", str(port), "--quiet")
            engine = FakeProcess(options, tmp_path_factory.mktemp("engine"))
            stack.callback(engine.stop)
        text = json.dumps(table(ports, broken.url))
        gateways = [
            stack.enter_context(
                gateway_process(text, redis_url=redis.url, workers=2, env={"TRUNKLINE_CACHE_URL": cache.url})
            )
            for _ in range(2)
        ]
        started = Prometheus(tmp_path_factory.mktemp("prometheus"), [each.port for each in gateways])
        stack.callback(started.stop)
        stack.enter_context(under_load(gateways))
        within(60, lambda: started.values("sum(up)") == [2.0])
        for each in gateways:  # another table, that is as good
            each.routing.write_text(text + "\n")
        yield started


@pytest.mark.parametrize(("title", "expr"), ASKED, ids=[f"{title}-{n}" for n, (title, _) in enumerate(ASKED)])
@pytest.mark.timeout(300)
def test_every_panel_has_data(prometheus: Prometheus, title: str, expr: str) -> None:
    if expr not in WELL_WITHOUT:
        assert within(120, lambda: prometheus.values(expr)), f"{title}: {expr} gives nothing"


@pytest.mark.timeout(300)
def test_rules_are_recorded_and_no_alert_cries_wolf(prometheus: Prometheus) -> None:
    assert within(120, lambda: prometheus.values('trunkline:late_tokens:ratio5m{route="m"}'))
    assert prometheus.values('count(ALERTS{alertname="TrunklineDown"})') == []
    assert prometheus.values("trunkline_no_such_metric") == []
