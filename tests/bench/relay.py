"""A bare TCP relay: what one more hop costs on this machine, whatever the hop does."""

from __future__ import annotations

import argparse
import asyncio
from typing import cast

import uvloop


class End(asyncio.Protocol):
    """One end of a relayed connection; what it receives goes out at the other."""

    def __init__(self, other: End | None = None) -> None:
        self.other = other
        self.early: list[bytes] = []
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early.append(data)
        else:
            self.other.transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.transport.close()


class Accepted(End):
    """The end that a client has opened."""

    def __init__(self, to: int) -> None:
        super().__init__()
        self._to = to

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._opening = asyncio.ensure_future(self._open())

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        _, self.other = await loop.create_connection(lambda: End(self), "127.0.0.1", self._to)
        for data in self.early:
            self.other.transport.write(data)


async def serve(port: int, to: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Accepted(to), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--to", type=int, required=True, help="the port that everything is passed on to")
    chosen = parser.parse_args()
    uvloop.run(serve(chosen.port, chosen.to))


if __name__ == "__main__":
    main()
