"""Every fault over real sockets: what its client sees, and what the server tells of it."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.faults.backend import FakeBackend, Told
from gateway.faults.engine import Shape
from gateway.faults.openai import Served
from gateway.faults.orders import Entry, Orders
from gateway.faults.vocabulary import FAULTS
from gateway.store.redis.answer_timer import in_time

EVENTS = 8
"""Of a good stream of five words: the role, the words, the end, [DONE]."""


class Seen:
    """What came back of one call: `end` is "kept" when the connection is still open, "closed", "reset", "silent"."""

    def __init__(self, raw: bytes, end: str) -> None:
        self.raw, self.end = raw, end
        head, _, self.rest = raw.partition(b"\r\n\r\n")
        self.head = head.decode("latin-1").lower()
        self.status = int(self.head.split()[1]) if head else 0

    @property
    def body(self) -> bytes:
        """Without chunks."""
        if "transfer-encoding: chunked" not in self.head:
            return self.rest
        made, rest = b"", self.rest
        while rest and (size := int(rest.partition(b"\r\n")[0], 16)):
            rest = rest.partition(b"\r\n")[2]
            made, rest = made + rest[:size], rest[size + 2 :]
        return made

    @property
    def whole(self) -> bool:
        return self.rest.endswith(b"0\r\n\r\n")


class Place:
    def __init__(self, backend: FakeBackend, port: int, told: list[Told]) -> None:
        self.backend, self.port, self.told = backend, port, told

    async def ask(self, fault: str = "", *, stream: bool = True, path: str = "/v1/chat/completions") -> Seen:
        """One call, read until the answer is whole, the connection ends, or nothing comes for a while."""
        body = {"messages": [{"content": "Hi"}], "stream": stream, **({"x_fault": fault} if fault else {})}
        raw = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"POST %b HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (path.encode(), len(raw), raw))
        seen, end = b"", "kept"
        try:
            while not _complete(seen):
                piece = await in_time(reader.read(65536), 0.3)
                if not piece:
                    end = "closed"
                    break
                seen += piece
        except TimeoutError:
            end = "silent"
        except ConnectionResetError:
            end = "reset"
        writer.transport.abort()
        return Seen(seen, end)

    async def last(self) -> Told:
        """The last call, once it is over."""
        async with asyncio.timeout(30):
            while not self.told or self.backend.state.running:
                await asyncio.sleep(0.001)
        return self.told[-1]


def _complete(raw: bytes) -> bool:
    head, _, rest = raw.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" in head:
        return rest.endswith(b"0\r\n\r\n")
    length = [line for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
    return bool(length) and len(rest) >= int(length[0].split(b":")[1])


@asynccontextmanager
async def place(
    dialect: str = "vllm", orders: Orders | None = None, engine: Shape | None = None, **served: Any
) -> AsyncIterator[Place]:
    told: list[Told] = []
    serves = Served(**{"tokens": 5, **served})
    backend = FakeBackend(dialect, serves, orders or Orders(), told=told.append, engine=engine)
    port = await backend.open()
    try:
        yield Place(backend, port, told)
    finally:
        await backend.close()


Check = Callable[[Seen], bool]
STREAMED: dict[str, Check] = {
    "none": lambda seen: seen.whole and seen.body.count(b"data: ") == EVENTS,
    "hang": lambda seen: (seen.raw, seen.end) == (b"", "silent"),
    "refuse=0.05": lambda seen: (seen.raw, seen.end) == (b"", "reset"),
    "late=0.01": lambda seen: seen.whole,
    "stall=2": lambda seen: (seen.body.count(b"data: "), seen.end) == (2, "silent"),
    "cut=2": lambda seen: (seen.body.count(b"data: "), seen.end, seen.whole) == (2, "closed", False),
    "cut=0": lambda seen: (seen.body, seen.status, seen.end) == (b"", 200, "closed"),
    "reset=2": lambda seen: seen.end == "reset" and not seen.whole,
    "die=2": lambda seen: seen.end == "reset",
    "die": lambda seen: (seen.raw, seen.end) == (b"", "reset"),
    "cut_bytes=300": lambda seen: (len(seen.body), seen.end) == (300, "closed"),
    "short=2": lambda seen: seen.whole and seen.body.count(b"data: ") == 2,
    "no_done": lambda seen: seen.whole and b"[DONE]" not in seen.body and b'"stop"' in seen.body,
    "no_finish": lambda seen: seen.whole and b"[DONE]" in seen.body and b'"stop"' not in seen.body,
    "status=503": lambda seen: seen.status == 503 and b'"error"' in seen.body,
    "500": lambda seen: seen.status == 500,
    "retry_after=1e9": lambda seen: seen.status == 429 and "retry-after: 1e9" in seen.head,
    "status=503,retry_after=7": lambda seen: seen.status == 503 and "retry-after: 7" in seen.head,
    "flap=1": lambda seen: seen.status == 500,
    "flap=0": lambda seen: seen.whole,
    "redirect=http://127.0.0.1:1/x": lambda seen: seen.status == 307 and "location: http://127.0.0.1:1/x" in seen.head,
    "error200": lambda seen: (
        seen.status == 200 and seen.body.startswith(b'data: {"error"') and seen.body.endswith(b"[DONE]\n\n")
    ),
    "error_then_done=2": lambda seen: (
        seen.whole and seen.body.count(b"data: ") == 4 and b"EngineCore" in seen.body and b"[DONE]" in seen.body
    ),
    "html": lambda seen: "content-type: text/html" in seen.head and seen.status == 200,
    "invalid_json": lambda seen: seen.whole and b'{"choices": [{"ind\n\n' in seen.body,
    "malformed=json": lambda seen: b'"index": 0,\n\n' in seen.body,
    "malformed=prefix": lambda seen: seen.body.count(b"dta: ") == 1,
    "malformed=bad_utf8": lambda seen: b"\xff\xfe" in seen.body,
    "malformed=utf8": lambda seen: seen.body.decode().count("é") == 5,
    "malformed=bom": lambda seen: seen.body.startswith(b"\xef\xbb\xbfdata: "),
    "malformed=crlf": lambda seen: seen.body.count(b"\r\n\r\n") == EVENTS,
    "malformed=mixed": lambda seen: b"\r\rdata" in seen.body and b"\n\ndata" in seen.body and b"\r\n\r\n" in seen.body,
    "malformed=comments": lambda seen: seen.body.count(b": keep-alive\n\n") == EVENTS,
    "huge_line=200000": lambda seen: max(map(len, seen.body.split(b"\n"))) > 190_000 and seen.whole,
    "trickle": lambda seen: seen.whole and seen.rest.startswith(b"1\r\nd\r\n1\r\na\r\n"),
    "slow=0.01": lambda seen: seen.whole,
    "wrong_length=50": lambda seen: seen.end == "closed" and b"[DONE]" in seen.body,
    "until_close": lambda seen: seen.end == "closed" and "connection: close" in seen.head and b"[DONE]" in seen.body,
    "until_close,cut=2": lambda seen: seen.end == "closed" and seen.body.count(b"data: ") == 2,
    "close_idle": lambda seen: seen.whole,
    "headers": lambda seen: "set-cookie" in seen.head and seen.whole,
    "gzip": lambda seen: gzip.decompress(seen.body).endswith(b"[DONE]\n\n"),
}
WHOLE: dict[str, Check] = {
    "none": lambda seen: json.loads(seen.body)["choices"][0]["message"]["content"] == "w1 w2 w3 w4 w5",
    "stall": lambda seen: seen.status == 200 and seen.end == "silent" and len(seen.body) > 100,
    "cut": lambda seen: seen.status == 200 and seen.end == "closed",
    "reset": lambda seen: seen.end == "reset",
    "cut_bytes=9": lambda seen: (len(seen.body), seen.end) == (9, "closed"),
    "error200": lambda seen: seen.status == 200 and b'"error"' in seen.body,
    "invalid_json": lambda seen: seen.status == 200 and seen.end == "kept" and seen.body.startswith(b'{"id"'),
    "lie": lambda seen: json.loads(seen.body)["usage"]["prompt_tokens"] == -5,
    "lie=huge": lambda seen: json.loads(seen.body)["usage"]["completion_tokens"] == 10**15,
    "lie=text": lambda seen: json.loads(seen.body)["usage"]["total_tokens"] == "many",
    "no_usage": lambda seen: "usage" not in json.loads(seen.body),
    "trickle=7": lambda seen: json.loads(seen.body)["object"] == "chat.completion",
    "slow=0.01": lambda seen: seen.status == 200,
    "wrong_length=-5": lambda seen: len(seen.body) > 5,
    "gzip_bomb=2MiB": lambda seen: len(seen.body) < 10_000 and len(gzip.decompress(seen.body)) > 2 * 1024**2,
}


def test_every_fault_is_looked_at_here() -> None:
    named = {part.partition("=")[0] for fault in (*STREAMED, *WHOLE) for part in fault.split(",")}
    assert named == set(FAULTS)


@pytest.mark.parametrize("fault", STREAMED)
async def test_a_stream_is_spoiled(fault: str) -> None:
    async with place() as here:
        seen = await here.ask(fault)
        assert STREAMED[fault](seen), (seen.raw[:1000], seen.end)


@pytest.mark.parametrize("fault", WHOLE)
async def test_a_whole_answer_is_spoiled(fault: str) -> None:
    async with place() as here:
        seen = await here.ask(fault, stream=False)
        assert WHOLE[fault](seen), (seen.raw[:1000], seen.end)


async def test_an_error_is_in_the_dialects_words() -> None:
    async with place("tgi") as here:
        seen = await here.ask("error200")
        assert json.loads(seen.body.splitlines()[0][6:])["error"]["http_status_code"] == 422
        assert json.loads((await here.ask("status=429")).body)["error_type"] == "overloaded"


async def test_a_refusing_server_comes_back() -> None:
    async with place() as here:
        await here.ask("refuse=0.1")
        with pytest.raises(ConnectionRefusedError):
            await here.ask()
        async with asyncio.timeout(30):
            while True:
                try:
                    assert (await here.ask()).whole
                    break
                except ConnectionRefusedError:
                    await asyncio.sleep(0.01)


async def test_a_client_that_leaves_is_told() -> None:
    async with place(interval=0.05) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        raw = b'{"messages": [], "stream": true}'
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(raw), raw))
        await reader.readuntil(b"w1")
        assert here.backend.tells()["running"] == 1
        writer.transport.abort()
        told = await here.last()
        assert told.outcome == "client left" and 2 <= told.events < EVENTS
        assert here.backend.tells()["aborted"] == 1 and here.backend.tells()["completion_tokens"] < 5


async def test_calls_wait_while_it_sleeps() -> None:
    async with place() as here:
        await here.ask(path="/sleep")
        assert (await here.ask()).end == "silent"
        waiting = asyncio.create_task(here.ask())
        await here.ask(path="/wake_up")
        assert (await waiting).whole


async def test_waking_up_takes_its_time() -> None:
    async with place(wake=0.1) as here:
        await here.ask(path="/sleep")
        began = time.monotonic()
        assert (await here.ask(path="/wake_up")).status == 200
        assert time.monotonic() - began >= 0.1 and not here.backend.state.asleep


async def test_a_connection_serves_call_after_call_until_it_is_closed_idle() -> None:
    async with place() as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        head = b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
        for fault in (b"none", b"close_idle"):
            raw = b'{"prompt": "Hi", "x_fault": "%b"}' % fault
            writer.write(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(raw), raw))
            assert b"w5" in await reader.readuntil(b"}}")
        assert await reader.read() == b""
        writer.transport.abort()


async def test_the_default_fault_is_changed_while_it_runs() -> None:
    async with place(orders=Orders("hang")) as here:
        assert (await here.ask()).end == "silent"
        answer = await _control(here.port, b'{"fault": "none"}')
        assert answer["fault"] == "none" and answer["calls"] == 1
        assert (await here.ask()).whole
        assert "is no fault" in (await _control(here.port, b'{"fault": "nosuch"}'))["error"]
        assert "expected" in (await _control(here.port, b"[]"))["error"]


async def test_probes_fail_only_where_a_script_says_so() -> None:
    async with place(orders=Orders("hang", [Entry("status=503", path="/ping")])) as here:
        assert (await here.ask(path="/ping")).status == 503
        assert (await here.ask(path="/wake_up")).status == 200


async def test_a_wrong_order_is_answered() -> None:
    async with place() as here:
        seen = await here.ask("nosuch")
        assert seen.status == 400 and b"is no fault" in seen.body


async def _control(port: int, order: bytes) -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /fake HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(order), order))
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
    body = await reader.readexactly(int(length.split(b":")[1]))
    writer.transport.abort()
    return json.loads(body)


async def test_an_engine_is_stopped_while_its_server_answers_on() -> None:
    """Calls wait for it, and go on where they were."""
    async with place(engine=Shape(step=0.002, rate=1e6)) as here:
        assert (await here.ask()).whole
        stopped = await _control(here.port, b'{"engine": "stop"}')
        steps = stopped["engine"]["steps"]
        assert steps > 0 and stopped["fault"] == ""
        waiting = await here.ask()
        assert (waiting.end, waiting.whole) == ("silent", False)
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(b"GET /health HTTP/1.1\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n")
        told = b""
        while b"vllm:iteration_tokens_total_count" not in told:
            told += await reader.read(65536)
        writer.transport.abort()
        counted = re.search(rb"vllm:iteration_tokens_total_count\S* (\d+)", told)
        assert told.startswith(b"HTTP/1.1 200 ") and counted is not None and int(counted[1]) == steps
        assert (await _control(here.port, b'{"engine": "stop"}'))["engine"]["steps"] == steps, "twice is once"
        assert (await _control(here.port, b'{"engine": "go"}'))["engine"]["steps"] >= steps
        assert (await here.ask()).whole


@pytest.mark.parametrize("order", [b'{"engine": "halt"}', b'{"engine": true}', b'{"engine": ["stop"]}'])
async def test_an_order_to_an_engine_that_is_none_is_refused(order: bytes) -> None:
    async with place(engine=Shape()) as here:
        assert "expected" in (await _control(here.port, order))["error"]
    async with place() as here:
        assert "expected --engine" in (await _control(here.port, b'{"engine": "stop"}'))["error"]
