"""What metrics tell an operator of a gateway's own processes and of his orders."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from harness.gateway_process import gateway_process
from harness.redis_server import RedisServer
from harness.upstream import Upstream
from integration.client import eventually, samples, total


def test_restarts_of_workers_and_drains_are_told(upstream: Upstream, redis: RedisServer) -> None:
    table = {"routes": {"m": {"targets": [{"name": "t", "backend": "openai", "url": upstream.target("t").url}]}}}
    with gateway_process(json.dumps(table), redis_url=redis.url, workers=2) as gateway:

        def told(name: str, **labels: str) -> float:
            return total(samples(gateway), name, **labels)

        assert told("worker_restarts") == 0
        tree = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children")
        os.kill(int(tree.read_text().split()[0]), signal.SIGKILL)
        eventually(lambda: told("worker_restarts") == 1, "a worker was started for the one that died")
        assert told("target_out", target="t") == 0
        gateway.said("targets", "drain", "t", "--routing", str(gateway.routing))
        eventually(lambda: told("target_out", target="t", reason="drained") == 1, "it is drained")
        assert told("target_out", target="t", reason="ejected") == 0
        gateway.said("targets", "undrain", "t", "--routing", str(gateway.routing))
        eventually(lambda: told("target_out", target="t") == 0, "it is open again")
