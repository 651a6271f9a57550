"""Engines behind a gateway, and calls that wait in them for as long as a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from harness.gateway_process import GatewayProcess
from harness.upstream import DONE, Gate, Received, Script, Upstream, answer, event, stream, usage_event, whole
from integration.client import Reply, Wire, ask, request

BYTES_PER_TOKEN = 4
"""What the gateway takes a token for; engines here do, too, so that it learns nothing else."""


class Hold(Gate):
    """A step of a script: wait until it is opened. Unlike a `Gate` it takes no thread: there may be hundreds."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[asyncio.Future[None]] = []

    def open(self) -> None:
        super().open()
        for future in self._waiting:
            future.get_loop().call_soon_threadsafe(_settle, future)

    async def passed(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if not self._event.is_set():
            await future


class Pause(Gate):
    """A step of a script: that many seconds of work."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    async def passed(self) -> None:
        await asyncio.sleep(self._seconds)


class _Over(Gate):
    """A step of a script: the answer is out."""

    def __init__(self, over: set[int], received: Received) -> None:
        super().__init__()
        self._over, self._received = over, received

    async def passed(self) -> None:
        self._over.add(id(self._received))


class Engine:
    """A target that counts a prompt's tokens, tells what `pages` hold, and keeps calls waiting while it is `holding`.

    `script` replaces its answers. `cached` is the part of each prompt that it reports to come from its cache.
    """

    def __init__(self, upstream: Upstream, name: str) -> None:
        self.name, self.target = name, upstream.target(name)
        self.renew()

    def renew(self) -> None:
        """As new: no calls, all well."""
        self.target.restore()
        self.pages: dict[str, Script] = {}
        self.script: Script | None = None
        self.holding = self.work = 0.0
        self.cached = 0.0
        self.held: list[Hold] = []
        """One for each call that came while it was holding."""
        self.peak = 0
        """The most calls that ran at once."""
        self._over: set[int] = set()
        self.target.answers = self._answers  # type: ignore[method-assign]

    @property
    def calls(self) -> list[Received]:
        """All that ever came."""
        return self.target.calls

    @property
    def running(self) -> int:
        """Calls that wait for their answer now."""
        return sum(id(call) not in self._over and not call.closed.is_set() for call in self.calls)

    def spec(self, backend: str = "openai", **fields: Any) -> dict[str, Any]:
        """As a table lists it."""
        return {"name": self.name, "backend": backend, "url": self.target.url, **fields}

    def release(self) -> None:
        """Answer all that wait, and hold no more."""
        self.holding = 0.0
        for hold in self.held:
            hold.open()

    def tell(self, running: int, waiting: int) -> None:
        """What vLLM's metrics say from now on."""
        lines = [
            f'vllm:num_requests_{what}{{engine="0"}} {n}' for what, n in (("running", running), ("waiting", waiting))
        ]
        self.pages["/metrics"] = whole("\n".join([*lines, ""]).encode(), content_type="text/plain")

    def list_model(self, context: int, name: str = "served") -> None:
        """What `/v1/models` says from now on."""
        self.pages["/v1/models"] = whole({"object": "list", "data": [{"id": name, "max_model_len": context}]})

    def _answers(self, received: Received) -> Script:
        if received.method == "GET":
            self.target.probes.append(received)
            return self.pages.get(received.path, whole({}, 200 if self.target.healthy else 503))
        self.calls.append(received)
        self.peak = max(self.peak, self.running)
        steps: list[Any] = []
        if self.work:
            steps.append(Pause(self.work))
        if self.holding:
            self.held.append(Hold())
            steps.append(self.held[-1])
        return [*steps, *(self.script or self._reply(received)), _Over(self._over, received)]

    def _reply(self, received: Received) -> Script:
        prompt = len(received.body) // BYTES_PER_TOKEN
        if received.json().get("stream"):
            return stream(event("Hel"), event("lo"), event(finish="stop"), usage_event(prompt, 2), DONE)
        said = answer(prompt=prompt)
        if self.cached:
            said["usage"]["prompt_tokens_details"] = {"cached_tokens": int(prompt * self.cached)}
        return whole(said)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def engines(upstream: Upstream, *names: str) -> list[Engine]:
    """One for each name, as new."""
    return [Engine(upstream, name) for name in names]


def table(routes: dict[str, Any], **more: Any) -> str:
    """A routing table."""
    return json.dumps({"routes": routes, **more})


def talk(model: str, topic: str, turns: int = 1, system: str | None = None, **fields: Any) -> dict[str, Any]:
    """The call for the answer to the last of so many turns of a conversation."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": topic})
    for turn in range(1, turns):
        messages += [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": f"{topic}, turn {turn}"}]
    return {"model": model, "messages": messages, **fields}


def text(tokens: int, seed: str = "words") -> str:
    """A text of so many tokens that begins with `seed`."""
    return (seed + " ").ljust(tokens * BYTES_PER_TOKEN, "x")


def served(gateway: GatewayProcess, body: dict[str, Any], key: str, **options: Any) -> str:
    """The target that answered a call, which must be answered."""
    reply = ask(gateway, body, key, **options)
    assert reply.status == 200, reply
    return where(reply)


def where(reply: Reply) -> str:
    """The target that an answer came from."""
    return reply.header("x-trunkline-target") or ""


def send(gateway: GatewayProcess, body: dict[str, Any], key: str) -> Wire:
    """A call whose answer is not waited for."""
    opened = Wire(gateway.port)
    opened.socket.settimeout(40)
    opened.send(request(body, key))
    return opened


@contextmanager
def sent(gateway: GatewayProcess, bodies: Sequence[dict[str, Any]], key: str) -> Iterator[list[Wire]]:
    """Calls whose answers are not waited for, and whose clients are gone when the block ends."""
    with ExitStack() as stack:
        opened = []
        for body in bodies:
            opened.append(send(gateway, body, key))
            stack.callback(opened[-1].leave)
        yield opened
