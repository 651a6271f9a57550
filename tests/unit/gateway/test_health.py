"""The breaker: when it ejects, for how long, how a target comes back; and the prober's memory."""

from __future__ import annotations

import asyncio

import pytest
from harness.clock import FixedClock

from gateway import health
from gateway.health import Breaker, Prober


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def breaker(clock: FixedClock) -> Breaker:
    return Breaker("t", clock)


def fail(breaker: Breaker, times: int = 5) -> None:
    for _ in range(times):
        breaker.attempt()
        breaker.failed()


def test_five_failures_in_a_row_eject(breaker: Breaker) -> None:
    fail(breaker, 4)
    assert breaker.closed
    fail(breaker, 1)
    assert not breaker.closed


def test_a_success_between_breaks_the_row(breaker: Breaker) -> None:
    for _ in range(4):
        fail(breaker, 4)
        breaker.succeeded()
        breaker.succeeded()
        breaker.succeeded()
        breaker.succeeded()
        breaker.succeeded()
    assert breaker.closed


def test_half_of_ten_within_the_window_eject(breaker: Breaker) -> None:
    for _ in range(4):
        breaker.succeeded()
        breaker.failed()
    breaker.succeeded()
    assert breaker.closed, "eight calls are too few, and nine"
    breaker.failed()
    assert not breaker.closed


def test_less_than_half_do_not(breaker: Breaker) -> None:
    for _ in range(50):
        breaker.failed()
        breaker.succeeded()
        breaker.succeeded()
    assert breaker.closed


def test_failures_before_the_window_do_not_count(breaker: Breaker, clock: FixedClock) -> None:
    for _ in range(4):
        breaker.succeeded()
        breaker.failed()
    breaker.succeeded()
    clock.advance(31)
    breaker.failed()
    assert breaker.closed


def test_a_row_may_take_its_time(breaker: Breaker, clock: FixedClock) -> None:
    for _ in range(4):
        breaker.failed()
        clock.advance(60)
    assert breaker.closed
    breaker.failed()
    assert not breaker.closed


def test_an_ejection_ends_with_one_call_that_tries(breaker: Breaker, clock: FixedClock) -> None:
    fail(breaker)
    clock.advance(9.9)
    assert not breaker.closed
    clock.advance(0.2)
    assert breaker.closed
    breaker.attempt()
    assert not breaker.closed, "one is enough"
    breaker.succeeded()
    assert breaker.closed
    breaker.attempt()
    assert breaker.closed


def test_each_failed_try_doubles_the_time_up_to_two_minutes(breaker: Breaker, clock: FixedClock) -> None:
    fail(breaker)
    for pause in (10, 20, 40, 80, 120, 120):
        clock.advance(pause - 0.1)
        assert not breaker.closed
        clock.advance(0.2)
        assert breaker.closed
        breaker.attempt()
        breaker.failed()
        assert not breaker.closed


def test_after_it_worked_the_next_ejection_is_short_again(breaker: Breaker, clock: FixedClock) -> None:
    fail(breaker)
    clock.advance(10.1)
    breaker.attempt()
    breaker.failed()
    clock.advance(20.1)
    breaker.attempt()
    breaker.succeeded()
    fail(breaker, 4)
    assert breaker.closed
    fail(breaker, 1)
    clock.advance(10.1)
    assert breaker.closed


def test_a_try_whose_client_left_tells_nothing(breaker: Breaker, clock: FixedClock) -> None:
    fail(breaker)
    clock.advance(10.1)
    assert breaker.attempt()
    breaker.ended(trial=True)
    assert breaker.closed, "another call may try"
    breaker.attempt()
    breaker.failed()
    clock.advance(19)
    assert not breaker.closed


def test_clients_that_leave_are_no_failures(breaker: Breaker) -> None:
    for _ in range(100):
        breaker.ended(breaker.attempt())
    assert breaker.closed


def test_a_call_begun_before_the_ejection_does_not_end_the_trial(breaker: Breaker, clock: FixedClock) -> None:
    before = breaker.attempt()
    fail(breaker)
    clock.advance(10.1)
    assert breaker.attempt()
    breaker.ended(before)
    assert not breaker.closed, "one call tries, no other"


def test_failures_of_calls_begun_before_do_not_lengthen_an_ejection(breaker: Breaker, clock: FixedClock) -> None:
    fail(breaker)
    for _ in range(20):
        breaker.failed()
    clock.advance(10.1)
    assert breaker.closed


async def test_the_prober_remembers_and_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_SECONDS", (0.001, 0.001))
    answers = {"a": [True, False, True], "b": [False, False, False]}
    seen: dict[str, list[bool | None]] = {"a": [], "b": []}
    done = asyncio.Event()

    async def probe(name: str) -> bool:
        seen[name].append(prober.up[name])
        if not answers[name]:
            done.set()
            await asyncio.sleep(60)
        return answers[name].pop(0)

    prober = Prober(["a", "b"], probe)
    assert prober.up == {"a": None, "b": None}
    prober.open()
    await done.wait()
    await asyncio.sleep(0.05)
    await prober.close()
    assert seen == {"a": [None, True, False, True], "b": [None, False, False, False]}


async def test_a_probe_that_hangs_does_not_hold_the_others_or_the_end() -> None:
    asked = asyncio.Event()

    async def probe(name: str) -> bool:
        if name == "hangs":
            await asyncio.sleep(3600)
        asked.set()
        return True

    prober = Prober(["hangs", "b"], probe)
    prober.open()
    await asked.wait()
    await prober.close()
    assert prober.up["hangs"] is None
