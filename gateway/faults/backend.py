"""The fake backend at work: it listens, answers in its dialect, misbehaves as ordered, and counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from msgspec import Struct

from gateway.faults.answer import Act, Answer, Pause, Refuse, Step, Token, whole
from gateway.faults.engine import Shape, TimedEngine
from gateway.faults.openai import OpenAI, Served, State
from gateway.faults.orders import BadOrder, Ordered, Orders, parse
from gateway.faults.paced import PacedVLLM
from gateway.faults.tgi import TGI
from gateway.faults.vllm import VLLM
from gateway.faults.vocabulary import Spoiled
from gateway.faults.wire import Connection, HttpRequest

DIALECTS: Final[dict[str, type[OpenAI]]] = {kind.name: kind for kind in (VLLM, TGI, OpenAI)}
CONTROL: Final = "/fake"
"""GET tells what happened so far, POST {"fault": SPEC} sets the default fault, POST {"engine": "stop"} stops the engine
alone: /health and /metrics answer as before."""
ENGINE: Final = {"stop": True, "go": False}

AWAKE_SECONDS: Final = 0.02
"""Between two looks whether the server is awake again."""


class Told(Struct):
    """One request that was answered, or not."""

    number: int
    method: str
    path: str
    stream: bool
    fault: str
    outcome: str = ""
    """answered, stalls, cut, reset, dies, refused; "client left" wins over all of them."""
    events: int = 0
    """Pieces of the body that were sent."""
    seconds: float = 0.0


class FakeBackend:
    """A server in this loop; `told` is called with each call once it is over, `died` instead of ending the process.

    With `engine` it speaks vLLM's dialect at that engine's pace, whatever `dialect` says.
    """

    def __init__(
        self,
        dialect: str,
        served: Served,
        orders: Orders,
        *,
        told: Callable[[Told], None] = lambda _: None,
        died: Callable[[], None] | None = None,
        engine: Shape | None = None,
    ) -> None:
        self.state = State(started=time.time())
        self.engine = None if engine is None else TimedEngine(engine)
        self.dialect = (
            DIALECTS[dialect](served, self.state) if self.engine is None else PacedVLLM(served, self.state, self.engine)
        )
        self.orders, self._told, self._died = orders, told, died or self._vanish
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._returning: asyncio.TimerHandle | asyncio.Task[None] | None = None
        self._address = ("127.0.0.1", 0)
        self.accepted = 0
        """Connections so far."""

    async def open(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen; returns the port. Raises `OSError`."""
        self._address = (host, port)
        self._server = await asyncio.get_running_loop().create_server(self._connected, host, port)
        self._address = (host, self._server.sockets[0].getsockname()[1])
        return self._address[1]

    async def close(self) -> None:
        """Stop listening and drop all connections."""
        if self._returning is not None:
            self._returning.cancel()
        if self._server is not None:
            self._server.close()
        if self.engine is not None:
            self.engine.close()
        await asyncio.gather(*(connection.finish() for connection in list(self._connections)))
        await asyncio.sleep(0)  # in which the sockets are closed

    def _connected(self) -> Connection:
        self.accepted += 1
        return Connection(self._serve, self._connections)

    async def _serve(self, connection: Connection, request: HttpRequest) -> None:
        path = request.path.partition("?")[0]
        if path == CONTROL:
            return await self._send(connection, self._control(request), Told(0, request.method, path, False, ""))
        is_call = request.method == "POST" and path in self.dialect.calls
        self.state.calls += is_call
        answer, ordered = self._answer(request, is_call=is_call)
        told = Told(self.state.calls, request.method, path, answer.streamed, ",".join(map(str, ordered)))
        if not is_call:
            return await self._send(connection, answer, told)
        began = time.monotonic()
        self.state.running += 1
        try:
            while self.state.asleep:
                await connection.pause(AWAKE_SECONDS)
            await self._send(connection, answer, told)
        except ConnectionError:
            if told.outcome in ("", Act.STALL.value):
                told.outcome = "client left"
                self.state.aborted += 1
            raise
        finally:
            if answer.turn is not None:
                answer.turn.leave()
            self.state.running -= 1
            self.state.completion_tokens += min(answer.tokens, told.events) if answer.streamed else answer.tokens
            told.seconds = time.monotonic() - began
            self._told(told)

    def _answer(self, request: HttpRequest, *, is_call: bool) -> tuple[Answer, tuple[Ordered, ...]]:
        try:
            ordered = self.orders.of(request, is_call=is_call)
        except BadOrder as error:
            return self.dialect.error(400, str(error), "x_fault"), ()
        call = Spoiled(self.dialect.answer(request), self.dialect, self.orders.chance)
        for each in ordered:
            each.fault.spoil(call) if each.fault.value is None else each.fault.spoil(call, each.value)
        return call.answer, ordered

    async def _send(self, connection: Connection, answer: Answer, told: Told) -> None:
        for step in answer.before:
            await self._do(connection, step, told)
        if answer.turn is not None:
            await answer.begin(answer.turn, connection.wait)
        await connection.send(answer.head())
        for step in answer.framed():
            await self._do(connection, step, told)
            told.events += isinstance(step, bytes)
        await connection.send(answer.tail)
        told.outcome = "answered"
        if answer.closes:
            connection.cut()
        if answer.lonely is not None:
            asyncio.get_running_loop().call_later(answer.lonely, connection.cut)

    async def _do(self, connection: Connection, step: Step, told: Told) -> None:
        if isinstance(step, bytes):
            return await connection.send(step)
        if isinstance(step, Pause):
            return await connection.pause(step.seconds)
        if isinstance(step, Token):
            return await step.turn.until(step.number, connection.wait)
        told.outcome = step.value if isinstance(step, Act) else "refused"
        if isinstance(step, Refuse):
            self._refuse(step.seconds)
        elif step is Act.STALL:
            await connection.stall()
        elif step is Act.DIE:
            self._died()
        if step is Act.CUT:
            connection.cut()
        else:
            connection.reset()
        raise ConnectionAbortedError

    def _refuse(self, seconds: float) -> None:
        """Stop listening, and drop idle connections: a pooled one would not notice."""
        self._stop_listening(lambda connection: not connection.busy)
        loop = asyncio.get_running_loop()
        self._returning = loop.call_later(seconds, self._listen_again)

    def _listen_again(self) -> None:
        async def listen() -> None:
            await self.open(*self._address)

        self._returning = asyncio.get_running_loop().create_task(listen())

    def _vanish(self) -> None:
        """As if the process had died, for servers that have none of their own."""
        self._stop_listening(lambda _: True)

    def _stop_listening(self, drops: Callable[[Connection], bool]) -> None:
        if self._server is not None:
            self._server.close()
        for connection in [each for each in self._connections if drops(each)]:
            connection.reset()

    def _control(self, request: HttpRequest) -> Answer:
        if request.method == "POST":
            try:
                body = request.json()
                if (engine := body.get("engine")) is None:
                    self.orders.default = parse(body["fault"])
                elif self.engine is None or engine not in ENGINE:
                    return whole({"error": f"expected --engine, and one of {', '.join(ENGINE)}"}, 400)
                else:
                    self.engine.stop(ENGINE[engine])
            except BadOrder as error:
                return whole({"error": str(error)}, 400)
            except (ValueError, KeyError, TypeError, AttributeError):
                return whole({"error": 'expected {"fault": "stall=3"} or {"engine": "stop"}'}, 400)
        return whole(self.tells())

    def tells(self) -> dict[str, Any]:
        """What happened so far."""
        state = self.state
        return {
            "calls": state.calls,
            "running": state.running,
            "aborted": state.aborted,
            "connections": len(self._connections),
            "accepted": self.accepted,
            "prompt_tokens": state.prompt_tokens,
            "completion_tokens": state.completion_tokens,
            "asleep": state.asleep,
            "fault": ",".join(map(str, self.orders.default)),
            **({} if self.engine is None else {"engine": self.engine.tells()}),
        }
