"""The vLLM dialect of the fake backend, as version 0.32 speaks it."""

from __future__ import annotations

import math
import time
from typing import Any, ClassVar

from gateway.faults.answer import Answer, Pause, whole
from gateway.faults.openai import OpenAI, Refusal, Served, State
from gateway.faults.wire import HttpRequest
from gateway.faults.words import text_of

_TYPES = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError", 503: "Service Unavailable"}


class VLLM(OpenAI):
    """Also `/health`, `/version`, `/metrics`, `/tokenize`, `/load`, and sleep; calls wait while it sleeps."""

    name: ClassVar[str] = "vllm"
    continues: ClassVar[bool] = True
    finish_rides: ClassVar[bool] = True

    def __init__(self, served: Served, state: State) -> None:
        super().__init__(served, state)
        self.routes |= {
            ("GET", "/ping"): lambda _: whole(b""),
            ("POST", "/ping"): lambda _: whole(b""),
            ("GET", "/version"): lambda _: whole({"version": "0.32.0"}),
            ("GET", "/load"): lambda _: whole({"server_load": self.state.running}),
            ("GET", "/metrics"): self.metrics,
            ("POST", "/tokenize"): self.tokenize,
            ("GET", "/is_sleeping"): lambda _: whole({"is_sleeping": self.state.asleep}),
            ("POST", "/sleep"): self.sleep,
            ("POST", "/wake_up"): self.wake_up,
        }

    def no_route(self, status: int) -> Answer:
        return whole({"detail": "Not Found" if status == 404 else "Method Not Allowed"}, status)

    def error_body(self, status: int, message: str, param: str | None = None) -> dict[str, Any]:
        kind = _TYPES.get(status, _TYPES[400] if status < 500 else _TYPES[500])
        return {"error": {"message": message, "type": kind, "param": param, "code": status}}

    def card(self) -> dict[str, Any]:
        return {"root": "fake", "parent": None, "max_model_len": self.served.context, "permission": []}

    def check(self, body: dict[str, Any]) -> None:
        super().check(body)
        if body.get("stream_options") is not None and body.get("stream") is not True:
            raise Refusal(400, "Stream options can only be defined when `stream=True`.", "stream_options")
        if body.get("continue_final_message") is True and body.get("add_generation_prompt") is True:
            raise Refusal(400, "Cannot set both `continue_final_message` and `add_generation_prompt` to True.")

    def stamp(self, body: dict[str, Any], kind: str) -> dict[str, Any]:
        return {**super().stamp(body, kind), "system_fingerprint": "vllm-0.32.0-fake"}

    def tokenize(self, request: HttpRequest) -> Answer:
        body = self.body(request)
        messages = body.get("messages")
        given = messages if isinstance(messages, list) else [{"content": body.get("prompt")}]
        words = " ".join(text_of(each.get("content")) for each in given if isinstance(each, dict)).split()
        tokens = [len(word) for word in words]
        return whole({"count": len(tokens), "max_model_len": self.served.context, "tokens": tokens, "token_strs": None})

    def sleep(self, _: HttpRequest) -> Answer:
        self.state.asleep_until = math.inf
        return whole(b"")

    def wake_up(self, _: HttpRequest) -> Answer:
        """Answered once it is awake, as by vLLM."""
        answer = whole(b"")
        if self.state.asleep_until == math.inf:
            self.state.asleep_until = time.monotonic() + self.served.wake
        answer.before = [Pause(max(0.0, self.state.asleep_until - time.monotonic()))]
        return answer

    def metrics(self, _: HttpRequest) -> Answer:
        name = (self.served.models or ("fake",))[0]
        lines = [
            f'{metric}{{engine="0",model_name="{name}"{"," if more else ""}{more}}} {float(value)}'
            for metric, more, value in self.measured()
        ]
        lines.append(f"process_start_time_seconds {self.state.started}\n")
        return whole("\n".join(lines).encode(), content_type="text/plain; version=0.0.4")

    def measured(self) -> list[tuple[str, str, float]]:
        """Names of metrics, more labels, and values."""
        state = self.state
        waiting = state.running if state.asleep else 0
        return [
            *self.awake(),
            ("vllm:num_requests_running", "", state.running - waiting),
            ("vllm:num_requests_waiting", "", waiting),
            ("vllm:kv_cache_usage_perc", "", min(1.0, state.running / 256)),
            ("vllm:prompt_tokens_total", "", state.prompt_tokens),
            ("vllm:generation_tokens_total", "", state.completion_tokens),
            ("vllm:prefix_cache_queries_total", "", state.prompt_tokens),
            ("vllm:prefix_cache_hits_total", "", 0),
        ]

    def awake(self) -> list[tuple[str, str, float]]:
        awake = not self.state.asleep
        return [
            ("vllm:engine_sleep_state", 'sleep_state="awake"', awake),
            ("vllm:engine_sleep_state", 'sleep_state="weights_offloaded"', not awake),
            ("vllm:engine_sleep_state", 'sleep_state="discard_all"', 0),
        ]
