"""Questions beside the calls go out on the calls' connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from harness.peer import Listener, listening
from harness.upstream import head

from backends.api import Target as Address
from backends.capabilities import Capabilities
from backends.vllm import VLLM
from gateway.config import Timeouts
from gateway.upstream import AnswerLimits, Forwarder
from gateway.upstream.pool import Pool

OK = head(content_type="text/plain", content_length=2) + b"ok"
SERVER, TIMES = Capabilities.of(VLLM()), Timeouts(connect=5.0)


@pytest.fixture
async def forwarder(pool: Pool) -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(AnswerLimits(1000, 1000), pool)
    yield forwarder
    await forwarder.close()


def at(listener: Listener, path: str = "") -> Address:
    return Address("t", f"http://127.0.0.1:{listener.port}{path}", api_key="secret")


@pytest.mark.parametrize("path", ["", "/some/prefix"])
async def test_a_question(forwarder: Forwarder, listener: Listener, path: str) -> None:
    asking = asyncio.create_task(forwarder.probe(at(listener, path), SERVER, TIMES))
    peer = await listener.peer()
    lines, _ = await peer.request()
    peer.send(OK)
    assert await asking == ""
    assert lines == [
        f"GET {path}/health HTTP/1.1",
        f"host: 127.0.0.1:{listener.port}",
        "accept-encoding: identity",
        "authorization: Bearer secret",
    ]
    assert len(forwarder.origins.of(at(listener, path)).idle) == 1, "a call may go out on its connection"


async def test_a_question_that_changes_something_has_a_body(forwarder: Forwarder, listener: Listener) -> None:
    asking = asyncio.create_task(forwarder.wake(at(listener), SERVER, TIMES))
    peer = await listener.peer()
    lines, body = await peer.request()
    peer.send(OK)
    assert await asking == ""
    assert (lines[0], lines[-1], body) == ("POST /wake_up HTTP/1.1", "content-length: 0", b"")


async def test_a_question_over_a_unix_socket(forwarder: Forwarder, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("s") / "s"
    async with listening(unix=str(path)) as listener:
        asking = asyncio.create_task(forwarder.probe(Address("t", f"unix://{path}"), SERVER, TIMES))
        peer = await listener.peer()
        lines, _ = await peer.request()
        peer.send(OK)
        assert await asking == ""
    assert lines[:2] == ["GET /health HTTP/1.1", "host: localhost"]


@pytest.mark.parametrize("changes", [False, True], ids=["changes nothing", "changes something"])
async def test_a_question_that_crosses_the_end_of_an_idle_connection_is_asked_again_if_it_changes_nothing(
    forwarder: Forwarder, listener: Listener, changes: bool
) -> None:
    asking = asyncio.create_task(forwarder.probe(at(listener), SERVER, TIMES))
    first = await listener.peer()
    await first.request()
    first.send(OK)
    assert await asking == ""
    ask = forwarder.wake if changes else forwarder.probe
    asking = asyncio.create_task(ask(at(listener), SERVER, TIMES))
    await first.request()
    first.close()
    if changes:
        assert await asking == "unreachable"
        assert len(listener.peers) == 1
    else:
        second = await listener.peer()
        await second.request()
        second.send(OK)
        assert await asking == ""
