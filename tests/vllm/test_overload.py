"""A vLLM whose queue is full: its 503 is not the caller's fault, so the gateway says it in its own words."""

import socket
from collections.abc import Callable

import httpx
import pytest
from harness.captures import GOLDEN, read_capture

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400), pytest.mark.usefixtures("idle")]

CHAT, JSON = "/v1/chat/completions", {"content-type": "application/json"}
Dial = Callable[[httpx.Client, dict[str, object]], socket.socket]
Until = Callable[[int, int, float], float]


@pytest.fixture
def full(vllm: httpx.Client, idle: None, dial: Dial, until: Until) -> None:
    """The one place taken, and a call waiting whose prompt is all the queue allows."""
    messages = [{"role": "user", "content": "Tell me a story."}]
    endless = {"ignore_eos": True, "min_tokens": 600, "max_tokens": 600, "stream": True}
    for running, waiting in ((1, 0), (1, 1)):
        dial(vllm, {"model": "smollm2-135m", "messages": messages, **endless})
        until(running, waiting, 10.0)


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize("name", ["overload-queue-full", "overload-queue-full-stream"])
def test_a_full_queue_is_a_503_of_the_gateway(
    vllm: httpx.Client, gateway: httpx.Client, record: Callable[..., None], name: str
) -> None:
    sent = read_capture(GOLDEN / "vllm" / f"vllm-err-{name}.txt").request
    direct, answer = (towards.post(CHAT, content=sent, headers=JSON) for towards in (vllm, gateway))
    assert (direct.status_code, direct.json()["error"]["type"]) == (503, "Service Unavailable")
    record("transparency", f"err-{name}", answer.status_code, len(answer.content), "", "its own 503")
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
