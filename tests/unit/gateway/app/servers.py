"""Model servers that are a dictionary: what each answers by URL and path, asked through the real forwarder."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from gateway.core.errors import Unreachable
from gateway.upstream.origin import Origin
from gateway.upstream.pool import Pool

SLEEP = 'vllm:num_requests_running 0.0\nvllm:engine_sleep_state{sleep_state="awake"} %d.0\n'


class LoopClock:
    """The running loop's time, for both clocks."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def now(self) -> float:
        return 1_800_000_000.0 + self.monotonic()


def threadless() -> None:
    """Let the running loop do what is meant for threads at once: a loop whose time is its own cannot wait for them."""
    loop = asyncio.get_running_loop()

    def here(_: object, work: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        future = loop.create_future()
        try:
            future.set_result(work(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    loop.run_in_executor = here  # type: ignore[method-assign,assignment]


class Answered:
    """An answer that has come already."""

    def __init__(self, status: int, body: bytes = b"") -> None:
        self.status, self._body = status, body

    async def read(self) -> bytes:
        body, self._body = self._body, b""
        return body

    def release(self) -> None: ...


class Servers(Pool):
    """`answers[host][path]` is a status, a text, JSON, or a function that gives one of them.

    Other paths of a host are not there, other hosts are away.
    """

    def __init__(self, *hosts: str) -> None:
        super().__init__()
        self.answers: dict[str, dict[str, Any]] = {host: {"/health": 200} for host in hosts}
        self.asked: list[tuple[str, str]] = []

    async def request(self, origin: Origin, method: str, path: str, *_: Any, **__: Any) -> Any:
        host = origin.place.host
        self.asked.append((host, path))
        if host not in self.answers:
            raise Unreachable("away")
        answer = self.answers[host].get(path, 404)
        if callable(answer):
            answer = answer()
        if isinstance(answer, int):
            return Answered(answer)
        return Answered(200, (answer if isinstance(answer, str) else json.dumps(answer)).encode())

    def load(self, host: str, running: int, waiting: int, blocks: int | None = None) -> None:
        """What a vLLM there tells of its load."""
        text = f"vllm:num_requests_running 1.0\nvllm:num_requests_waiting {waiting}.0\n".replace(
            "1.0", f"{running}.0", 1
        )
        if blocks is not None:
            text += f'vllm:cache_config_info{{block_size="16",num_gpu_blocks="{blocks}"}} 1.0\n'
        self.answers[host]["/metrics"] = text

    def sleeper(self, host: str, wakes: bool = True) -> None:
        """A vLLM there sleeps until it is woken, if it `wakes`."""

        def wake() -> int:
            if not wakes:
                return 500
            self.answers[host]["/metrics"] = SLEEP % 1
            return 200

        self.answers[host] |= {"/metrics": SLEEP % 0, "/wake_up": wake}

    def facts(self, host: str, context: int, version: str = "0.11") -> None:
        """What a vLLM there says that it is."""
        self.answers[host]["/v1/models"] = {"object": "list", "data": [{"id": "m", "max_model_len": context}]}
        self.answers[host]["/version"] = {"version": version}
