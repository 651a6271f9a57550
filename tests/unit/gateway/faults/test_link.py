"""The link over real sockets: each way to spoil it, and back again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from gateway.faults.link import UNDER_WAY, Link
from gateway.faults.tell import Teller, Unknown


class Place:
    """A link to a server that sends back what it gets."""

    def __init__(self, link: Link, port: int) -> None:
        self.link, self.port = link, port
        self.writers: list[asyncio.StreamWriter] = []

    async def join(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return reader, writer

    async def echo(self, data: bytes, seconds: float = 5) -> bytes:
        reader, writer = await self.join()
        writer.write(data)
        async with asyncio.timeout(seconds):
            return await reader.readexactly(len(data))


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    ends = set[asyncio.StreamWriter]()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.add(writer)
        with suppress(OSError):
            while piece := await reader.read(65536):
                writer.write(piece)
                await writer.drain()
        writer.transport.abort()
        await asyncio.sleep(0)
        ends.discard(writer)

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    link = Link("127.0.0.1", server.sockets[0].getsockname()[1])
    here = Place(link, await link.open())
    try:
        yield here
    finally:
        for writer in here.writers:
            writer.transport.abort()
        await link.close()
        server.close()
        while ends:
            await asyncio.sleep(0.001)


async def test_all_comes_through() -> None:
    async with place() as here:
        data = bytes(range(256)) * 20_000
        assert await here.echo(data, 20) == data
        assert here.link.carried == [len(data), len(data)]


async def test_a_delay_holds_each_way() -> None:
    async with place() as here:
        here.link.delay = 0.1
        began = time.monotonic()
        assert await here.echo(b"x") == b"x"
        assert time.monotonic() - began >= 0.2


async def test_bandwidth_bounds_what_comes_through() -> None:
    async with place() as here:
        here.link.bandwidth = 10_000
        began = time.monotonic()
        assert await here.echo(b"x" * 2000) == b"x" * 2000
        assert time.monotonic() - began >= 0.2


async def test_a_sender_has_to_wait_for_a_narrow_link() -> None:
    async with place() as here:
        here.link.bandwidth = 10_000
        _, writer = await here.join()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:  # kernel buffers hold megabytes
                    writer.write(b"x" * UNDER_WAY)
                    await writer.drain()


async def test_connections_are_cut_after_so_many_bytes() -> None:
    async with place() as here:
        here.link.cut_after = 3
        reader, writer = await here.join()
        writer.write(b"12345")
        assert await reader.read() == b""
        here.link.restore()
        assert await here.echo(b"12345") == b"12345"


async def test_open_connections_are_reset_and_new_ones_work() -> None:
    async with place() as here:
        reader, writer = await here.join()
        writer.write(b"x")
        await reader.readexactly(1)
        here.link.reset()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        assert await here.echo(b"y") == b"y"


async def test_a_black_hole_swallows_and_what_lost_bytes_is_reset() -> None:
    async with place() as here:
        here.link.black_hole = True
        with pytest.raises(TimeoutError):
            await here.echo(b"x", 0.1)
        here.link.restore()
        assert await here.echo(b"y") == b"y"


async def test_nobody_at_the_other_end() -> None:
    async with place() as here:
        broken = Link("127.0.0.1", 1)
        here.port = await broken.open()
        try:
            with pytest.raises(ConnectionResetError):
                await here.echo(b"x")
        finally:
            await broken.close()


async def test_orders_by_line() -> None:
    async with place() as here:
        teller = Teller(here.link)
        assert teller.status().startswith("as it should be; 0 connections")
        for line in ("delay 0.5", "bandwidth 2kB\n", "cut-after 1000", "black-hole", "reset", "reset-every 60"):
            teller.apply(line)
        assert teller.status().startswith(
            "delay 0.5 s, 2000 B/s, cut after 1000 B more, reset every 60 s, black hole; 0"
        )
        assert teller.apply("restore").startswith("as it should be")
        for line, says in (
            ("faster", "expected one of delay S"),
            ("delay long", "expected seconds"),
            ("delay", "seconds"),
        ):
            with pytest.raises(Unknown, match=says):
                teller.apply(line)


async def test_reset_again_and_again() -> None:
    async with place() as here:
        teller = Teller(here.link)
        resets = asyncio.create_task(teller.reset_again_and_again())
        teller.apply("reset-every 0.05")
        for _ in range(2):
            reader, writer = await here.join()
            writer.write(b"x")
            with pytest.raises(ConnectionResetError):
                async with asyncio.timeout(30):
                    while await reader.read(10):
                        pass
        resets.cancel()
