"""The fake backend at an engine's pace, over real sockets: what it counts, not how long it takes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from backends.vllm import VLLM
from gateway.faults.backend import FakeBackend
from gateway.faults.engine import Shape
from gateway.faults.openai import Served
from gateway.faults.orders import Orders
from gateway.faults.paced import PIECE, TOKEN, segments

FAST = Shape(kv_tokens=10_240, rate=1e6, step=0.001, write=0.0, calls=1)
LONG = "x" * (10 * PIECE * TOKEN)


class Engine:
    def __init__(self, backend: FakeBackend, session: aiohttp.ClientSession) -> None:
        self.backend, self.session = backend, session
        assert backend.engine is not None
        self.engine = backend.engine

    async def ask(self, text: str = "Hi", **more: Any) -> tuple[int, str]:
        body = {"messages": [{"role": "user", "content": text}], **more}
        async with self.session.post("/v1/chat/completions", json=body) as answer:
            return answer.status, await answer.text()

    async def usage(self, text: str, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((await self.ask(text, **more))[1])["usage"]
        return found

    async def metrics(self) -> str:
        async with self.session.get("/metrics") as answer:
            return await answer.text()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not true():
                await asyncio.sleep(0.001)


@asynccontextmanager
async def paced(shape: Shape = FAST, **served: Any) -> AsyncIterator[Engine]:
    backend = FakeBackend("vllm", Served(**{"tokens": 5, **served}), Orders(), engine=shape)
    port = await backend.open()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            yield Engine(backend, session)
    finally:
        await backend.close()


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def test_equal_beginnings_have_equal_blocks() -> None:
    one, other = list(segments(LONG + "a")), list(segments(LONG + "b"))
    assert one[:10] == other[:10] and one[10] != other[10] and len(one) == 11
    assert len({name for name, _ in one}) == 11


async def test_the_second_call_finds_its_prefix_cached() -> None:
    async with paced() as fake:
        first = await fake.usage(LONG)
        again = await fake.usage(LONG + "and more")
    assert (first["prompt_tokens"], first["prompt_tokens_details"]["cached_tokens"]) == (10 * PIECE, 0)
    assert (again["prompt_tokens"], again["prompt_tokens_details"]["cached_tokens"]) == (10 * PIECE + 2, 10 * PIECE)


async def test_a_stream_tells_what_was_cached() -> None:
    more = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 7, "ignore_eos": True}
    async with paced() as fake:
        await fake.ask(LONG)
        said = events((await fake.ask(LONG, **more))[1])
    assert said[-1]["usage"] == {
        "prompt_tokens": 10 * PIECE, "completion_tokens": 7, "total_tokens": 10 * PIECE + 7,
        "prompt_tokens_details": {"cached_tokens": 10 * PIECE - 1},
    }  # fmt: skip
    assert sum(bool(each["choices"] and each["choices"][0]["delta"].get("content")) for each in said) == 7
    assert said[-2]["choices"][0]["finish_reason"] == "length"


async def test_a_streams_events_come_as_the_engine_writes_them() -> None:
    async with paced() as fake:
        body = {"messages": [{"content": "Hi"}], "stream": True, "max_tokens": 30, "ignore_eos": True}
        async with fake.session.post("/v1/chat/completions", json=body) as answer:
            words = (line async for line in answer.content if b'"content":"w' in line or b'"content":" w' in line)
            seen = [fake.engine.written async for _ in words]
    assert len(seen) == 30 and seen[0] < 30 <= seen[-1] + 5
    assert all(written >= number for number, written in enumerate(seen, 1))


async def test_calls_that_wait_are_told_and_one_whose_client_leaves_is_aborted() -> None:
    endless = {"max_tokens": 100_000, "ignore_eos": True, "stream": True}
    async with paced(context=10**6, shape=Shape(step=0.001, kv_tokens=640_000, calls=1)) as fake:
        calls = [asyncio.create_task(fake.ask(**endless)) for _ in range(3)]
        await fake.until(lambda: len(fake.engine.waiting) == 2)
        gauges = VLLM().gauges(await fake.metrics())
        for call in calls:
            call.cancel()
        await fake.until(lambda: not fake.engine.running and not fake.engine.waiting)
        await fake.until(lambda: fake.backend.state.aborted == 3)
    assert gauges is not None and (gauges.running, gauges.waiting) == (1, 2)
    assert gauges.kv_tokens == 640_000 and gauges.kv_usage is not None and gauges.kv_usage > 0.1


async def test_metrics_are_the_engines() -> None:
    async with paced() as fake:
        await fake.ask(LONG, max_tokens=3)
        await fake.ask(LONG, max_tokens=3)
        text = await fake.metrics()
        gauges, counters, steps = VLLM().gauges(text), VLLM().counters(text), fake.engine.steps
    assert gauges is not None and (gauges.prefix_queries, gauges.prefix_hits) == (20 * PIECE, 10 * PIECE - 1)
    assert counters == (20 * PIECE, 6)
    assert f'vllm:iteration_tokens_total_count{{engine="0",model_name="fake"}} {float(steps)}' in text and steps


async def test_a_prompt_beyond_the_context_is_refused_before_the_engine() -> None:
    async with paced(context=100) as fake:
        assert (await fake.ask(LONG, max_tokens=1))[0] == 400
        assert fake.engine.steps == 0
        assert (await fake.ask("x" * 90 * TOKEN, max_tokens=10))[0] == 200


@pytest.mark.parametrize(("fault", "words"), [("cut=3", 2), ("short=3", 2)])
async def test_faults_still_spoil_it(fault: str, words: int) -> None:
    async with paced() as fake:
        body = {"messages": [{"content": "Hi"}], "stream": True, "x_fault": fault}
        text = b""
        try:
            async with fake.session.post("/v1/chat/completions", json=body) as answer:
                async for piece in answer.content.iter_any():
                    text += piece
        except aiohttp.ClientPayloadError:
            assert fault == "cut=3"
        assert sum(text.count(b'"content":"%bw' % glue) for glue in (b"", b" ")) == words
        await fake.until(lambda: not fake.engine.running)


async def test_a_call_that_fails_on_order_does_not_reach_the_engine() -> None:
    async with paced() as fake:
        assert (await fake.ask(x_fault="status=503"))[0] == 503
        assert fake.engine.steps == 0
