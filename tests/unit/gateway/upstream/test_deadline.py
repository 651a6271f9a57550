"""The time limit of an attempt: one for the first byte, another between pieces, none while the client reads."""

from __future__ import annotations

import asyncio
import time

import pytest

from gateway.upstream import Deadline


async def took(deadline_at: float, idle: float, *, pieces: int = 0, piece: float = 0.0, reads: float = 0.0) -> float:
    """Seconds after which a target that sends some pieces and then nothing more is given up."""
    started = time.monotonic()
    with pytest.raises(TimeoutError), Deadline(deadline_at, idle) as deadline:
        for _ in range(pieces):
            await asyncio.sleep(piece)
            deadline.pause()
            await asyncio.sleep(reads)
            deadline.next_piece()
        await asyncio.sleep(10)
    return time.monotonic() - started


async def test_a_first_byte_that_does_not_come() -> None:
    assert 0.1 <= await took(0.1, 5.0) < 0.5


async def test_a_piece_that_does_not_come() -> None:
    assert 0.15 <= await took(0.1, 0.1, pieces=1, piece=0.05) < 0.5


async def test_the_first_bytes_limit_does_not_lengthen_the_next() -> None:
    """60 s are fair for a long prompt; a stream that has begun and stalls is given up after its 30 s."""
    assert 0.1 <= await took(5.0, 0.1, pieces=1) < 0.5


async def test_each_piece_has_its_own_time() -> None:
    assert 0.6 <= await took(0.1, 0.1, pieces=10, piece=0.05) < 1.2


async def test_a_client_that_reads_slowly_takes_none_of_it() -> None:
    assert 0.4 <= await took(0.1, 0.1, pieces=1, reads=0.3) < 0.9


async def test_signs_of_nothing_do_not_lengthen_the_time() -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError), Deadline(5.0, 0.3) as deadline:
        deadline.pause()
        deadline.next_piece()
        while True:
            await asyncio.sleep(0.02)
            deadline.pause()
            deadline.next_piece(alive=False)
    assert 0.3 <= time.monotonic() - started < 1.0


async def test_an_answer_in_time_is_left_alone() -> None:
    with Deadline(0.5, 0.5) as deadline:
        for _ in range(5):
            await asyncio.sleep(0.15)
            deadline.pause()
            deadline.next_piece()
    await asyncio.sleep(0.6)


async def test_a_task_that_is_cancelled_is_cancelled() -> None:
    """A client that leaves is not taken for a target that is slow."""

    async def attempt() -> None:
        with Deadline(5.0, 5.0):
            await asyncio.sleep(10)

    task = asyncio.create_task(attempt())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_errors_pass_through_and_leave_no_cancellation_behind() -> None:
    with pytest.raises(KeyError), Deadline(5.0, 5.0):
        raise KeyError
    await took(0.01, 1.0)
    task = asyncio.current_task()
    assert task is not None and not task.cancelling()
    await asyncio.sleep(0)


async def test_deadlines_may_be_nested_in_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            with Deadline(5.0, 5.0):
                await asyncio.sleep(10)
    async with asyncio.timeout(5):
        await took(0.05, 5.0)


async def test_a_piece_that_comes_too_late_to_matter() -> None:
    """The limit has passed, and the cancellation has not arrived yet."""
    with pytest.raises(TimeoutError), Deadline(0.01, 0.01) as deadline:
        time.sleep(0.05)
        asyncio.get_running_loop().call_later(0, deadline.pause)
        deadline._look()
        deadline.next_piece(alive=False)
        await asyncio.sleep(1)
