"""Looking for answers and keeping them: never longer than a call may wait, never more than a worker may hold."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from harness.clock import FixedClock

from backends.api import Call, Usage
from backends.body import Body
from gateway.answers import AnswerEvents, Answers, Cached, Terms
from gateway.answers import answers as module
from gateway.answers.kept import Kept, sealed
from gateway.config.caching import ResponseCacheSpec
from gateway.store import StoreDown

SECRET = b"secret"
GOOD = b'{"choices": [{"finish_reason": "stop"}]}'
JSON = b"application/json"


class Values:
    """A store that answers when a test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.put_in: list[tuple[str, bytes, float]] = []
        self.ends: list[Callable[[Any], None]] = []
        self.answer: bytes | Exception | None = b""
        """None: there is none."""

    def get(self, name: str, most: int) -> asyncio.Future[Any]:
        self.asked.append((name, most))
        future = asyncio.get_running_loop().create_future()
        if isinstance(self.answer, Exception):
            future.set_exception(self.answer)
        elif self.answer is not None:
            future.set_result(self.answer)
        return future

    def put(self, name: str, value: bytes, seconds: float, ended: Callable[[Any], None]) -> None:
        self.put_in.append((name, value, seconds))
        self.ends.append(ended)


class Events(AnswerEvents):
    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def looked(self, route: str, found: str) -> None:
        self.told.append(("looked", route, found))

    def saved(self, route: str, input: int, output: int) -> None:
        self.told.append(("saved", route, input, output))

    def kept(self, route: str, outcome: str) -> None:
        self.told.append(("kept", route, outcome))


class Asking:
    """A client."""

    def __init__(self, wish: bytes = b"") -> None:
        self.headers = {b"x-trunkline-cache": wish} if wish else {}


class Kit:
    def __init__(self, **spec: Any) -> None:
        self.values, self.events, self.clock = Values(), Events(), FixedClock()
        self.terms = Terms("m", ResponseCacheSpec(**spec), b"")
        self.answers = Answers(self.values, SECRET, self.clock, self.events)

    async def look(self, wish: bytes = b"", **fields: Any) -> Cached:
        body = Body(b'{"temperature":0}' if not fields else b'{"temperature":%d}' % fields["temperature"])
        call = Call("tl-1", "chat/completions", "m", body)
        return await self.answers.look(call, self.terms, "t", Asking(wish))


async def test_a_miss_is_copied_and_kept_once_its_call_has_ended_well() -> None:
    kit = Kit(ttl=90.0)
    cached = await kit.look()
    assert (cached.found, cached.headers) == ("miss", [(b"x-trunkline-cache", b"miss")])
    add = cached.copy(JSON, own=True)
    add(GOOD[:10])
    add(GOOD[10:])
    assert kit.answers.held == len(GOOD) and not kit.values.put_in
    cached.end(good=True, usage=Usage(5, 2))
    ((name, value, seconds),) = kit.values.put_in
    assert (name, seconds, kit.answers.held) == (cached.name, 90.0, len(value))
    kit.values.ends[0](b"OK")
    assert kit.answers.held == 0
    kit.values.answer = value
    kit.clock.advance(7.9)
    hit = await kit.look()
    assert hit.answer is not None and (hit.answer.body, hit.answer.content_type) == (GOOD, JSON)
    assert hit.headers == [(b"x-trunkline-cache", b"hit"), (b"age", b"7")]
    assert kit.events.told == [
        ("looked", "m", "miss"),
        ("kept", "m", "kept"),
        ("looked", "m", "hit"),
        ("saved", "m", 5, 2),
    ]


@pytest.mark.parametrize("answer", [None, StoreDown("gone")])
async def test_a_store_that_does_not_answer_is_a_miss(answer: Exception | None) -> None:
    kit = Kit(wait=0.001)
    kit.values.answer = answer
    cached = await kit.look()
    assert (cached.found, cached.answer, bool(cached.name)) == ("unavailable", None, True)
    assert cached.headers == [(b"x-trunkline-cache", b"miss")]


async def test_after_one_answer_that_is_late_nobody_waits_for_a_while() -> None:
    kit = Kit(wait=0.001)
    kit.values.answer = None
    await kit.look()
    kit.values.answer = b""
    assert [(await kit.look()).found for _ in range(3)] == ["unavailable"] * 3
    assert len(kit.values.asked) == 1
    kit.clock.advance(module.REST_SECONDS)
    kit.values.answer = None
    first = asyncio.ensure_future(kit.look())
    await asyncio.sleep(0)
    assert ((await kit.look()).found, len(kit.values.asked)) == ("unavailable", 2), "one call finds out, not all"
    assert (await first).found == "unavailable"
    kit.clock.advance(module.REST_SECONDS)
    kit.values.answer = b""
    assert [(await kit.look()).found for _ in range(3)] == ["miss"] * 3


