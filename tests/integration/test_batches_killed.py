"""A batch that two gateways share, one of which is killed in the middle: every line has one answer."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer
from harness.upstream import Target, Upstream, answer, whole
from integration.batching import at_end, client, leave, line, results
from integration.client import ask, chat, eventually
from integration.engine import Pause
from redis import Redis


@pytest.fixture
def pair(upstream: Upstream, redis: RedisServer, tmp_path: Path) -> Iterator[list[GatewayProcess]]:
    target = {"name": "shared", "backend": "openai", "url": upstream.target("shared").url}
    table = json.dumps({"routes": {"m": {"targets": [target]}}})
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                gateway_process(table, redis_url=redis.url, env={"TRUNKLINE_FILES": str(tmp_path / "files")})
            )
            for _ in range(2)
        ]


@pytest.fixture
def shared(upstream: Upstream) -> Target:
    target = upstream.target("shared")
    target.restore()
    target.script = [Pause(0.02), *whole(answer())]
    return target


@pytest.mark.parametrize("number", [400, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_a_killed_gateway_loses_no_answer_and_doubles_none(
    pair: list[GatewayProcess], shared: Target, redis: RedisServer, tmp_path: Path, number: int
) -> None:
    one, other = pair
    with client(other, tenant=f"killed-{number}") as ours:
        batch = leave(ours, [line(each) for each in range(number)])

        def some() -> bool:
            counts = ours.batches.retrieve(batch.id).request_counts
            return counts is not None and counts.completed >= number // 4

        eventually(some, "a quarter has its answers", 300)
        workers = [int(pid) for pid in _children(one.process.pid)]
        for pid in [one.process.pid, *workers]:
            os.kill(pid, signal.SIGKILL)
        one.process.wait(30)
        killed_at = len(shared.calls)
        assert ask(other, chat("m"), other.issue().secret).status == 200, "a call goes on beside it"
        batch = at_end(ours, batch, 500)
        assert batch.status == "completed" and batch.request_counts is not None
        assert batch.request_counts.to_dict() == {"total": number, "completed": number, "failed": 0}
        found = results(ours, batch.output_file_id)
        assert found.keys() == {f"line-{each}" for each in range(number)}
    asked = Counter(call.json()["messages"][0]["content"] for call in shared.calls if call.json() != chat("m"))
    assert len(asked) == number and killed_at < number
    assert max(asked.values()) <= 2, "an engine may be asked twice, by who takes over"
    left = tmp_path / "files" / "batches" / batch.id
    eventually(lambda: not left.exists() or not any(left.iterdir()), "no part is left")
    with Redis.from_url(redis.url) as known:
        eventually(lambda: not known.keys(f"{{tl}}:work:{batch.id}*"), "nothing of the work is left")


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
