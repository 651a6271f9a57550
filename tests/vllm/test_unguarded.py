"""A real vLLM with `--api-key`: what it answers without the key is told of, and asking costs it nothing."""

from collections.abc import Callable

import pytest
from harness.gateway_process import gateway_process
from harness.replicas import CHAT, MODEL, user
from harness.vllm_server import client, metric, vllm_server
from integration.client import eventually, samples, total
from integration.engine import table

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

KEY = "a-long-and-secret-word"


def test_what_its_key_does_not_guard_is_told_of(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, tell: Callable[[str], None]
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", KEY)
    with vllm_server(tmp_path_factory.mktemp("guarded"), "replica", "2048") as server:
        server.wait_ready(tell)
        target = {"name": "guarded", "backend": "vllm", "url": server.url, "api_key": "${VLLM_API_KEY}"}
        with gateway_process(table({MODEL: {"targets": [target]}})) as gateway:
            warned = lambda: total(samples(gateway), "target_warning", target="guarded", about="unguarded")  # noqa: E731
            eventually(warned, "it is told of", 60)
            (line,) = [line for line in gateway.stderr().splitlines() if "to anybody" in line]
            tell(line)
            assert "/invocations" in line and "/tokenize" in line and "/v1/" not in line.replace("/inference/v1", "")
            names = ("prompt_tokens_total", "generation_tokens_total", "request_success_total")
            assert [metric(server.client, name) for name in names] == [0, 0, 0], "it has done nothing for it"
            with client(gateway.url, authorization=f"Bearer {gateway.issue().secret}") as ours:
                asked = {"model": MODEL, "messages": user("Hi"), "max_tokens": 2}
                assert ours.post(CHAT, json=asked).status_code == 200