def test_an_answer_that_came_while_the_loop_was_busy_is_not_late() -> None:
    """On the loop that serves, which looks at its timers before it reads."""

    class Unread(Values):
        def get(self, name: str, most: int) -> asyncio.Future[Any]:
            loop, future = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()
            here, there = socket.socketpair()
            mine, others = socket.socketpair()

            def read() -> None:
                loop.remove_reader(here)
                here.close()
                future.set_result(b"")

            def work() -> None:
                loop.remove_reader(mine)
                mine.close()
                there.close()  # the answer
                time.sleep(0.01)

            loop.add_reader(here, read)
            loop.add_reader(mine, work)
            others.close()
            return future

    async def look() -> str:
        kit = Kit(wait=0.001)
        kit.answers = Answers(Unread(), SECRET, kit.clock)
        return (await kit.look()).found

    assert uvloop.run(look()) == "miss"


async def test_whoever_looks_can_be_cancelled() -> None:
    kit = Kit(wait=1.0)
    kit.values.answer = None
    looking = asyncio.ensure_future(kit.look())
    await asyncio.sleep(0)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert kit.answers.held == 0


async def test_what_is_no_answer_of_ours_is_told_and_not_given() -> None:
    kit = Kit()
    kit.values.answer = b"x" * 100
    assert (await kit.look()).found == "unreadable"
    kit.values.answer = sealed("another name", Kept(JSON, GOOD, 0.0), SECRET)
    assert (await kit.look()).found == "unreadable"


async def test_no_more_of_a_value_is_read_than_an_answer_can_have() -> None:
    kit = Kit(largest=5000)
    await kit.look()
    ((_, most),) = kit.values.asked
    assert 5000 < most < 10_000


@pytest.mark.parametrize(("wish", "found"), [(b"no-store", "bypass"), (b"refresh", "refresh")])
async def test_who_wants_a_new_answer_is_not_looked_up(wish: bytes, found: str) -> None:
    kit = Kit()
    cached = await kit.look(wish)
    assert (cached.found, kit.values.asked, bool(cached.name)) == (found, [], found == "refresh")


async def test_a_call_that_takes_no_part_is_not_looked_up() -> None:
    kit = Kit()
    cached = await kit.look(temperature=1)
    assert (cached.found, cached.name, kit.values.asked, kit.events.told) == ("bypass", "", [], [])


async def test_nothing_is_kept_of_a_call_that_ended_badly() -> None:
    kit = Kit()
    cached = await kit.look()
    cached.copy(JSON, own=True)(GOOD)
    cached.end(good=False, usage=None)
    assert (kit.values.put_in, kit.answers.held) == ([], 0)


async def test_only_the_last_attempt_counts_and_only_at_a_target_of_the_routes_own() -> None:
    kit = Kit()
    cached = await kit.look()
    cached.copy(JSON, own=True)(b"half of an")
    cached.copy(JSON, own=False)(GOOD)
    assert kit.answers.held == 0
    cached.end(good=True, usage=None)
    assert kit.values.put_in == []
    cached.copy(JSON, own=True)(b"half of an")
    cached.copy(JSON, own=True)(GOOD)
    cached.end(good=True, usage=None)
    ((_, value, _),) = kit.values.put_in
    assert b"half" not in value


async def test_an_answer_that_is_too_large_is_let_go_at_once() -> None:
    kit = Kit(largest=100)
    cached = await kit.look()
    add = cached.copy(JSON, own=True)
    add(b"x" * 60)
    add(b"x" * 60)
    assert kit.answers.held == 0
    add(b"x" * 10)
    cached.end(good=True, usage=None)
    assert kit.values.put_in == [] and kit.events.told[1:] == [("kept", "m", "too_large")]


async def test_all_together_hold_no_more_than_a_worker_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_HELD", 3 * len(GOOD))
    kit = Kit()
    several = [await kit.look() for _ in range(4)]
    for each in several:
        each.copy(JSON, own=True)(GOOD)
    assert kit.answers.held == 3 * len(GOOD)
    for each in several:
        each.end(good=True, usage=None)
    assert len(kit.values.put_in) == 3
    assert kit.events.told[-1] == ("kept", "m", "no_memory")
    late = await kit.look()
    late.copy(JSON, own=True)(GOOD)  # what waits for the store counts, too
    late.end(good=True, usage=None)
    assert len(kit.values.put_in) == 3
    for ended in kit.values.ends:
        ended(StoreDown("gone"))
    assert kit.answers.held == 0
    assert kit.events.told[-3:] == [("kept", "m", "unavailable")] * 3


async def test_an_answer_that_has_not_told_why_it_ended_is_not_kept() -> None:
    kit = Kit()
    cached = await kit.look()
    cached.copy(JSON, own=True)(b'{"choices": [{"finish_reason": null}]}')
    cached.end(good=True, usage=None)
    assert (kit.values.put_in, kit.answers.held, kit.events.told[-1]) == ([], 0, ("kept", "m", "not_whole"))
