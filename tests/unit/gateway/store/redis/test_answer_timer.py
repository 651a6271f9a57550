"""When the store's answers take too long, on a clock of the test's own: silence, progress, a loop that is behind."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from harness.virtual_time import VirtualLoop, run, settle

from gateway.store.redis.answer_timer import AnswerTimer, in_time

SECONDS = 0.25
SILENT, SLOW = "no answer in time", "answers are slow"


class Questions:
    """Open questions, which are answered when the test says so, and what was said of them."""

    def __init__(self) -> None:
        self.open: deque[int] = deque()
        self.unread = False
        self.said: list[str] = []
        self.timer = AnswerTimer(SECONDS, self._oldest, lambda: self.unread, self._over)

    def ask(self, count: int = 1) -> None:
        self.open.extend([self.timer.began()] * count)

    def answer(self, *, queued: bool = False) -> None:
        self.timer.ended(self.open.popleft(), queued=queued)

    def _oldest(self) -> int | None:
        return self.open[0] if self.open else None

    def _over(self, error: Exception) -> None:
        self.said.append(str(error))
        self.open.clear()


async def busy(seconds: float) -> None:
    """The loop does something else for so long."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop._passed += seconds
    await settle()


def virtual(story: Callable[[Questions], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """A test in virtual time."""

    async def told() -> None:
        await story(Questions())

    def test() -> None:
        run(told())

    return test


@virtual
async def test_silence_is_an_outage(questions: Questions) -> None:
    questions.ask()
    await asyncio.sleep(SECONDS)
    assert questions.said == []
    await asyncio.sleep(0.05)
    assert questions.said == [SILENT]


@virtual
async def test_where_nothing_is_asked_nothing_is_said(questions: Questions) -> None:
    questions.ask()
    questions.answer()
    await asyncio.sleep(10)
    questions.ask()
    await asyncio.sleep(SECONDS)
    assert questions.said == []


@virtual
async def test_each_answer_starts_the_time_anew(questions: Questions) -> None:
    questions.ask(9)
    for _ in range(4):
        await asyncio.sleep(0.2)
        questions.answer(queued=True)
    assert questions.said == []
    await asyncio.sleep(SECONDS + 0.05)
    assert questions.said == [SILENT]


@virtual
async def test_a_question_stays_open_for_four_time_outs_at_most(questions: Questions) -> None:
    """However steadily those before it are answered."""
    questions.ask(100)
    for _ in range(20):
        await asyncio.sleep(0.05)
        questions.answer(queued=True)
    assert questions.said == []
    await asyncio.sleep(0.05)
    assert questions.said == [SILENT]


@virtual
async def test_a_turn_that_comes_late_counts_as_one(questions: Questions) -> None:
    questions.ask()
    for _ in range(10):
        await busy(1.0)
    assert questions.said == []
    await busy(1.0)
    assert questions.said == [SILENT], "a server that is gone must be noticed by a loop that is always busy"


@virtual
async def test_nothing_is_said_before_what_lies_in_the_socket_is_read(questions: Questions) -> None:
    questions.ask(2)
    questions.unread = True
    for _ in range(20):
        await busy(1.0)
    assert questions.said == []
    questions.unread = False
    questions.answer()
    await asyncio.sleep(0.2)
    assert questions.said == []
    await asyncio.sleep(0.1)
    assert questions.said == [SILENT]


@virtual
async def test_three_slow_answers_are_an_outage(questions: Questions) -> None:
    for _ in range(3):
        assert questions.said == []
        questions.ask()
        await asyncio.sleep(0.2)
        questions.answer()
    assert questions.said == [SLOW]


@virtual
async def test_slow_answers_must_make_half_a_second(questions: Questions) -> None:
    for _ in range(4):
        questions.ask()
        await asyncio.sleep(0.11)
        questions.answer()
    assert questions.said == []
    questions.ask()
    await asyncio.sleep(0.11)
    questions.answer()
    assert questions.said == [SLOW]


@virtual
async def test_a_quick_answer_makes_up_for_slow_ones(questions: Questions) -> None:
    for _ in range(5):
        for seconds in (0.2, 0.2, 0.05):
            questions.ask()
            await asyncio.sleep(seconds)
            questions.answer()
    assert questions.said == []


@virtual
async def test_answers_to_what_was_asked_together_are_slow_together(questions: Questions) -> None:
    for _ in range(2):
        questions.ask(50)
        await asyncio.sleep(0.2)
        for _ in range(50):
            questions.answer()
    assert questions.said == []


@virtual
async def test_the_wait_for_those_before_it_makes_no_answer_slow(questions: Questions) -> None:
    """As in a burst: each waits for 0.3 s, while every 10 ms one is answered."""
    questions.ask(30)
    for _ in range(300):
        await asyncio.sleep(0.01)
        questions.answer(queued=True)
        questions.ask()
    assert questions.said == []


@virtual
async def test_a_server_that_is_slow_with_each_is_slow_in_a_burst_too(questions: Questions) -> None:
    for _ in range(3):
        questions.ask()
        await asyncio.sleep(0.03)
    for _ in range(3):
        assert questions.said == []
        await asyncio.sleep(0.15)
        questions.answer(queued=True)
    assert questions.said == [SLOW]


async def lasting(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


def test_work_is_given_its_time() -> None:
    async def told() -> None:
        assert await in_time(lasting(0.2), SECONDS) == "done"
        loop = asyncio.get_running_loop()
        started = loop.time()
        task = asyncio.ensure_future(lasting(0.3))
        with pytest.raises(TimeoutError):
            await in_time(task, SECONDS)
        assert loop.time() - started == pytest.approx(SECONDS)
        await settle()
        assert task.cancelled()

    run(told())


def test_work_has_its_turns_in_a_loop_that_is_behind() -> None:
    async def told() -> None:
        async def work() -> str:
            for _ in range(5):
                await busy(1.0)
            return "done"

        assert await in_time(work(), SECONDS) == "done"

    run(told())


def test_work_that_fails_says_why() -> None:
    async def told() -> None:
        async def work() -> None:
            raise ValueError("refused")

        with pytest.raises(ValueError, match="refused"):
            await in_time(work(), SECONDS)

    run(told())
