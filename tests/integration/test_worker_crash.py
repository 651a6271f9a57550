"""A worker that is killed is started again, also when it had only just been; the others go on."""

from __future__ import annotations

import json
from contextlib import suppress

import psutil
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer
from harness.upstream import Upstream
from integration.client import ask, chat, eventually


def workers(gateway: GatewayProcess) -> set[int]:
    """The process ids of its workers."""
    found = set()
    for child in psutil.Process(gateway.process.pid).children():
        with suppress(psutil.Error):  # it has just died
            if child.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(child.cmdline()):
                found.add(child.pid)
    return found


def test_a_worker_that_is_killed_again_and_again(upstream: Upstream, redis: RedisServer) -> None:
    upstream.target("crash").restore()
    table = {"routes": {"m": {"targets": [{"name": "t", "backend": "openai", "url": upstream.target("crash").url}]}}}
    with gateway_process(json.dumps(table), redis_url=redis.url, workers=2) as gateway:
        key, lasting = gateway.issue().secret, workers(gateway)
        assert len(lasting) == 2
        doomed = lasting.pop()
        for _ in range(3):
            psutil.Process(doomed).kill()
            others = lasting | {doomed}
            (doomed,) = eventually(lambda others=others: workers(gateway) - others, "another worker")  # type: ignore[misc]
            assert ask(gateway, chat("m"), key).status == 200
        assert gateway.process.poll() is None and lasting <= workers(gateway)
