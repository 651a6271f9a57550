"""The way out to a client: pieces, the patience with each, and what large answers are given in all."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.core.errors import ReaderTooSlow
from gateway.http.writer import AT_ONCE_BYTES, PIECE_BYTES, Writer

NOWHERE: dict[str, Any] = {"client": None, "server": None}


class Server:
    """Takes messages, as long as it is not told to stall."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.more: list[bool] = []
        self.stalled = False

    async def send(self, message: Any) -> None:
        if self.stalled:
            await asyncio.Event().wait()
        self.taken.append(message["body"])
        self.more.append(message["more_body"])


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, AT_ONCE_BYTES + 1])
async def test_a_part_of_a_stream_goes_out_in_pieces(size: int) -> None:
    server, data = Server(), bytes(range(256)) * (size // 256 + 1)
    writer = Writer(NOWHERE, server.send, 5)
    await writer.send(data[:size])
    await writer.finish(data[:size])
    writer.close()
    assert b"".join(server.taken) == data[:size] * 2
    assert max(map(len, server.taken)) <= PIECE_BYTES
    assert server.more == [True] * (len(server.more) - 1) + [False]


@pytest.mark.parametrize(
    ("size", "pieces"), [(AT_ONCE_BYTES, 1), (AT_ONCE_BYTES + 1, AT_ONCE_BYTES // PIECE_BYTES + 1)]
)
async def test_a_small_whole_answer_goes_out_at_once(size: int, pieces: int) -> None:
    server = Server()
    writer = Writer(NOWHERE, server.send, 5)
    await writer.finish(b"x" * size)
    writer.close()
    assert (len(server.taken), sum(map(len, server.taken))) == (pieces, size)


async def test_a_piece_that_is_not_taken_ends_the_call() -> None:
    server = Server()
    writer = Writer(NOWHERE, server.send, 0.05)
    await writer.send(b"a")
    server.stalled = True
    with pytest.raises(ReaderTooSlow):
        await writer.send(b"b")
    assert writer.ended
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0
    writer.close()


async def test_the_patience_is_for_each_piece() -> None:
    """Waiting for the target between two pieces is not the client's slowness."""
    server = Server()
    writer = Writer(NOWHERE, server.send, 0.05)
    for _ in range(5):
        await writer.send(b"a")
        await asyncio.sleep(0.06)
    assert len(server.taken) == 5
    writer.close()


async def test_another_cancellation_stays_one() -> None:
    server = Server()
    writer = Writer(NOWHERE, server.send, 5)
    server.stalled = True
    sending = asyncio.create_task(writer.send(b"a"))
    await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    writer.close()


async def test_a_large_whole_answer_is_limited_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece may come in time, and all of them together too late."""
    monkeypatch.setattr("gateway.http.writer.WHOLE_BYTES_PER_SECOND", 10_000_000)
    server = Server()

    async def slowly(message: Any) -> None:
        await asyncio.sleep(0.03)
        await server.send(message)

    writer = Writer(NOWHERE, slowly, 0.1)
    with pytest.raises(ReaderTooSlow):
        await writer.finish(b"x" * 40 * PIECE_BYTES)
    assert 1 <= len(server.taken) < 10
    writer.close()
