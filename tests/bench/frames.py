"""How many of our modules, functions and frames one call enters: `python tests/bench/frames.py [-v]`.

The real app in this process, on the local store, with a key that has limits in four dimensions and a route of two
targets, called over a connection without a socket; the targets are a stub on a real one. After a warm-up the same call
is made again and again. What is reported is what each of these calls entered, so that what the gateway does in the
background meanwhile (probes, gossip, the ledger's batches), be the machine ever so slow, is not counted.

A stream has 16 events. They come at once; or, paced, one by one: the stub writes the next when the gateway has passed
on the one before.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

import uvloop
from frame_count import ROOT, FrameCount

from gateway.http.connection import Connection
from gateway.http.listener import Listener

APP = "gateway.app:from_environment"
EVENTS = 16
WARM_UP, CALLS = 30, 20
REST_SECONDS = 0.03
"""Between calls, in which what the one before has left to the background is done."""
TURNS_AFTER = 8
STEP_SECONDS, READY_SECONDS = 0.5, 20.0
LIMITS = ("--rpm", "100000000", "--concurrency", "100000", "--tpm", "100000000000")
BUDGET = ("--budget", "month:tokens=1000000000000")
MODEL = "counted"
USAGE = {"prompt_tokens": 20, "completion_tokens": EVENTS, "total_tokens": 20 + EVENTS}
Kind = Literal["whole", "stream", "paced"]
BUDGETS = Path(__file__).with_suffix(".json")
"""What a call may enter at most, by kind of answer; a test holds it."""


class Stub:
    """A model server that answers on a socket."""

    def __init__(self) -> None:
        self.passed_on = asyncio.Event()
        self.is_paced = False
        """The next event of a stream is written when the one before was passed on."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One keep-alive connection."""
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
                body = await reader.readexactly(int(length or 0))
                if b'"stream":true' in body:
                    await self._stream(writer)
                else:
                    writer.write(_answer({"data": [{"id": MODEL}]} if head.startswith(b"GET") else _completion()))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        events = b""
        for number in range(EVENTS):
            self.passed_on.clear()
            delta = {"content": " word", **({} if number else {"role": "assistant"})}
            event = _chunk(choices=[{"index": 0, "delta": delta, "finish_reason": None}])
            if self.is_paced:
                writer.write(event)
                await asyncio.wait_for(self.passed_on.wait(), STEP_SECONDS)
            else:
                events += event
        finish = _chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
        writer.write(events + finish + _chunk(choices=[], usage=USAGE) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def _answer(payload: Any) -> bytes:
    body = json.dumps(payload).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def _completion() -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice], "usage": USAGE}


def _chunk(**fields: Any) -> bytes:
    event = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": MODEL, **fields}
    data = b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


class Written(asyncio.Transport):
    """The client's side of a connection: keeps what is written, and tells the stub that something was passed on."""

    def __init__(self, stub: Stub) -> None:
        super().__init__({"peername": ("127.0.0.1", 40000), "sockname": ("127.0.0.1", 8080)})
        self._stub = stub
        self.answer = bytearray()

    def write(self, data: Any) -> None:
        self.answer += data
        self._stub.passed_on.set()

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def is_closing(self) -> bool:
        return False


class Calls:
    """Calls of one kind, on one connection."""

    def __init__(self, app: Any, stub: Stub, secret: str, kind: Kind) -> None:
        self._app, self._stub, self._kind = app, stub, kind
        self._written = Written(stub)
        self._connection = Connection(Listener(app.serve, READY_SECONDS))
        self._connection.connection_made(self._written)
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 64}
        self._body = json.dumps(body | ({} if kind == "whole" else {"stream": True}), separators=(",", ":")).encode()
        self._request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer %b\r\n" % (
            secret.encode()
        ) + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(self._body), self._body)

    async def one(self) -> FrameCount:
        """What one call enters, to the end of what it leaves to be done. Raises `RuntimeError` if it was refused."""
        count = FrameCount()
        with count.counting():
            await self._ask()
            for _ in range(TURNS_AFTER):
                await asyncio.sleep(0)
        return count

    async def counted(self) -> FrameCount:
        """What every call enters once everything is warm."""
        self._stub.is_paced = self._kind == "paced"
        for _ in range(WARM_UP):
            await self.one()
        counts = []
        for _ in range(CALLS):
            await asyncio.sleep(REST_SECONDS)
            counts.append(await self.one())
        return FrameCount.fewest(counts)

    async def _ask(self) -> None:
        answer = self._written.answer
        answer.clear()
        self._connection.data_received(self._request)
        while self._connection.task is not None:
            await asyncio.wait([self._connection.task])
        if not answer.startswith(b"HTTP/1.1 200") or (b'"usage"' not in answer and b"[DONE]" not in answer):
            raise RuntimeError(f"the gateway answered {bytes(answer)!r}")


async def count(folder: Path) -> dict[Kind, FrameCount]:
    """By kind of answer; the gateway's state and table live in `folder`."""
    stub = Stub()
    server = await asyncio.start_server(stub.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    targets = "".join(
        f'      - {{name: {name}, backend: openai, url: "http://127.0.0.1:{port}/{name}"}}\n' for name in "ab"
    )
    (folder / "routing.yaml").write_text(f"routes:\n  {MODEL}:\n    targets:\n{targets}")
    os.environ |= {"TRUNKLINE_ROUTING": str(folder / "routing.yaml"), "TRUNKLINE_STATE": str(folder / "state")}
    secret = await asyncio.to_thread(_key)
    module, name = APP.split(":")
    app = getattr(importlib.import_module(module), name)()
    await app.open()
    try:
        return {kind: await Calls(app, stub, secret, kind).counted() for kind in get_args(Kind)}
    finally:
        await app.close()


def _key() -> str:
    """A key with four limits, made as an operator makes it."""
    command = [sys.executable, "-m", "gateway", "keys", "create", "--name", "counted", *LIMITS, *BUDGET, "--json"]
    made = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=READY_SECONDS)
    return str(json.loads(made.stdout)["secret"])


def counted() -> dict[Kind, FrameCount]:
    """Count in this process; what the gateway prints there, its records, is thrown away meanwhile."""
    for name in [name for name in os.environ if name.startswith("TRUNKLINE_")]:
        del os.environ[name]
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        with tempfile.TemporaryDirectory(prefix="frames-") as folder:
            return uvloop.run(count(Path(folder)))
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def figures(count: FrameCount) -> dict[str, int]:
    return {"modules": count.modules, "functions": count.functions, "frames": count.frames}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("-v", "--verbose", action="store_true", help="every function, in the order of the first entry")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    found = counted()
    if chosen.json:
        print(json.dumps({kind: figures(count) for kind, count in found.items()}))
        return
    for kind, count in found.items():
        numbers = ", ".join(f"{number} {name}" for name, number in figures(count).items())
        print(f"{kind}: {numbers}; {count.foreign} frames of other Python code")
        for function, calls in count.entered.items() if chosen.verbose else ():
            print(f"  {calls:4}  {'  ' * count.depths[function]}{function.module}  {function.name}")


if __name__ == "__main__":
    main()
