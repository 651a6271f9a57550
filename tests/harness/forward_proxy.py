"""An HTTP proxy: CONNECT and absolute-form requests, passed on; it remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit


class ForwardProxy:
    """One proxy. With `refusal` it answers every request with that status."""

    def __init__(self) -> None:
        self.port = 0
        self.heads: list[list[str]] = []
        """The lines of each request's head."""
        self.refusal = b""
        self.names: dict[str, int] = {}
        """Ports of this machine, by the authority that a request names."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
            self.heads.append(lines)
            if self.refusal:
                writer.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\n\r\n" % self.refusal)
                await writer.drain()
                writer.close()
            else:
                try:
                    await self._pass_on(lines, reader, writer)
                finally:
                    writer.transport.abort()

    async def _pass_on(self, lines: list[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, where, _ = lines[0].split(" ")
        authority = where if method == "CONNECT" else urlsplit(where).netloc
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.names[authority])
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\nx-proxy: yes\r\n\r\n")
        else:
            path = where.partition(authority)[2]
            far_writer.write("\r\n".join([f"{method} {path} HTTP/1.1", *lines[1:], "", ""]).encode("latin-1"))
        try:
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
        finally:
            far_writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def forward_proxy() -> AsyncIterator[ForwardProxy]:
    """A proxy on a free port."""
    proxy, tasks = ForwardProxy(), set[asyncio.Task[None]]()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(proxy.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(3):  # what was aborted is closed in the loop's next turns
            await asyncio.sleep(0)
