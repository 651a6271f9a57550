"""A gateway in front of several vLLMs, and streams through it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import httpx
from harness.gateway_process import GatewayProcess, gateway_process
from harness.vllm_server import VLLMServer

MODEL, CHAT = "smollm2-135m", "/v1/chat/completions"
NAMES = ("vllm-1", "vllm-2")
CONTEXTS = (2048, 1536)
"""Tokens; their servers are alike in everything else."""

Replicas = tuple[VLLMServer, VLLMServer]
Messages = list[dict[str, str]]


@contextmanager
def routed(replicas: Replicas, policy: str) -> Iterator[tuple[GatewayProcess, str]]:
    """A gateway with one route to all of them, and a key; patient, as the machine may have much else to do."""
    targets = [
        {"name": name, "backend": "vllm", "url": replica.url} for name, replica in zip(NAMES, replicas, strict=True)
    ]
    limits = {"default": {"rpm": 100_000, "concurrency": 64}}
    timeouts = {"first_output": "300s", "whole": "300s"}
    route = {"policy": policy, "targets": targets, "timeouts": timeouts, "queue": {"wait": "120s"}}
    with gateway_process(json.dumps({"routes": {MODEL: route}, "limits": limits})) as gateway:
        yield gateway, gateway.issue().secret


def user(text: str) -> Messages:
    """A conversation's beginning."""
    return [{"role": "user", "content": text}]


class Answer(NamedTuple):
    """A stream, as far as it came."""

    status: int
    target: str
    attempts: int
    first: float
    """Seconds until its first event."""
    events: Sequence[str]
    broken: str = ""
    """How the connection failed, if it did."""

    @property
    def text(self) -> str:
        """What the model said."""
        choices = [json.loads(each).get("choices") for each in self.events if each != "[DONE]"]
        return "".join(each[0]["delta"].get("content") or "" for each in choices if each)

    @property
    def prompt_tokens(self) -> int:
        """As vLLM counts them, at the end."""
        usage = json.loads(self.events[-2])["usage"]
        return int(usage["prompt_tokens"])

    @property
    def whole(self) -> bool:
        """It came to its end."""
        return self.status == 200 and self.events[-1:] == ["[DONE]"] and not self.cut

    @property
    def cut(self) -> bool:
        """It began, and ends in an error event, as it must when it cannot go on."""
        return bool(self.events) and '"error"' in self.events[-1] and "choices" not in self.events[-1]


def stream(towards: httpx.Client, messages: Messages, started: Callable[[str], object] = str, **more: object) -> Answer:
    """A call to its end, whatever that is; `started` is told the target's name at the first event."""
    body = {"model": MODEL, "messages": messages, "stream": True, "stream_options": {"include_usage": True}}
    body |= {"temperature": 0, "ignore_eos": True, **more}
    began, first, broken = time.perf_counter(), float("inf"), ""
    events: list[str] = []
    with towards.stream("POST", CHAT, json=body) as response:
        target = response.headers.get("x-trunkline-target", "")
        try:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    if not events:
                        first = time.perf_counter() - began
                        started(target)
                    events.append(line[6:])
        except httpx.TransportError as error:
            broken = type(error).__name__
    return Answer(
        response.status_code, target, int(response.headers.get("x-trunkline-attempts", "0")), first, events, broken
    )
