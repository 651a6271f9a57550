"""Shadow calls over real connections: what is asked, what is compared, and that nothing gets out or stays behind."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from harness.upstream import Act, Gate, Target, Upstream, event, scripted_upstream, stream, whole

from backends.api import Call
from backends.api import Target as Address
from backends.body import Body
from backends.capabilities import Capabilities
from backends.openai import OpenAI
from gateway.config import Timeouts, parse_table
from gateway.upstream import AnswerLimits, Forwarder
from gateway.upstream.shadow import Comparison, Mirror, Seen, Shadow, chosen

PRIMARY = Seen(status=200, tokens=2, ttft=0.1, seconds=0.2)
STREAM = b'{"model":"m","messages":[],"stream":true}'
HEADERS = {b"authorization": b"Bearer tl_secret", b"x-team": b"search", b"x-rank": b"3"}
WHOLE = b'{"model":"m","messages":[]}'


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with scripted_upstream() as server:
        yield server


class World:
    """A shadow whose results are kept."""

    def __init__(self, target: Target, forwarder: Forwarder, most: int = 1000) -> None:
        self.target = target
        self.compared: list[tuple[str, str, Comparison]] = []
        self.dropped: list[tuple[str, str]] = []
        self.arrived = asyncio.Event()
        self.shadow = Shadow({}, forwarder, self._compared, self._dropped, time.monotonic, most=most)
        self.mirror()

    def mirror(self, share: float = 1.0, concurrency: int = 2, timeouts: Timeouts | None = None) -> None:
        address = Address("shadow-1", self.target.url, "shadow-model", "shadow-key")
        mirror = Mirror(address, Capabilities.of(OpenAI()), timeouts or Timeouts(), share, concurrency)
        self.shadow.mirrors = {"m": mirror}

    def _compared(self, route: str, target: str, comparison: Comparison) -> None:
        self.compared.append((route, target, comparison))
        self.arrived.set()

    def _dropped(self, route: str, target: str) -> None:
        self.dropped.append((route, target))

    def ended(self, body: bytes = WHOLE, primary: Seen = PRIMARY, call_id: str = "tl-1", route: str = "m") -> None:
        self.shadow.ended(call(body, call_id), HEADERS, route, primary)

    async def result(self) -> Comparison:
        await self.arrived.wait()
        self.arrived.clear()
        ((route, target, comparison),) = self.compared
        assert (route, target) == ("m", "shadow-1")
        self.compared.clear()
        return comparison


def call(body: bytes = WHOLE, call_id: str = "tl-1") -> Call:
    return Call(call_id, "chat/completions", "m", Body(body), stream=body is STREAM)


@pytest.fixture
async def world(upstream: Upstream) -> AsyncIterator[World]:
    target = upstream.target("shadow")
    target.restore()
    forwarder = Forwarder(AnswerLimits(10_000, 10_000))
    world = World(target, forwarder)
    yield world
    await world.shadow.close()
    await forwarder.close()
    assert world.shadow.bytes == 0


@pytest.mark.parametrize("body", [WHOLE, STREAM], ids=["whole", "stream"])
async def test_a_call_is_asked_again_and_compared(world: World, body: bytes) -> None:
    world.ended(body)
    found = await world.result()
    assert found.primary == PRIMARY and found.shadow.status == 200 and found.shadow.tokens == 2
    assert found.same_status and found.tokens == 0
    assert found.shadow.ttft is not None and found.ttft == pytest.approx(found.shadow.ttft - 0.1)
    assert 0 < found.shadow.ttft <= found.shadow.seconds
    asked = world.target.calls[0].json()
    assert asked["model"] == "shadow-model" and asked.get("stream", False) is (body is STREAM)


async def test_only_the_targets_own_credential_goes_along(world: World) -> None:
    world.ended()
    await world.result()
    (received,) = world.target.calls
    headers = {name.lower(): value for name, value in received.headers}
    assert headers.pop("authorization") == "Bearer shadow-key"
    assert headers.pop("x-request-id") == "tl-1-shadow"
    assert set(headers) <= {"host", "content-type", "content-length", "accept-encoding"}


async def test_headers_that_the_route_forwards_go_along(upstream: Upstream) -> None:
    target = upstream.target("forwarding")
    shadow = {"share": 1, "target": {"name": "shadow-1", "backend": "openai", "url": target.url}}
    served = [{"name": "t", "backend": "openai", "url": "http://127.0.0.1:9"}]
    route = {"targets": served, "shadow": shadow, "forward_headers": ["x-rank", "x-absent"]}
    forwarder = Forwarder(AnswerLimits(10_000, 10_000))
    forwarder.origins.bind(parse_table(json.dumps({"routes": {"m": route}}))[0])
    world = World(target, forwarder)
    world.ended()
    await world.result()
    (received,) = target.calls
    assert received.header("x-rank") == "3" and received.header("authorization") == "Bearer shadow-key"
    assert received.header("x-team") is None
    await world.shadow.close()
    await forwarder.close()


async def test_tokens_are_counted_where_usage_is_missing(world: World) -> None:
    world.target.script = stream(event("a"), event("b"), event("c"), event(finish="stop"), b"data: [DONE]\n\n")
    world.ended(STREAM)
    assert (await world.result()).tokens == 2  # the last event counts, too
    world.target.script = whole({"choices": []})
    world.ended()
    found = await world.result()
    assert found.shadow.tokens is None and found.tokens is None and found.same_status


async def test_the_first_token_is_timed_and_not_the_end(world: World) -> None:
    gate = Gate()
    world.target.script = stream(event("a"), gate, event("b"), event(finish="stop"), b"data: [DONE]\n\n")
    world.ended(STREAM)
    await asyncio.to_thread(world.target.wait_for_calls)
    opened = time.monotonic()
    await asyncio.sleep(0.1)  # not for order: the answer must take a while
    gate.open()
    found = await world.result()
    assert found.shadow.ttft is not None
    assert found.shadow.seconds - found.shadow.ttft > 0.05 and time.monotonic() - opened >= 0.1


@pytest.mark.parametrize(
    ("script", "status"),
    [
        (whole({"error": "no"}, 422), 422),
        (whole(b"nonsense"), 502),
        (whole({}, 503), 503),
        ([Act.RESET], 502),
        (stream(event("a"), Act.CUT, end=False), 502),
        ([Act.STALL], 504),
        (stream(event("a"), Act.STALL), 504),
    ],
    ids=["refused", "nonsense", "busy", "reset", "cut", "stalled", "stalled stream"],
)
async def test_what_goes_wrong_is_a_status(world: World, script: Any, status: int) -> None:
    patience = 0.2 if status == 504 else 10.0
    world.mirror(timeouts=Timeouts(first_output=patience, whole=patience, idle=patience))
    world.target.script = script
    world.ended(STREAM if b"event-stream" in (script[0] if isinstance(script[0], bytes) else b"") else WHOLE)
    found = await world.result()
    assert found.shadow.status == status and not found.same_status
    assert found.tokens is None and found.ttft is None
    assert len(world.target.calls) == 1, "it was tried again"


async def test_a_failure_on_both_sides_is_the_same_status(world: World) -> None:
    world.target.script = whole({"error": "no"}, 422)
    world.ended(primary=Seen(422, None, None, 0.1))
    assert (await world.result()).same_status


def test_only_answers_are_compared_further() -> None:
    failed = Comparison(Seen(422, 1, 0.1, 0.1), Seen(422, 2, 0.2, 0.2))
    assert failed.same_status and failed.tokens is None and failed.ttft is None
    answered = Comparison(Seen(200, 1, 0.5, 0.5), Seen(200, 3, 0.25, 1.0))
    assert answered.same_status and answered.tokens == 2 and answered.ttft == -0.25
    unknown = Comparison(Seen(200, None, None, 0.5), Seen(200, 3, 0.25, 1.0))
    assert unknown.tokens is None and unknown.ttft is None


async def test_what_is_not_to_be_mirrored_is_not(world: World) -> None:
    world.ended(route="another")
    world.ended(primary=Seen(499, None, None, 0.1))
    world.mirror(share=0.0)
    world.ended()
    world.mirror()
    world.ended(call_id="tl-2")
    await world.result()
    assert [received.header("x-request-id") for received in world.target.calls] == ["tl-2-shadow"]


async def test_calls_and_bytes_are_bounded_and_what_is_dropped_is_counted(world: World) -> None:
    gate = Gate()
    world.target.script = [gate, *whole({"choices": []})]
    for _ in range(5):
        world.ended()
    assert world.dropped == [("m", "shadow-1")] * 3 and world.shadow.bytes == 2 * len(WHOLE)
    world.mirror(concurrency=100)
    large = b'{"messages":[], "model":"%s"}' % (b"x" * (1000 - 2 * len(WHOLE)))
    world.ended(large)
    assert len(world.dropped) == 4
    gate.open()
    while len(world.compared) < 2:
        await world.arrived.wait()
        world.arrived.clear()
    world.compared.clear()
    await asyncio.sleep(0)  # the task ends after it has told
    assert world.shadow.bytes == 0
    world.ended(large)
    await world.result()


async def test_closing_ends_what_is_under_way(world: World) -> None:
    world.target.script = [Act.STALL]
    world.ended()
    received = await asyncio.to_thread(world.target.wait_for_calls)
    world.ended(call_id="tl-2")  # has not begun
    await world.shadow.close()
    assert len(asyncio.all_tasks()) == 1
    assert await asyncio.to_thread(received.closed.wait, 5)
    assert world.shadow.bytes == 0 and world.compared == []
    world.ended(call_id="tl-3")
    await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1 and world.dropped == []


async def test_the_call_is_forgotten_when_its_shadow_has_ended(world: World) -> None:
    class Name(str):
        """Can be watched, and lives as long as the call that has it."""

    name = Name("tl-1")
    held = weakref.ref(name)
    world.ended(STREAM, call_id=name)
    del name
    assert (await world.result()).same_status
    await asyncio.sleep(0)
    gc.collect()
    assert held() is None


async def test_every_exception_stays_inside(world: World, upstream: Upstream, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Forwarder):
        async def send(self, *_: Any) -> Any:
            raise RuntimeError("the text of a prompt")

    broken = Broken(AnswerLimits(10, 10))
    other = World(world.target, broken)
    with caplog.at_level(logging.ERROR):
        other.ended()
        assert (await other.result()).shadow.status == 500
    assert "RuntimeError" in caplog.text and "prompt" not in caplog.text

    def miscounts(*_: Any) -> None:
        other.arrived.set()
        raise ValueError("the text of a prompt")

    other.shadow = Shadow(other.shadow.mirrors, broken, miscounts, other._dropped, time.monotonic)
    with caplog.at_level(logging.ERROR):
        other.ended()
        await other.arrived.wait()
        await asyncio.sleep(0)
    assert other.shadow.bytes == 0
    assert "ValueError" in caplog.text and "prompt" not in caplog.text


async def test_a_stream_without_end_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.upstream.shadow.MAX_SECONDS", 0.2)
    world.target.script = stream(event("a"), Act.STALL)
    world.ended(STREAM)
    assert (await world.result()).shadow.status == 504


def test_a_share_is_a_share_and_always_the_same() -> None:
    ids = [f"tl-{number}" for number in range(20_000)]
    tenth = {one for one in ids if chosen(one, 0.1)}
    assert 0.09 < len(tenth) / len(ids) < 0.11
    assert tenth == {one for one in ids if chosen(one, 0.1)}
    assert tenth < {one for one in ids if chosen(one, 0.3)}
    assert all(chosen(one, 1.0) for one in ids) and not any(chosen(one, 0.0) for one in ids)
