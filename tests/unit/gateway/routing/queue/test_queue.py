"""The queue: whose turn it is, bounds, deadlines, and nothing lost whoever leaves when."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

import pytest
from harness.virtual_time import run, settle
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.core.errors import QueueFull, QueueTimeout
from gateway.core.types import Priority
from gateway.routing.queue.fairness import Turns
from gateway.routing.queue.queue import LOOK, PRIORITIES, Drain, Queue, Waiter

Task = asyncio.Task[int]


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """The test in a loop of its own, with its own time."""

    @wraps(test)
    def ran(*given: Any, **named: Any) -> None:
        run(test(*given, **named))

    return ran


class Model:
    """A route with room for some calls at once, its queue, and all that ever happened to its placements."""

    def __init__(self, room: int = 0, *, calls: int = 100, size: int = 10_000) -> None:
        self.room, self.calls, self.size = room, calls, size
        self.taken = 0
        self.numbers = iter(range(1, 1_000_000))
        self.returned: list[int] = []
        self.released: list[int] = []
        self.placed: list[Waiter] = []
        """In the order in which they were."""
        self.told: list[tuple[int, int]] = []
        clock = asyncio.get_running_loop().time
        self.queue: Queue[int] = Queue(calls=calls, size=size, clock=clock, changed=self._changed)
        self.tasks: list[Task] = []

    def _changed(self, calls: int, size: int) -> None:
        assert calls <= self.calls and size <= self.size
        self.told.append((calls, size))

    def attempt(self, waiter: Waiter) -> int | None:
        if self.taken == self.room:
            return None
        self.taken += 1
        self.placed.append(waiter)
        return next(self.numbers)

    def release(self, number: int) -> None:
        self.released.append(number)
        self.taken -= 1

    def end(self, number: int) -> None:
        """A placed call is over."""
        self.returned.remove(number)
        self.release(number)
        self.released.remove(number)
        self.ended = number
        self.queue.freed()

    def more(self, room: int = 1) -> None:
        self.room += room
        self.queue.freed()

    async def ask(self, waiter: Waiter, seconds: float = 10.0, **options: Any) -> int:
        number = await self.queue.place(waiter, lambda: self.attempt(waiter), self.release, seconds, **options)
        self.returned.append(number)
        return number

    def start(self, waiter: Waiter, seconds: float = 10.0, **options: Any) -> Task:
        task = asyncio.create_task(self.ask(waiter, seconds, **options))
        self.tasks.append(task)
        return task

    async def line_up(self, *waiters: Waiter) -> list[Task]:
        tasks = [self.start(waiter) for waiter in waiters]
        await settle()
        return tasks

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        assert (self.queue.waiting, self.queue.bytes) == (0, 0)
        assert not self.told or self.told[-1] == (0, 0)


def call(tenant: str = "a", priority: Priority = "normal", tokens: int = 10, size: int = 10) -> Waiter:
    return Waiter(priority, tenant, tokens, size)


@virtual
async def test_a_call_goes_at_once_while_there_is_room() -> None:
    model = Model(room=2)
    assert [await model.ask(call()), await model.ask(call())] == [1, 2]
    assert model.told == []


@virtual
async def test_a_call_waits_for_room() -> None:
    model = Model()
    (task,) = await model.line_up(call(size=7))
    assert not task.done() and (model.queue.waiting, model.queue.bytes) == (1, 7)
    model.more()
    assert (model.queue.waiting, model.queue.bytes) == (0, 0)
    assert await task == 1
    assert model.told == [(1, 7), (0, 0)]


@virtual
async def test_room_for_several_places_several() -> None:
    model = Model()
    tasks = await model.line_up(*(call() for _ in range(4)))
    model.more(3)
    await settle()
    assert [task.done() for task in tasks] == [True, True, True, False]
    await model.close()


@virtual
async def test_a_tenants_calls_go_in_the_order_in_which_they_came() -> None:
    model = Model()
    waiters = [call(tokens=tokens) for tokens in (500, 1, 30, 2)]
    await model.line_up(*waiters)
    model.more(4)
    assert list(map(id, model.placed)) == list(map(id, waiters))


@virtual
async def test_a_higher_priority_goes_first_and_does_not_wait_for_lower_ones() -> None:
    model = Model()
    await model.line_up(call("l", "low"), call("n"), call("h", "high"))
    for _ in range(3):
        model.more()
    assert [waiter.tenant for waiter in model.placed] == ["h", "n", "l"]
    model.room = model.taken
    await model.line_up(call("l", "low"))
    model.room += 1  # nobody has told the queue
    assert await model.start(call("h", "high"))
    await model.close()


@virtual
async def test_nobody_overtakes_those_of_its_own_priority() -> None:
    model = Model()
    await model.line_up(call("a"))
    model.room += 1  # nobody has told the queue
    await model.line_up(call("b"))
    assert [waiter.tenant for waiter in model.placed] == ["a"]
    await model.close()


@virtual
async def test_tenants_share_by_tokens_and_not_by_calls() -> None:
    model = Model()
    await model.line_up(*(call("big", tokens=100) for _ in range(10)), *(call("small") for _ in range(50)))
    served: Counter[str] = Counter()
    for _ in range(40):
        model.more()
        served[model.placed[-1].tenant] += model.placed[-1].tokens
        assert abs(served["big"] - served["small"]) <= 100
    await model.close()


@virtual
async def test_what_a_call_really_took_is_charged_in_the_end() -> None:
    model = Model()
    await model.line_up(call("a", tokens=100), call("b", tokens=100), call("a"), call("a"), call("b"), call("b"))
    model.more(2)
    a, b = model.placed
    model.queue.spent(a, 10, 5)  # 20 in all
    model.queue.spent(b, 10, 20)  # 50 in all
    model.more(4)
    assert [waiter.tenant for waiter in model.placed[2:]] == ["a", "a", "b", "b"]


@virtual
async def test_a_call_that_was_placed_twice_is_charged_once() -> None:
    """Its first target failed."""
    model = Model()
    retried = call("a", tokens=100)
    await model.line_up(retried, call("b", tokens=150), call("b"), call("b"))
    model.more()
    await model.line_up(retried, call("a"), call("a"))
    model.more(2)
    assert [waiter.tenant for waiter in model.placed] == ["a", "b", "a"] and model.placed[2] is retried
    model.queue.spent(retried, 100, 0)
    model.more(4)
    assert [waiter.tenant for waiter in model.placed[3:]] == ["a", "a", "b", "b"]
    await model.close()


@virtual
async def test_no_charge_is_taken_back_twice() -> None:
    model = Model()
    denied = call("a", tokens=100)
    task, *_ = await model.line_up(denied, call("a"), call("b", tokens=50), call("b"))
    model.more()
    model.room = 0
    model.release(await task)
    model.start(denied, again=True)
    await settle()
    model.more(2)
    model.queue.spent(denied, 100, 0)
    model.queue.spent(denied, 0, 0)  # nothing was charged since
    model.queue.spent(call("a", tokens=100), 0, 0)  # was never placed
    model.more(2)
    assert [waiter.tenant for waiter in model.placed[1:]] == ["a", "b", "b", "a"]
    await model.close()


@virtual
async def test_a_tenant_that_was_away_is_not_ahead_of_those_who_waited() -> None:
    model = Model()
    await model.line_up(*(call("a", tokens=100) for _ in range(20)))
    model.more(10)
    await model.line_up(*(call("new", tokens=100) for _ in range(10)))
    model.more(10)
    assert Counter(waiter.tenant for waiter in model.placed[10:]) == {"a": 5, "new": 5}
    await model.close()


@virtual
async def test_what_was_used_while_there_was_room_for_all_is_no_debt() -> None:
    model = Model(room=100)
    for _ in range(100):
        await model.ask(call("busy", tokens=100))
    await model.line_up(*(call(tenant, tokens=100) for tenant in ("new", "busy") for _ in range(10)))
    model.more(10)
    assert Counter(waiter.tenant for waiter in model.placed[100:]) == {"busy": 5, "new": 5}
    await model.close()


@virtual
async def test_a_charge_from_before_a_tenant_was_lifted_gives_no_credit() -> None:
    model = Model(room=1)
    early = call("away", tokens=1000)
    await model.ask(early)
    await model.line_up(*(call("a", tokens=500) for _ in range(20)))
    model.more(10)
    await model.line_up(*(call("away", tokens=500) for _ in range(10)))
    model.queue.spent(early, 0, 0)
    model.more(10)
    assert Counter(waiter.tenant for waiter in model.placed[11:]) == {"a": 5, "away": 5}
    await model.close()


@virtual
async def test_the_answer_of_a_call_counts_also_while_its_tenant_has_nothing_in_line() -> None:
    model = Model()
    await model.line_up(call("a"), *(call("c", tokens=30) for _ in range(9)))
    model.more()
    model.queue.spent(model.placed[0], 10, 100)
    await model.line_up(call("a"), call("b"))
    model.more(3)
    assert [waiter.tenant for waiter in model.placed] == ["a", "c", "b", "c"]
    await model.close()


@virtual
async def test_calls_and_bytes_are_bounded() -> None:
    model = Model(calls=3, size=100)
    await model.line_up(call(size=60))
    with pytest.raises(QueueFull) as refused:
        await model.ask(call(size=41))
    assert (refused.value.status, refused.value.should_retry, refused.value.outcome) == (429, True, "shed")
    assert (refused.value.type, refused.value.error_type) == ("rate_limit_error", "policy_queue_full")
    await model.line_up(call(size=20), call(size=20))
    with pytest.raises(QueueFull):
        await model.ask(call(size=0))
    await model.close()


@virtual
async def test_a_queue_of_none_is_none() -> None:
    model = Model(room=1, calls=0)
    assert await model.ask(call()) == 1
    with pytest.raises(QueueFull):
        await model.ask(call())


@virtual
async def test_a_full_queue_makes_room_for_a_higher_priority() -> None:
    model = Model(calls=3)
    low, normal, newest = await model.line_up(call("a", "low"), call("a"), call("a", "low"))
    high, again, third = await model.line_up(*(call("a", "high") for _ in range(3)))
    with pytest.raises(QueueFull):
        await newest
    with pytest.raises(QueueFull):
        await low
    with pytest.raises(QueueFull):
        await normal
    with pytest.raises(QueueFull):
        await model.ask(call("b", "normal"))
    assert not (high.done() or again.done() or third.done())
    await model.close()


@virtual
async def test_who_goes_at_once_pushes_nobody_out() -> None:
    model = Model(calls=1)
    (task,) = await model.line_up(call(priority="low"))
    model.room += 1  # nobody has told the queue
    assert await model.ask(call(priority="high")) == 1
    await settle()
    assert not task.done()
    await model.close()


@virtual
async def test_one_tenant_cannot_have_the_whole_queue() -> None:
    model = Model(calls=5)
    flood = await model.line_up(*(call("flood") for _ in range(5)))
    await model.line_up(call("b"), call("b"))
    assert [task.done() for task in flood] == [False, False, False, True, True]
    with pytest.raises(QueueFull):
        await model.ask(call("b"))
    with pytest.raises(QueueFull):
        await model.ask(call("flood"))
    with pytest.raises(QueueFull):
        await flood[4]
    with pytest.raises(QueueFull):
        await flood[3]
    await model.close()


@virtual
async def test_nobody_is_pushed_out_in_vain() -> None:
    model = Model(calls=4, size=100)
    (task,) = await model.line_up(call(priority="low", size=10))
    with pytest.raises(QueueFull):
        await model.ask(call(priority="high", size=101))
    assert not task.done()
    await model.close()


@virtual
async def test_waiting_ends_at_the_deadline() -> None:
    model = Model()
    (task,) = await model.line_up(call())
    with pytest.raises(QueueTimeout) as late:
        await task
    assert asyncio.get_running_loop().time() == pytest.approx(10.0)
    assert (late.value.status, late.value.should_retry, late.value.outcome) == (429, True, "shed")
    assert (late.value.type, late.value.error_type) == ("rate_limit_error", "policy_queue_timeout")
    await model.close()


@virtual
async def test_no_time_to_wait_is_still_time_to_try() -> None:
    model = Model(room=1)
    assert await model.ask(call(), seconds=0.0) == 1
    with pytest.raises(QueueTimeout):
        await model.ask(call(), seconds=0.0)
    assert model.told == []


@virtual
async def test_a_call_that_waits_in_vain_is_refused_at_once() -> None:
    model = Model()
    with pytest.raises(QueueTimeout) as late:
        await model.ask(call(), soonest=lambda: 12.5)
    assert late.value.retry_after == 12.5
    with pytest.raises(QueueTimeout) as late:
        await model.ask(call(), soonest=lambda: 9.0)  # only at its deadline
    assert asyncio.get_running_loop().time() == pytest.approx(10.0)
    known = iter([9.0, 40.0])
    with pytest.raises(QueueTimeout) as late:
        await model.ask(call(), soonest=lambda: next(known))
    assert late.value.retry_after == 40.0


@virtual
async def test_refused_clients_are_told_how_long_the_queue_takes() -> None:
    model = Model(calls=8)
    await model.line_up(*(call() for _ in range(8)))
    for _ in range(100):  # two calls a second, and one more waits each time
        await asyncio.sleep(0.5)
        model.more()
        await model.line_up(call())
    with pytest.raises(QueueFull) as refused:
        await model.ask(call())
    assert refused.value.retry_after == pytest.approx(9 / 2, rel=0.1)
    with pytest.raises(QueueTimeout) as late:
        await model.ask(call(priority="high"), seconds=0.0)
    assert late.value.retry_after == 1.0
    for task in model.tasks:
        task.cancel()
    await asyncio.sleep(1000)
    with pytest.raises(QueueTimeout) as late:
        await model.ask(call(), seconds=0.0)
    assert late.value.retry_after == 120.0
    await model.close()


@virtual
async def test_a_waiter_may_leave() -> None:
    model = Model()
    first, second = await model.line_up(call(), call())
    first.cancel()
    await settle()
    assert (model.queue.waiting, model.queue.bytes) == (1, 10)
    model.more()
    assert await second == 1 and model.released == []
    await model.close()


@virtual
async def test_a_waiter_that_leaves_as_it_is_placed_gives_its_placement_to_the_next() -> None:
    model = Model()
    first, second = await model.line_up(call(), call())
    model.more()
    first.cancel()
    assert await second == 2
    assert first.cancelled() and model.released == [1] and model.taken == 1


@virtual
async def test_one_that_has_just_left_is_not_placed() -> None:
    model = Model()
    *gone, last = await model.line_up(*(call() for _ in range(10)))
    for task in gone:
        task.cancel()
    model.more()
    assert model.queue.waiting == 0
    assert await last == 1 and model.released == []


@virtual
async def test_a_release_that_fails_loses_nothing() -> None:
    model = Model()
    waiter = call()

    def broken(number: int) -> None:
        model.release(number)
        raise OSError("broken")

    first = asyncio.create_task(model.queue.place(waiter, lambda: model.attempt(waiter), broken, 10))
    await settle()
    (second,) = await model.line_up(call())
    model.more()
    first.cancel()
    assert await second == 2
    with pytest.raises(OSError, match="broken"):
        await first


@virtual
async def test_a_cancelled_placement_is_not_charged() -> None:
    model = Model()
    first, *_ = await model.line_up(call("a", tokens=100), call("b", tokens=100), call("a", tokens=100))
    model.more()
    first.cancel()
    await settle()
    model.more()
    assert [waiter.tenant for waiter in model.placed] == ["a", "a", "b"]
    await model.close()


@virtual
async def test_a_denied_placement_comes_first_in_its_line_and_is_not_charged_twice() -> None:
    model = Model()
    denied = call("a", tokens=100)
    (task, *_) = await model.line_up(denied, call("a", tokens=1), call("b", tokens=150), call("b", tokens=1))
    model.more()
    model.room = 0
    model.release(await task)
    again = model.start(denied, again=True)
    await settle()
    assert not again.done()
    model.more(3)
    assert [(waiter.tenant, waiter.tokens) for waiter in model.placed[1:]] == [("a", 100), ("b", 150), ("a", 1)]
    await model.close()


@virtual
async def test_a_denied_placement_keeps_its_deadline() -> None:
    model = Model()
    denied = call()
    (task,) = await model.line_up(denied)
    await asyncio.sleep(6)
    model.more()
    model.release(await task)
    model.room = 0
    with pytest.raises(QueueTimeout):
        await model.ask(denied, again=True)
    assert asyncio.get_running_loop().time() == pytest.approx(10.0)
    with pytest.raises(QueueTimeout):  # it is over, but for one try
        await model.ask(denied, again=True)
    model.more()
    assert await model.ask(denied, again=True)


@virtual
async def test_a_denied_placement_finds_room_in_a_full_queue() -> None:
    model = Model(calls=2)
    denied = call("a")
    task, other = await model.line_up(denied, call("b"))
    model.more()
    model.release(await task)
    model.room = 0
    (newest,) = await model.line_up(call("c"))
    again = model.start(denied, again=True)
    await settle()
    assert not again.done() and not other.done()
    with pytest.raises(QueueFull):
        await newest
    await model.close()


@virtual
@pytest.mark.parametrize("error", [OSError("broken"), StopIteration("broken")], ids=repr)
async def test_an_attempt_that_fails_is_its_callers_alone(error: Exception) -> None:
    model = Model()

    def broken() -> int | None:
        if model.room:
            raise error
        return None

    first = asyncio.create_task(model.queue.place(call(), broken, model.release, 10))
    await settle()
    (second,) = await model.line_up(call())
    model.more()
    assert await second
    with pytest.raises((OSError, RuntimeError), match="broken"):
        await first
    assert (model.queue.waiting, model.queue.bytes) == (0, 0)
    with pytest.raises((OSError, RuntimeError)):
        await model.queue.place(call(), broken, model.release, 10)


@virtual
async def test_room_that_comes_free_during_an_attempt_is_used_and_does_not_recurse() -> None:
    model = Model()
    asked = 0

    def generous() -> int | None:
        """Finds no room, but frees some for others; and each time tells so."""
        nonlocal asked
        asked += 1
        if model.room == 0:
            return None
        model.queue.freed()
        return None

    first = asyncio.create_task(model.queue.place(call("first"), generous, model.release, 10))
    await settle()
    others = await model.line_up(call("b"), call("c"))
    asked = 0
    model.more(2)
    assert asked <= 6
    await asyncio.gather(*others)
    assert not first.done()
    first.cancel()
    await settle()
    await model.close()


@virtual
async def test_room_that_an_attempt_gives_back_itself_is_enough_for_it() -> None:
    model = Model()
    model.taken = model.room = 1
    waiter = call()

    def attempt() -> int | None:
        found = model.attempt(waiter)
        if found is None and model.taken:
            model.taken = 0
            model.queue.freed()
        return found

    assert await model.queue.place(waiter, attempt, model.release, 10)


@virtual
async def test_what_the_attempt_of_a_call_that_need_not_wait_gives_back_is_for_those_who_do() -> None:
    model = Model()
    (low,) = await model.line_up(call(priority="low"))

    def attempt() -> int:
        model.more()
        return 1000

    assert await model.queue.place(call(priority="high"), attempt, model.release, 10) == 1000
    assert await low == 1


@virtual
async def test_nothing_of_a_call_is_kept_when_it_was_placed() -> None:
    """Its timer would hold its body until the deadline."""
    model = Model()

    class Attempt:
        def __call__(self) -> int | None:
            return model.attempt(call())

    attempt = Attempt()
    held = weakref.ref(attempt)
    task = asyncio.create_task(model.queue.place(call(), attempt, model.release, 10))
    del attempt
    await settle()
    model.more()
    await task
    del task
    gc.collect()
    assert held() is None


@virtual
async def test_one_that_needs_a_particular_target_does_not_keep_others_from_the_rest() -> None:
    model = Model()
    particular = False
    picky = asyncio.create_task(
        model.queue.place(call("picky"), lambda: 1000 if particular else None, model.release, 10)
    )
    await settle()
    (task,) = await model.line_up(call("b"))
    assert not task.done()
    model.more()
    assert await task == 1
    model.room += 1  # an idle target tells nothing when another call comes
    assert await model.ask(call("picky")) == 2
    particular = True
    model.queue.freed()
    assert await picky == 1000


@virtual
async def test_who_is_behind_goes_when_the_first_gives_up() -> None:
    """Those in the way of others may leave while there is room, and no freed() will come."""
    for leave in ("cancel", "expire"):
        model = Model()
        blocking = [
            asyncio.create_task(model.queue.place(call(f"x{n}"), lambda: None, model.release, 10 if n else 5))
            for n in range(LOOK)
        ]
        await settle()
        (task,) = await model.line_up(call("b"))
        model.more()
        await settle()
        assert not task.done()
        if leave == "cancel":
            blocking[1].cancel()
        else:
            await asyncio.sleep(5)
        assert await task == 1
        for each in blocking:
            each.cancel()
        await asyncio.gather(*blocking, return_exceptions=True)
        await model.close()


OPERATIONS = ("ask", "ask", "ask", "end", "end", "cancel", "cancel_placed", "deny", "wait", "room", "less", "burst")


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.integers(0, 4), st.integers(0, 12), st.integers(0, 300))
def test_whatever_happens(seed: int, room: int, calls: int, size: int) -> None:
    run(_whatever(random.Random(seed), room, calls, size))


async def _whatever(chance: random.Random, room: int, calls: int, size: int) -> None:
    model = Model(room, calls=calls, size=size)
    waiters: dict[Task, Waiter] = {}

    def ask(waiter: Waiter, **options: Any) -> None:
        waiters[model.start(waiter, chance.choice((0.0, 1.0, 5.0, 30.0)), **options)] = waiter

    def stranger() -> Waiter:
        return call(chance.choice("abcd"), chance.choice(PRIORITIES), chance.randint(0, 500), chance.randint(0, 60))

    for _ in range(60):
        match chance.choice(OPERATIONS):
            case "ask":
                ask(stranger())
            case "burst":
                for _ in range(chance.randint(1, 8)):
                    ask(stranger())
            case "end" if model.returned:
                model.end(chance.choice(model.returned))
            case "cancel" if waiters:
                chance.choice(list(waiters)).cancel()
            case "cancel_placed" if model.returned:
                model.end(chance.choice(model.returned))  # places somebody, who may be the one that leaves
                for task in chance.sample(list(waiters), len(waiters) // 2):
                    task.cancel()
            case "deny" if model.returned:
                number = model.returned[-1]
                task = next((one for one in waiters if one.done() and _result(one) == number), None)
                if task is not None:
                    model.returned.remove(number)
                    model.taken -= 1
                    ask(waiters.pop(task), again=True)
                    model.queue.freed()
            case "wait":
                await asyncio.sleep(chance.choice((0.5, 2.0, 10.0)))
            case "room":
                model.more(chance.randint(1, 3))
            case "less":
                model.room = max(model.taken, model.room - chance.randint(1, 3))
        if chance.random() < 0.7:
            await settle()
            _check(model, waiters)
    await model.close()
    for number in list(model.returned):
        model.end(number)
    assert model.taken == 0, "a placement was neither returned nor released"
    assert len(set(model.released)) == len(model.released)


def _result(task: Task) -> int | None:
    return None if task.cancelled() or task.exception() is not None else task.result()


def _check(model: Model, waiters: dict[Task, Waiter]) -> None:
    """What holds whenever nothing more can happen by itself."""
    left = [waiters[task] for task in waiters if not task.done()]
    assert model.queue.waiting == len(left)
    assert model.queue.bytes == sum(waiter.size for waiter in left)
    assert model.taken == len(model.returned), "somebody has a placement and does not know"
    assert not left or model.taken >= model.room, "room, and somebody waits: a wakeup was lost"


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_the_order_of_placements(seed: int) -> None:
    """Strict priority; inside a tenant first come, first served."""
    run(_order(random.Random(seed)))


async def _order(chance: random.Random) -> None:
    model = Model(calls=10_000, size=10**9)
    waiting: list[Waiter] = []
    for _ in range(80):
        if chance.random() < 0.6 or not waiting:
            waiter = call(chance.choice("abc"), chance.choice(PRIORITIES), chance.randint(0, 100))
            waiting.append(waiter)
            await model.line_up(waiter)
            continue
        before = len(model.placed)
        model.more()
        (placed,) = model.placed[before:]
        first = min(PRIORITIES.index(waiter.priority) for waiter in waiting)
        assert PRIORITIES.index(placed.priority) == first, "a lower priority went first"
        line = [one for one in waiting if (one.priority, one.tenant) == (placed.priority, placed.tenant)]
        assert line[0] is placed, "a tenant's later call went first"
        waiting = [one for one in waiting if one is not placed]
    await model.close()


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 4), st.sampled_from([(1, 100), (1, 4000)]), st.integers(0, 300))
def test_tenants_that_always_wait_get_equal_tokens(seed: int, room: int, sizes: tuple[int, int], output: int) -> None:
    """Within one maximal call for each that is under way: their output is not known yet when others are placed."""
    run(_fair(random.Random(seed), room, sizes, output))


async def _fair(chance: random.Random, room: int, sizes: tuple[int, int], output: int) -> None:
    model = Model(calls=10_000, size=10**9)
    largest = {"a": sizes[0] * 10, "b": sizes[1]}
    await model.line_up(*(call(t, tokens=chance.randint(1, largest[t])) for t in "ab" for _ in range(400)))
    served: Counter[str] = Counter()
    under_way: list[Waiter] = []
    maximal = max(largest.values()) + 2 * output
    while all(sum(w.tenant == t for w in model.placed) < 380 for t in "ab") and len(model.placed) < 400:
        while len(under_way) < room:
            model.more()
            under_way.append(model.placed[-1])
        ended = under_way.pop(chance.randrange(len(under_way)))
        real, written = chance.randint(0, ended.tokens), chance.randint(0, output)
        served[ended.tenant] += real + 2 * written
        model.queue.spent(ended, real, written)
        if len(model.placed) > 20:
            assert abs(served["a"] - served["b"]) <= (1 + room) * maximal
    await model.close()


@virtual
async def test_a_storm_of_cancels_leaves_nothing() -> None:
    model = Model(calls=2000, size=10**6)
    tasks = await model.line_up(*(call(f"t{n % 50}", PRIORITIES[n % 3]) for n in range(2000)))
    assert model.queue.waiting == 2000
    chance = random.Random(1)
    chance.shuffle(tasks)
    for number, task in enumerate(tasks):
        task.cancel()
        if number % 7 == 0:
            model.more()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (model.queue.waiting, model.queue.bytes) == (0, 0)
    assert model.taken == len(model.returned)


def test_tenants_that_do_not_wait_are_forgotten_in_the_end() -> None:
    turns: Turns[object] = Turns(most=100)
    waiting = object()
    turns.join("waits", waiting)
    for number in range(10_000):
        turns.charge(f"t{number}", 5)
        one = object()
        turns.join(f"u{number}", one)
        turns.leave(f"u{number}", one)
    assert turns.tenants <= 101
    assert list(turns.next(1)) == [waiting]
    turns.correct("t0", 100)  # forgotten: nothing to correct
    assert turns.tenants <= 101


def test_leaving_twice_is_leaving_once() -> None:
    turns: Turns[object] = Turns()
    one = object()
    turns.join("a", one)
    assert turns.leave("a", one) and not turns.leave("a", one)
    assert turns.waiting == 0


def test_a_rate_is_known_soon_and_forgotten_slowly() -> None:
    drain = Drain()
    assert drain.rate(0.0) == 0.0
    for tick in range(30):
        drain.count(tick / 10)
    assert drain.rate(2.9) == pytest.approx(10, rel=0.15)
    for tick in range(1000):
        drain.count(3 + tick / 2)
    assert drain.rate(503) == pytest.approx(2, rel=0.1)
    assert drain.rate(1000) < 0.001
