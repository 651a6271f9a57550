"""Starting and stopping: what `trunkline serve` refuses, and how it ends."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from harness.gateway_process import TRUNKLINE, gateway_process
from harness.upstream import DONE, Gate, Upstream, event, stream
from integration.client import chat, request, wire


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TRUNKLINE, "serve", *arguments], capture_output=True, text=True, timeout=90)


@pytest.fixture
def table(tmp_path: Path) -> str:
    file = tmp_path / "routing.yaml"
    targets = [{"name": "a", "backend": "openai", "url": "http://127.0.0.1:9"}]
    file.write_text(json.dumps({"routes": {"m": {"targets": targets}}}))
    return str(file)


def test_workers_need_redis(table: str) -> None:
    refused = serve(table, "--workers", "2")
    assert refused.returncode == 2
    assert "--redis-url" in refused.stderr
    assert "limit" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("routes: [", "routing.yaml:1"),
        ("routes:\n  m:\n    targetz: []\n", "targetz"),
        ("routes:\n  m:\n    targets: [{name: a, backend: nonsense, url: 'http://a'}]\n", "nonsense"),
        ("routes:\n  m:\n    targets: [{name: a, backend: vllm, url: 'http://a', api_key: '${NOT_SET}'}]\n", "NOT_SET"),
    ],
)
def test_a_bad_table_is_refused_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "routing.yaml"
    file.write_text(text)
    refused = serve(str(file), "--state", str(tmp_path / "keys.json"))
    assert refused.returncode in (1, 2)
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


def test_sigterm_lets_streams_finish(upstream: Upstream) -> None:
    target = upstream.target("serve")
    target.restore()
    gate = Gate()
    target.script = stream(event("Hi"), gate, event(finish="stop"), DONE)
    targets = [{"name": "serve", "backend": "openai", "url": target.url}]
    with gateway_process(json.dumps({"routes": {"m": {"targets": targets}}})) as gateway:
        key = gateway.issue().secret
        with wire(gateway, request(chat("m", stream=True), key)) as connection:
            connection.read_until(b"Hi")
            gateway.process.terminate()
            gate.open()
            connection.read_until(b"[DONE]")
        assert gateway.process.wait(40) == 0
        assert [line["outcome"] for line in gateway.records()] == ["answered"]
        assert "Traceback" not in gateway.stderr()
