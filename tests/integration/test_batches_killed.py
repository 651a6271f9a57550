"""A batch that two gateways share, one of which is killed in the middle: every line has one answer."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.lazily import Lazily
from harness.redis_server import RedisServer, redis_server
from harness.upstream import Gate, Target, Upstream, answer, whole
from integration.batching import at_end, client, leave, line, results
from integration.client import ask, chat, eventually, request, wire
from integration.engine import Pause
from redis import Redis

if TYPE_CHECKING:
    import openai
else:
    openai = Lazily("openai")


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


def test_batches_are_told_of_calls_of_gateways_that_run_none(
    upstream: Upstream, redis: RedisServer, tmp_path: Path
) -> None:
    target, gate = upstream.target("beside"), Gate()
    target.restore()
    target.script = [gate, *whole(answer())]
    table = json.dumps({"routes": {"m": {"targets": [{"name": "beside", "backend": "openai", "url": target.url}]}}})
    env = {"TRUNKLINE_FILES": str(tmp_path / "files"), "TRUNKLINE_BATCH_LINES": "0"}
    told = "{tl}:batches:interactive"
    with gateway_process(table, redis_url=redis.url, env=env) as keeping, client(keeping, tenant="told") as ours:
        batch = leave(ours, [line(0)])
        assert not redis.ask("EXISTS", told)
        with wire(keeping, request(chat("m"), keeping.issue().secret)):
            eventually(lambda: redis.ask("EXISTS", told), "a call is under way")
            assert keeping.metrics().count('trunkline_batches{status="validating"} 1.0') == 1
            gate.open()
        ours.batches.cancel(batch.id)


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


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_gateway_without_redis_goes_on_where_it_ended(
    upstream: Upstream, shared: Target, tmp_path: Path, sign: signal.Signals
) -> None:
    target = {"name": "shared", "backend": "openai", "url": upstream.target("shared").url}
    table = json.dumps({"routes": {"m": {"targets": [target]}}})
    env = {"TRUNKLINE_FILES": str(tmp_path / "files"), "TRUNKLINE_GRACE": "0"}
    first = GatewayProcess(table, tmp_path, redis_url=None, workers=1, env=env)
    try:
        first.wait_ready()
        token = first.issue(tenant="t").secret
        with openai.OpenAI(api_key=token, base_url=f"{first.url}/v1", max_retries=0) as ours:
            batch = leave(ours, [line(each) for each in range(100)])
            shared.wait_for_calls(30)
        for pid in [*_children(first.process.pid), first.process.pid]:
            os.kill(int(pid), sign)
    finally:
        first.stop()
    second = GatewayProcess(table, tmp_path, redis_url=None, workers=1, env=env)
    try:
        second.wait_ready()
        with openai.OpenAI(api_key=token, base_url=f"{second.url}/v1", max_retries=0) as ours:
            batch = at_end(ours, batch)
            assert batch.request_counts is not None and batch.request_counts.completed == 100
            assert len(results(ours, batch.output_file_id)) == 100
    finally:
        second.stop()
    asked = Counter(call.json()["messages"][0]["content"] for call in shared.calls)
    assert len(asked) == 100 and max(asked.values()) <= 2


@pytest.mark.slow
def test_an_outage_of_redis_is_waited_out(upstream: Upstream, shared: Target, tmp_path: Path) -> None:
    target = {"name": "shared", "backend": "openai", "url": upstream.target("shared").url}
    table = json.dumps({"routes": {"m": {"targets": [target]}}})
    env = {"TRUNKLINE_FILES": str(tmp_path / "files")}
    with redis_server() as own, gateway_process(table, redis_url=own.url, env=env) as gateway:
        issued = gateway.issue()
        with openai.OpenAI(api_key=issued.secret, base_url=f"{gateway.url}/v1", max_retries=8) as ours:
            batch = leave(ours, [line(each) for each in range(400)])
            shared.wait_for_calls(80)
            own.process.send_signal(signal.SIGSTOP)
            eventually(lambda: "Redis does not answer" in gateway.stderr(), "the outage is noticed")
            own.process.send_signal(signal.SIGCONT)
            batch = at_end(ours, batch, 120)
            assert batch.request_counts is not None and batch.request_counts.completed == 400
            assert len(results(ours, batch.output_file_id)) == 400
    asked = Counter(call.json()["messages"][0]["content"] for call in shared.calls)
    assert len(asked) == 400 and max(asked.values()) <= 2
