"""A listener begins, refuses and ends; what is under way meanwhile may end in order."""

from __future__ import annotations

import asyncio

import pytest
from harness.served import GET, Wire, echo, kept, serving, until

from gateway.http import listener as module
from gateway.http.answer import Answer
from gateway.http.connection import Connection
from gateway.http.request import Request


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)


async def test_who_is_not_being_served_is_let_go_and_nobody_else_comes_in() -> None:
    may = asyncio.Event()
    async with serving(kept(may)) as served:
        fresh, idle, busy = [await served.connect() for _ in range(3)]
        await until(lambda: len(served.listener.connections) == 3)
        may.set()
        idle.send(GET % b"a")
        assert (await idle.answer()).status == 200
        may.clear()
        busy.send(GET % b"b" + GET % b"c")
        await until(lambda: any(each.task for each in served.listener.connections))
        served.listener.refuse()
        assert await fresh.rest() == b""
        assert await idle.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            await served.connect()
        may.set()
        assert [(await busy.answer()).body for _ in range(2)] == [b"GET /b ", b"GET /c "]
        assert await busy.rest() == b"", "nothing is going on now on this one, either"


async def test_the_end_waits_for_answers_and_no_longer() -> None:
    may = asyncio.Event()
    async with serving(kept(may)) as served:
        wire = await served.connect()
        wire.send(GET % b"a")
        await until(lambda: any(each.task for each in served.listener.connections))
        ending = asyncio.ensure_future(served.listener.close(30))
        await asyncio.sleep(0)
        may.set()
        assert (await wire.answer()).body == b"GET /a "
        await ending


async def test_what_takes_too_long_is_cut_and_whoever_serves_it_is_told() -> None:
    cut = asyncio.Event()

    async def endless(connection: Connection, request: Request, answer: Answer) -> None:
        connection.on_lost = cut.set
        await cut.wait()

    async with serving(endless) as served:
        wire = await served.connect()
        wire.send(GET % b"a")
        await until(lambda: any(each.task for each in served.listener.connections))
        await served.listener.close(0.05)
        with pytest.raises(ConnectionResetError):
            await wire.rest()
        await cut.wait()


async def test_there_is_room_for_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_CONNECTIONS", 2)
    async with serving(echo) as served:
        wires = [await served.connect() for _ in range(2)]
        await until(lambda: len(served.listener.connections) == 2)
        with pytest.raises(ConnectionResetError):
            await _asked(await served.connect())
        for wire in wires:
            wire.send(GET % b"a")
            assert (await wire.answer()).status == 200
        wires.pop().close()
        await until(lambda: len(served.listener.connections) == 1)
        wire = await served.connect()
        wire.send(GET % b"a")
        assert (await wire.answer()).status == 200


async def _asked(wire: Wire) -> None:
    """What is asked on a connection that was closed at once is answered by a reset, or by nothing."""
    wire.send(GET % b"a")
    if not await wire.rest():
        raise ConnectionResetError


async def test_time_outs_go_on_when_one_of_them_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug on one connection is one connection's."""
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))
    async with serving(echo, head_seconds=0.1) as served:
        wire = await served.connect()
        connection = await served.connection()
        late = Connection.late

        def fails(self: Connection) -> None:
            if self is connection and not failures:
                raise RuntimeError("boom")
            late(self)

        monkeypatch.setattr(Connection, "late", fails)
        assert await wire.rest() == b""
    assert len(failures) == 1
