"""Two real model servers; one is killed in the middle of an answer, and the client reads on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import free_port
from integration.client import CHAT, chat, eventually, get, record

pytestmark = pytest.mark.slow

MODEL = "smollm2-135m"
STORY = [{"role": "user", "content": "Write a story about the sea."}]
TOKENS = 60


@contextmanager
def engine(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """The embedded model's server."""
    command = [sys.executable, "-m", "backends.embedded", "--name", MODEL, "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


@pytest.fixture
def engines() -> Iterator[dict[str, tuple[int, subprocess.Popen[bytes]]]]:
    with ExitStack() as stack:
        ports = {"one": free_port(), "two": free_port()}
        yield {name: (port, stack.enter_context(engine(port))) for name, port in ports.items()}


@pytest.fixture
def gateway(engines: dict[str, tuple[int, subprocess.Popen[bytes]]]) -> Iterator[GatewayProcess]:
    targets = [
        {"name": name, "backend": "llamacpp", "url": f"http://127.0.0.1:{port}"} for name, (port, _) in engines.items()
    ]
    with gateway_process(json.dumps({"routes": {MODEL: {"targets": targets, "resume": "text"}}})) as started:

        def up() -> bool | None:
            return set(get(started, "/ready").json()["targets"].values()) == {"up"} or None

        eventually(up, "the models are loaded", 50)
        yield started


def test_the_text_reads_on_when_its_server_is_killed(
    gateway: GatewayProcess, engines: dict[str, tuple[int, subprocess.Popen[bytes]]]
) -> None:
    body = chat(MODEL, stream=True, temperature=0, max_tokens=TOKENS, stream_options={"include_usage": True})
    body["messages"] = STORY
    headers = {"authorization": f"Bearer {gateway.issue().secret}"}
    with httpx.Client(base_url=gateway.url, headers=headers, timeout=50, trust_env=False) as client:
        _, uncut, _ = _told(client, body, {})
        call_id, text, told = _told(client, body, {name: process for name, (_, process) in engines.items()})
    assert text == uncut, "the seam cannot be seen"
    assert told[-1]["usage"]["completion_tokens"] == TOKENS
    assert len({each["id"] for each in told}) == 1
    line = record(gateway, call_id)
    assert (line["outcome"], line["resumed"]) == ("answered", 1)


def _told(
    client: httpx.Client, body: dict[str, Any], killed: dict[str, subprocess.Popen[bytes]]
) -> tuple[str, str, list[dict[str, Any]]]:
    """A stream's request id, text and events; the server it comes from is killed after some words."""
    events: list[dict[str, Any]] = []
    with client.stream("POST", CHAT, json=body) as response:
        target = response.headers["x-trunkline-target"]
        lines = list(_each(response, events, lambda: killed and killed[target].kill()))
        assert lines[-1] == "data: [DONE]"
        text = "".join(choice["delta"].get("content") or "" for told in events for choice in told["choices"])
        return response.headers["x-request-id"], text, events


def _each(response: httpx.Response, events: list[dict[str, Any]], tenth: Callable[[], object]) -> Iterator[str]:
    """The lines of a stream, its events noted; `tenth` is called at the tenth of them."""
    for line in filter(None, response.iter_lines()):
        if line.startswith("data: {"):
            events.append(json.loads(line[6:]))
            if len(events) == 10:
                tenth()
        yield line
