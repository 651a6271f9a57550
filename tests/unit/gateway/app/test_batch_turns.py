"""Whose line may be asked: within the worker's and the batch's bounds, and beside calls only a few."""

from __future__ import annotations

import asyncio

from harness.served import until

from gateway.app.batch_turns import BESIDE, Turns


class Lines:
    """A batch."""

    def __init__(self, window: float = 100.0) -> None:
        self.running, self.window, self.paused_until = 0, window, 0.0


class Calls:
    """Calls that somebody waits for."""

    busy = False

    def __call__(self) -> bool:
        return self.busy


async def test_no_more_lines_than_the_worker_may_ask() -> None:
    turns, batch = Turns(2, Calls()), Lines()
    await turns.enter(batch)
    await turns.enter(batch)
    third = asyncio.create_task(turns.enter(batch))
    await asyncio.sleep(0)
    assert (turns.running, batch.running, third.done()) == (2, 2, False)
    turns.leave(batch)
    await third
    assert turns.running == 2


async def test_a_batch_that_is_refused_leaves_room_to_another() -> None:
    turns, slow, quick = Turns(4, Calls()), Lines(window=1.0), Lines()
    await turns.enter(slow)
    waits = asyncio.create_task(turns.enter(slow))
    await asyncio.sleep(0)
    for _ in range(3):
        await turns.enter(quick)
    assert (slow.running, quick.running, waits.done()) == (1, 3, False)
    turns.leave(slow)
    await waits


async def test_beside_calls_few_lines_go_on() -> None:
    calls = Calls()
    turns, batch = Turns(2 * BESIDE, calls), Lines()
    calls.busy = True
    await turns.enter(batch)
    await turns.enter(batch)
    third = asyncio.create_task(turns.enter(batch))
    await asyncio.sleep(0)
    assert not third.done()
    calls.busy = False
    await third  # looked at again, by itself


async def test_beside_calls_one_line_follows_the_other_after_a_while() -> None:
    calls = Calls()
    turns, batch = Turns(100, calls), Lines()
    await turns.enter(batch, 3600.0)
    await turns.enter(batch)  # nobody is there to be disturbed
    calls.busy = True
    await turns.enter(batch, 3600.0)
    next_one = asyncio.create_task(turns.enter(batch))
    await asyncio.sleep(0)
    assert not next_one.done()
    next_one.cancel()
    turns.close()


async def test_who_was_cancelled_has_no_turn() -> None:
    turns, batch = Turns(1, Calls()), Lines()
    await turns.enter(batch)
    gone, waits = asyncio.create_task(turns.enter(batch)), asyncio.create_task(turns.enter(batch))
    await asyncio.sleep(0)
    gone.cancel()
    turns.leave(batch)
    await waits
    too_late = asyncio.create_task(turns.enter(batch))
    await asyncio.sleep(0)
    turns.leave(batch)  # its turn comes, and it is cancelled in the same moment
    too_late.cancel()
    await asyncio.wait([gone, too_late])
    await until(lambda: turns.running == 0)
    turns.close()


async def test_a_paused_batch_waits() -> None:
    turns, batch = Turns(1, Calls()), Lines()
    batch.paused_until = asyncio.get_running_loop().time() + 0.05
    await turns.enter(batch)
    assert asyncio.get_running_loop().time() >= batch.paused_until
