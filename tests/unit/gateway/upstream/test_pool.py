"""Which connection a request goes out on: reuse, age, addresses of a name, and requests that are never sent twice."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import pytest
from harness.peer import Listener, Peer, listening
from harness.redis_server import free_port
from harness.upstream import chunk, head

from gateway.core.errors import Disconnected, Unreachable
from gateway.upstream import dial
from gateway.upstream import pool as pools
from gateway.upstream.dial import Address
from gateway.upstream.origin import Origin
from gateway.upstream.pool import Pool

OK = head(content_length=2) + b"ok"
CLOSING = head(content_length=2, connection="close") + b"ok"


@pytest.fixture
def origin(listener: Listener) -> Origin:
    return Origin("t", f"http://127.0.0.1:{listener.port}")


async def ask(pool: Pool, origin: Origin, connect: float = 5.0) -> bytes:
    response = await pool.request(origin, "POST", "/v1/x", [], b"{}", connect)
    try:
        got = b""
        while piece := await response.read():
            got += piece
        return got
    finally:
        response.release()


async def serve(listener: Listener, answer: bytes = OK) -> None:
    """Answer every request on every connection alike."""

    async def one(peer: Peer) -> None:
        try:
            while True:
                await peer.request()
                peer.send(answer)
        except ConnectionResetError:
            pass

    async with asyncio.TaskGroup() as tasks:
        while True:
            tasks.create_task(one(await listener.accepted.get()))


@pytest.fixture
async def serving(listener: Listener) -> AsyncIterator[Listener]:
    task = asyncio.create_task(serve(listener))
    yield listener
    task.cancel()
    await asyncio.wait([task])


async def until_ended(*peers: Peer) -> None:
    async with asyncio.timeout(30):
        for peer in peers:
            await peer.ended.wait()


async def noticed(pool: Pool, connections: int) -> None:
    """Wait until the pool has so many connections."""
    async with asyncio.timeout(30):
        while len(pool._connections) != connections:
            await asyncio.sleep(0.001)


async def test_one_connection_serves_one_call_after_the_other(pool: Pool, origin: Origin, serving: Listener) -> None:
    for _ in range(5):
        assert await ask(pool, origin) == b"ok"
    assert len(serving.peers) == 1
    assert (origin.open, len(origin.idle), origin.made, origin.reused) == (1, 1, 1, 4)
    assert len(origin.seconds) == 1 and 0 <= origin.seconds[0] < 5


async def test_calls_at_once_have_a_connection_each_and_the_last_used_goes_first(
    pool: Pool, origin: Origin, serving: Listener
) -> None:
    await asyncio.gather(*(ask(pool, origin) for _ in range(3)))
    assert (origin.open, origin.made) == (3, 3)
    last = origin.idle[-1]
    await ask(pool, origin)
    assert origin.idle[-1] is last and origin.reused == 1


async def test_origins_do_not_share_connections(pool: Pool, origin: Origin, serving: Listener) -> None:
    await ask(pool, origin)
    await ask(pool, Origin("u", f"http://127.0.0.1:{serving.port}"))
    assert len(serving.peers) == 2


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_an_idle_connection_that_has_ended_is_replaced(
    pool: Pool, origin: Origin, serving: Listener, reset: bool
) -> None:
    await asyncio.gather(*(ask(pool, origin) for _ in range(2)))
    for peer in tuple(serving.peers):
        peer.reset() if reset else peer.close()
    await noticed(pool, 0)
    assert (origin.open, origin.idle) == (0, [])
    assert await ask(pool, origin) == b"ok"
    assert (origin.made, origin.reused) == (3, 0)


@pytest.mark.parametrize("farewell", [b"", b"HTTP/1.1 408 Request Timeout\r\n\r\n"], ids=["silently", "with a word"])
async def test_a_connection_whose_end_lies_in_the_kernel_is_replaced(
    pool: Pool, origin: Origin, serving: Listener, farewell: bytes
) -> None:
    """llama.cpp closes after each stream, and a loop under load learns of it late."""
    await ask(pool, origin)
    far = socket.socket(fileno=os.dup(serving.peers[0].transport.get_extra_info("socket").fileno()))
    far.send(farewell)
    far.shutdown(socket.SHUT_WR)
    far.close()
    assert await ask(pool, origin) == b"ok"
    assert (origin.made, origin.reused) == (2, 0)


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_a_connection_that_ends_after_the_request_is_a_failure_and_nothing_is_sent_again(
    pool: Pool, origin: Origin, listener: Listener, reset: bool
) -> None:
    """A prompt that kills an engine must not go to the next one unseen."""
    asking = asyncio.create_task(ask(pool, origin))
    peer = await listener.peer()
    await peer.request()
    peer.send(OK)
    assert await asking == b"ok"
    asking = asyncio.create_task(ask(pool, origin))
    await peer.request()
    peer.reset() if reset else peer.close()
    with pytest.raises(Disconnected):
        await asking
    assert (len(listener.peers), origin.made, origin.reused) == (1, 1, 1)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(CLOSING, id="connection: close"),
        pytest.param(head(content_type="text/plain") + b"ok", id="until its end"),
        pytest.param(OK.replace(b"1.1", b"1.0"), id="HTTP/1.0"),
        pytest.param(OK + b"more", id="more than the answer"),
        pytest.param(head(content_length=2, keep_alive="timeout=1") + b"ok", id="kept for a second only"),
    ],
)
async def test_connections_that_cannot_serve_again_are_closed(
    pool: Pool, origin: Origin, listener: Listener, answer: bytes
) -> None:
    asking = asyncio.create_task(ask(pool, origin))
    peer = await listener.peer()
    await peer.request()
    peer.send(answer)
    if b"content-length" not in answer:
        peer.close()
    assert await asking == b"ok"
    await until_ended(peer)
    assert (origin.open, origin.idle) == (0, [])


async def test_a_server_that_keeps_connections_for_a_short_time_is_believed(pool: Pool, listener: Listener) -> None:
    origin = Origin("t", f"http://127.0.0.1:{listener.port}")
    asking = asyncio.create_task(ask(pool, origin))
    peer = await listener.peer()
    await peer.request()
    peer.send(head(content_length=2, keep_alive="timeout=3, max=100") + b"ok")
    await asking
    assert origin.idle[0].idle_until - asyncio.get_running_loop().time() <= 2.0


async def test_what_comes_unasked_ends_an_idle_connection(pool: Pool, origin: Origin, serving: Listener) -> None:
    await ask(pool, origin)
    serving.peers[0].send(head(408, content_length=0))
    await noticed(pool, 0)
    assert await ask(pool, origin) == b"ok" and origin.made == 2


async def test_an_answer_before_the_request_has_left_does_not_leave_a_connection_for_others(
    pool: Pool, origin: Origin, listener: Listener
) -> None:
    body = bytes(64 * 1024 * 1024)
    asking = asyncio.create_task(pool.request(origin, "POST", "/v1/x", [], body, 5.0))
    peer = await listener.peer()
    await peer.until(b"\r\n\r\n")
    peer.transport.pause_reading()
    peer.send(head(413, content_length=2) + b"no")
    response = await asking
    assert response.status == 413 and await response.read() == b"no"
    response.release()
    assert origin.idle == []


async def test_an_idle_connection_is_closed_in_time(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "SWEEP_SECONDS", 0.01)
    pool, origin = Pool(idle=0.05), Origin("t", f"http://127.0.0.1:{listener.port}")
    task = asyncio.create_task(serve(listener))
    await ask(pool, origin)
    await until_ended(listener.peers[0])
    await noticed(pool, 0)
    assert origin.idle == [] and pool._sweeping is None
    task.cancel()
    await pool.close()


async def test_an_idle_connection_is_not_taken_after_its_time(serving: Listener) -> None:
    pool, origin = Pool(idle=0.02), Origin("t", f"http://127.0.0.1:{serving.port}")
    await ask(pool, origin)
    await asyncio.sleep(0.05)  # before anybody sweeps
    await ask(pool, origin)
    assert (origin.made, origin.reused) == (2, 0)
    await pool.close()


class Names:
    """Where names lead to; counts the questions."""

    def __init__(self, *ports: int) -> None:
        self.ports, self.asked = list(ports), 0
        self.gate: asyncio.Event | None = None

    async def resolve(self, host: str, port: int) -> list[Address]:
        assert (host, port) == ("engines.test", 8000)
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        return [(socket.AF_INET, ("127.0.0.1", each)) for each in self.ports]


@pytest.mark.parametrize("busy", [False, True], ids=["one call after the other", "never idle"])
async def test_a_busy_pool_follows_its_name(serving: Listener, monkeypatch: pytest.MonkeyPatch, busy: bool) -> None:
    """A headless service's new pods get calls although the old one's connections are never idle for long."""
    monkeypatch.setattr(dial, "KNOWN_SECONDS", 0.0)
    names = Names(serving.port)
    pool, origin = Pool(max_age=0.1, resolve=names.resolve), Origin("t", "http://engines.test:8000")
    async with listening() as other:
        task = asyncio.create_task(serve(other))
        await ask(pool, origin)
        names.ports = [other.port]
        async with asyncio.timeout(30):
            while not other.peers:
                await ask(pool, origin)
                if not busy:
                    await asyncio.sleep(0.01)
        assert origin.reused > 0
        await until_ended(serving.peers[0])
        task.cancel()
        await pool.close()


async def test_a_name_is_looked_up_once_for_all_that_wait_and_known_for_a_while(serving: Listener) -> None:
    names = Names(serving.port)
    names.gate = asyncio.Event()
    pool, origin = Pool(resolve=names.resolve), Origin("t", "http://engines.test:8000")
    asking = [asyncio.create_task(ask(pool, origin)) for _ in range(5)]
    await asyncio.sleep(0.01)
    asking.pop(0).cancel()  # the one for whom it was asked
    names.gate.set()
    assert await asyncio.gather(*asking) == [b"ok"] * 4
    await pool.request(origin, "GET", "/", [], None, 5.0)
    assert names.asked == 1
    await pool.close()


async def test_the_next_address_is_tried_when_one_does_not_connect(serving: Listener) -> None:
    names = Names(free_port(), free_port(), serving.port)
    pool, origin = Pool(resolve=names.resolve), Origin("t", "http://engines.test:8000")
    assert await ask(pool, origin) == b"ok"
    await pool.close()


async def test_a_name_is_looked_up_again_when_no_address_connects(serving: Listener) -> None:
    names = Names(free_port())
    pool, origin = Pool(resolve=names.resolve), Origin("t", "http://engines.test:8000")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1: ConnectionRefusedError: Connect"):
        await ask(pool, origin)
    names.ports = [serving.port]
    assert await ask(pool, origin) == b"ok"
    await pool.close()


async def test_an_address_that_does_not_answer_leaves_time_for_the_next(serving: Listener) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        crowd = [socket.socket() for _ in range(4)]  # its queue is full: nobody else gets an answer
        for each in crowd:
            each.setblocking(False)
            each.connect_ex(deaf.getsockname())
        names = Names(deaf.getsockname()[1], serving.port)
        pool, origin = Pool(resolve=names.resolve), Origin("t", "http://engines.test:8000")
        assert await ask(pool, origin, connect=1.0) == b"ok"
        names.ports = names.ports[:1]
        pool._dialer._known.clear()
        pool._connections and origin.idle.pop().abort()
        with pytest.raises(Unreachable, match=r"no connection within 0\.\d+ s"):
            await ask(pool, origin, connect=0.3)
        for each in crowd:
            each.close()
        await pool.close()


@pytest.mark.parametrize(
    "url",
    ["http://no-such-host.invalid", "http://" + "a" * 70 + ".invalid", "http://[::1]:1", "unix:///no/such/socket"],
)
async def test_what_cannot_be_reached_is_told_so(pool: Pool, url: str) -> None:
    with pytest.raises(Unreachable) as caught:
        await ask(pool, Origin("t", url))
    assert caught.value.message


async def test_ipv6(pool: Pool) -> None:
    async with listening("::1") as listener:
        asking = asyncio.create_task(ask(pool, Origin("t", f"http://[::1]:{listener.port}/v6")))
        peer = await listener.peer()
        lines, _ = await peer.request()
        assert lines[:2] == ["POST /v6/v1/x HTTP/1.1", f"host: [::1]:{listener.port}"]
        peer.send(OK)
        assert await asking == b"ok"


async def test_unix_sockets(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("s") / "vllm.sock"
    async with listening(unix=str(path)) as listener:
        origin = Origin("t", f"unix://{path}")
        for _ in range(2):
            asking = asyncio.create_task(ask(pool, origin))
            peer = await listener.peer() if not listener.peers else listener.peers[0]
            lines, _ = await peer.request()
            assert lines[:2] == ["POST /v1/x HTTP/1.1", "host: localhost"]
            peer.send(OK)
            assert await asking == b"ok"
        assert origin.reused == 1


async def test_a_closed_pool_makes_no_more_connections(pool: Pool, origin: Origin, serving: Listener) -> None:
    await ask(pool, origin)
    stream = await pool.request(origin, "GET", "/", [], None, 5.0)
    await pool.close()
    stream.release()
    await until_ended(*serving.peers)
    with pytest.raises(Unreachable):
        await ask(pool, origin)


@pytest.mark.asyncio(loop_factories=["uvloop"])
async def test_ten_thousand_callers_that_leave_at_any_moment_leave_nothing(
    pool: Pool, origin: Origin, listener: Listener
) -> None:
    task = asyncio.create_task(serve(listener, head(transfer_encoding="chunked") + chunk(b"x")))

    async def call(number: int) -> None:
        response = await pool.request(origin, "POST", "/v1/x", [], b"{}", 20.0)
        try:
            await response.read()
            if number % 3:
                await response.read()
        finally:
            response.release()

    for start in range(0, 10_000, 100):
        calls = [asyncio.create_task(call(start + number)) for number in range(100)]
        for number, each in enumerate(calls):
            if number % 7 == 0:
                await asyncio.sleep(0)
            each.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
    await noticed(pool, 0)
    assert (origin.open, origin.idle) == (0, [])
    task.cancel()


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("http://vllm-a:8000", "POST /v1/x HTTP/1.1", "vllm-a:8000"),
        ("http://vllm-a:8000/", "POST /v1/x HTTP/1.1", "vllm-a:8000"),
        ("http://vllm-a/some/prefix/", "POST /some/prefix/v1/x HTTP/1.1", "vllm-a"),
        ("http://vllm-a:80", "POST /v1/x HTTP/1.1", "vllm-a"),
        ("https://vllm-a:443", "POST /v1/x HTTP/1.1", "vllm-a"),
        ("https://vllm-a:80", "POST /v1/x HTTP/1.1", "vllm-a:80"),
        ("http://[fd00::1]:8000", "POST /v1/x HTTP/1.1", "[fd00::1]:8000"),
        ("unix:///run/vllm.sock", "POST /v1/x HTTP/1.1", "localhost"),
    ],
)
def test_where_a_url_leads(url: str, line: str, host: str) -> None:
    assert Origin("t", url).start("POST", "/v1/x").decode() == f"{line}\r\nhost: {host}\r\n"


def test_headers_of_a_target_go_with_every_request() -> None:
    origin = Origin("t", "http://a", headers={"X-Team": "search", "Host": "inside"})
    assert origin.start("GET", "/x").decode() == "GET /x HTTP/1.1\r\nhost: inside\r\nx-team: search\r\n"
