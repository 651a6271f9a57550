"""What one worker does for one batch: takes pieces of its work, asks the lines, records the answers."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, TypeVar

from msgspec import Struct

from gateway.app.batch_line import LineClient
from gateway.app.batch_turns import Turns
from gateway.batches.lines import request, split
from gateway.batches.results import Answered, answered, folder, part
from gateway.batches.steps import Steps
from gateway.batches.storage import FileStorage
from gateway.batches.submissions import ENDPOINTS
from gateway.config.table import Bodies
from gateway.core.batches import Batch, Work, path_of
from gateway.core.errors import (
    FilesUnavailable,
    GatewayError,
    Internal,
    QueueFull,
    QueueTimeout,
    RateLimited,
    Throttled,
    TooManyBodies,
    Unavailable,
    UpstreamBusy,
    UpstreamError,
    without_frames,
)
from gateway.http.errors import render
from gateway.store import Batches, StoreDown, Taken

log = logging.getLogger("trunkline.app")

T = TypeVar("T")

WAITED_OUT: Final = (RateLimited, QueueFull, QueueTimeout, Throttled, TooManyBodies, Unavailable, UpstreamBusy)
"""Nothing is wrong with the line: it is asked again for as long as the batch has time."""
TRIES: Final = 3
"""Of a line whose targets fail."""
PAUSE_SECONDS: Final = (1.0, 30.0)
"""The first and the longest pause before a line is asked again, where nobody says how long."""
PART_LINES: Final = 64
PART_BYTES: Final = 4 * 1024 * 1024
PART_SECONDS: Final = 0.5
"""Answers are recorded together: so many, so large, or after so long."""
WINDOW: Final = 4.0
"""Lines of a batch that are asked at once to begin with."""


class Tools(Struct, frozen=True):
    """What all runs of a worker share."""

    known: Batches
    storage: FileStorage
    steps: Steps
    turns: Turns
    boot: str
    serve: Callable[[LineClient], Awaitable[None]]
    """Make the call; raises `GatewayError`."""
    gap: Callable[[bytes], float]
    """Seconds after a line in which no other one begins beside calls that somebody waits for."""
    bodies: Callable[[], Bodies]
    """How large a line may be, among other things."""
    counted: Callable[[int, int], None]
    """So many good answers and errors were recorded."""


class Run:
    """A batch as this worker works on it. `update` tells it of the batch's changes."""

    def __init__(self, batch: Batch, tools: Tools) -> None:
        self.batch, self._tools, self._endpoint = batch, tools, ENDPOINTS[batch.endpoint]
        self.running, self.window, self.paused_until = 0, WINDOW, 0.0
        self.held: dict[str, int] = {}
        """Pieces of work that are ours, and how many of their lines have no answer yet."""
        self.ending = False
        """No more pieces are taken."""
        self.in_step = False
        """Its input is being looked at, or its results are being written, which ends later than the batch does."""
        self._answers, self._done, self._bytes = list[Answered](), list[str](), 0
        self._lines: set[asyncio.Task[None]] = set()
        self._poked, self._recordable, self._full = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._recording, self._serial = asyncio.Lock(), itertools.count(1)
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._record())]

    def update(self, batch: Batch) -> None:
        """The batch stands like this now; look for work again."""
        if batch.version != self.batch.version and batch.status in ("cancelling", "finalizing"):
            self.stop_lines()
        self.batch = batch
        self._poked.set()

    async def close(self) -> None:
        """End: what was answered is recorded, what was not is left to others."""
        self.ending = True
        self.stop_lines()
        self._tasks[0].cancel()
        await asyncio.wait([*self._lines, self._tasks[0]])
        if not self.batch.ended:
            with suppress(StoreDown, FilesUnavailable, TimeoutError):
                async with asyncio.timeout(5):
                    await self._flush(retry=False)
                    await self._tools.known.give_back(self.batch, list(self.held))
        self._tasks[1].cancel()
        await asyncio.wait(self._tasks)

    def stop_lines(self) -> None:
        """End the lines that are being asked."""
        for task in self._lines:
            task.cancel()

    async def _work(self) -> None:
        while not self.ending:
            self._poked.clear()
            try:
                taken = await self._take()
                if taken is None:
                    await self._poked.wait()
                else:
                    await self._do(taken)
            except (StoreDown, FilesUnavailable) as error:
                log.debug("batch %s waits: %s", self.batch.id, why(error))
                await asyncio.sleep(PAUSE_SECONDS[0])
            except Exception:  # a bug of ours: this batch must not end all others
                log.exception("batch %s could not be worked on", self.batch.id)
                await asyncio.sleep(PAUSE_SECONDS[1])

    async def _take(self) -> Taken | None:
        known, batch = self._tools.known, self.batch
        if batch.status == "validating":
            await known.add_work(batch, [Work(kind="check")])
        elif batch.status in ("cancelling", "finalizing"):
            await known.add_work(batch, [Work(kind="finish")])
        elif batch.status == "in_progress":  # what is taken is begun
            await self._tools.turns.enter(self)
            self._tools.turns.leave(self)
        if self.ending or batch is not self.batch:
            return None
        taken = await known.take(batch)
        if taken is not None and taken.id in self.held:  # it was ours: this worker had not been heard of for a while
            return None
        if taken is None and batch.status == "in_progress" and not self.held:
            await self._look_for_end()
        return taken

    async def _do(self, taken: Taken) -> None:
        self.held[taken.id], self.in_step = taken.work.count, taken.work.kind != "lines"
        try:
            if taken.work.kind == "lines":
                await self._ask(taken)
                return
            known, batch = self._tools.known, await self._tools.known.batch(self.batch.tenant, self.batch.id)
            if batch is None or batch.ended:  # by now: this piece was added by one who did not know
                self.ending = True
                await known.forget_work(self.batch)
            elif taken.work.kind == "check":
                await self._tools.steps.check(batch, self._tools.bodies().request)
                await known.record(batch, "", [], [taken.id])
            else:
                await self._tools.steps.finish(batch)
                self.ending = True
            del self.held[taken.id]
        except BaseException:
            if self.held.pop(taken.id, None) is not None:
                with suppress(StoreDown):
                    await self._tools.known.give_back(self.batch, [taken.id])
            raise
        finally:
            self.in_step = False

    async def _ask(self, taken: Taken) -> None:
        """Begin to ask the lines of a piece that have no answer yet."""
        batch, work = self.batch, taken.work
        recorded = await self._tools.known.recorded(batch, work.first, work.count)
        path = path_of(batch.tenant, batch.input_file)
        raw = await self._tools.storage.read(path, work.offset, work.length)
        for number, line in enumerate(split(raw), work.first):
            if number in recorded:
                self._ended(taken.id)
                continue
            await self._tools.turns.enter(self, self._tools.gap(line))
            if self.batch.status != "in_progress" or self.ending:  # by now
                self._tools.turns.leave(self)
                break
            task = asyncio.create_task(self._line(taken.id, number, line))
            self._lines.add(task)
            task.add_done_callback(self._lines.discard)

    async def _line(self, piece: str, number: int, raw: bytes) -> None:
        """Ask a line, which has a turn, and keep its answer."""
        turns, tries, has_turn = self._tools.turns, 0, True
        try:
            custom_id, body = request(raw)
            while True:
                client = LineClient(self.batch, number, body, self._endpoint, self._tools.bodies())
                error = await self._failure(client)
                if error is None:
                    self.window = min(turns.lines, self.window + 0.5)
                    answer = answered(number, custom_id, client.call_id, 200, bytes(client.body))
                    break
                pause = _pause(error, tries)
                if pause is None:
                    status, _, told = render(error, client.call_id, client.endpoint)
                    answer = answered(number, custom_id, client.call_id, status, told)
                    break
                tries += 1
                self.window = max(1.0, self.window / 2)
                self.paused_until = asyncio.get_running_loop().time() + pause
                has_turn = False
                turns.leave(self)
                await asyncio.sleep(pause)
                await turns.enter(self, self._tools.gap(raw))
                has_turn = True
        finally:
            if has_turn:
                turns.leave(self)
        self._keep(answer)
        self._ended(piece)

    async def _failure(self, client: LineClient) -> GatewayError | None:
        """Make the call; why it failed, if it did."""
        try:
            await self._tools.serve(client)
        except GatewayError as error:
            return without_frames(error)
        except Exception:  # a bug of ours; the record has told the log
            return Internal()
        return None

    def _keep(self, answer: Answered) -> None:
        self._answers.append(answer)
        self._bytes += len(answer.text)
        self._recordable.set()
        if len(self._answers) >= PART_LINES or self._bytes >= PART_BYTES:
            self._full.set()

    def _ended(self, piece: str) -> None:
        """One line more of this piece has its answer."""
        if piece in self.held:
            self.held[piece] -= 1
            if not self.held[piece]:
                self._done.append(piece)
                self._recordable.set()

    async def _record(self) -> None:
        while True:
            await self._recordable.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(PART_SECONDS):
                    await self._full.wait()
            self._recordable.clear()
            self._full.clear()
            try:
                await self._flush()
            except Exception:  # a bug of ours
                log.exception("answers of batch %s could not be recorded", self.batch.id)

    async def _flush(self, *, retry: bool = True) -> None:
        """Record what was answered."""
        async with self._recording:
            answers, done = self._answers, self._done
            self._answers, self._done, self._bytes = [], [], 0
            if not answers and not done:
                return
            name = f"{self._tools.boot}-{next(self._serial)}"
            lines = [(answer.number, answer.good) for answer in answers]

            async def record() -> bool:
                if answers:
                    await self._tools.storage.put(f"{folder(self.batch)}/{name}", part(answers))
                return await self._tools.known.record(self.batch, name, lines, done)

            if await (_insisted(record) if retry else record()):
                good = sum(answer.good for answer in answers)
                self._tools.counted(good, len(answers) - good)
                for piece in done:
                    self.held.pop(piece, None)
                if not self.ending:
                    await self._look_for_end()
            else:  # it is closed: nobody wants the rest
                self.stop_lines()

    async def _look_for_end(self) -> None:
        batch = self.batch
        progress = await self._tools.known.progress(batch)
        if batch.status == "in_progress" and batch.total and progress.ended >= batch.total:
            await self._tools.steps.finalize(batch)


def why(error: StoreDown | FilesUnavailable) -> str:
    """What does not work, for the log."""
    return error.why if isinstance(error, FilesUnavailable) else str(error)


def _pause(error: GatewayError, tries: int) -> float | None:
    """Seconds after which the line is asked again; None: this is its answer."""
    least, most = PAUSE_SECONDS
    pause = min(most, least * 2.0**tries)
    if isinstance(error, WAITED_OUT):
        pause = pause if error.retry_after is None else max(error.retry_after, 0.05)
    elif not isinstance(error, UpstreamError) or not error.retryable or tries >= TRIES - 1:
        return None
    return pause * random.uniform(1.0, 1.2)  # noqa: S311 - jitter


async def _insisted(work: Callable[[], Awaitable[T]]) -> T:
    """Do it until it succeeds: what was answered must not be asked again."""
    while True:
        try:
            return await work()
        except (StoreDown, FilesUnavailable) as error:
            log.debug("answers wait to be recorded: %s", why(error))
            await asyncio.sleep(PAUSE_SECONDS[0])
