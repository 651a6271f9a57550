"""The breaker: when it ejects, for how long, how a target comes back; and when targets are probed."""

from __future__ import annotations

import asyncio

import pytest
from harness.clock import FixedClock

from gateway.targets import health
from gateway.targets.health import Breaker, Prober


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def breaker(clock: FixedClock) -> Breaker:
    return Breaker("t", clock)


def fail(breaker: Breaker, times: int = 5) -> None:
    for _ in range(times):
        breaker.failed(breaker.attempt())


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
        fail(breaker, 1)
        assert not breaker.closed


def test_after_it_worked_the_next_ejection_is_short_again(breaker: Breaker, clock: FixedClock) -> None:
    fail(breaker)
    clock.advance(10.1)
    fail(breaker, 1)
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
    fail(breaker, 1)
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


def test_a_call_begun_before_the_ejection_says_nothing_of_the_trial(breaker: Breaker, clock: FixedClock) -> None:
    fail(breaker)
    clock.advance(10.1)
    assert breaker.attempt()
    breaker.failed()
    assert breaker.ejections == 1, "an older call failed while the trial runs"
    breaker.failed(True)
    assert breaker.ejections == 2


def test_ejections_are_counted_until_it_works_again(breaker: Breaker, clock: FixedClock) -> None:
    assert breaker.ejections == 0
    fail(breaker)
    assert breaker.ejections == 1
    clock.advance(10.1)
    fail(breaker, 1)
    assert breaker.ejections == 2
    breaker.succeeded()
    assert breaker.ejections == 0, "a last resort that worked ends it before its time"


def test_a_recovery_is_told_once_and_only_after_an_ejection(clock: FixedClock) -> None:
    breaker = Breaker("t", clock)
    assert not breaker.succeeded()
    fail(breaker, 4)
    assert not breaker.succeeded()
    fail(breaker)
    clock.advance(10.1)
    breaker.attempt()
    assert breaker.succeeded() and breaker.closed
    assert not breaker.succeeded()


class Servers:
    """What probes get from the servers of a test, in turn; then they wait for ever."""

    def __init__(self, **answers: list[bool]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, bool]] = []
        """Targets, and whether for their credentials too."""
        self.idle = {name: asyncio.Event() for name in answers}

    async def probe(self, name: str, thorough: bool) -> bool:
        if not self.answers[name]:
            self.idle[name].set()
            await asyncio.sleep(3600)
        self.asked.append((name, thorough))
        return self.answers[name].pop(0)

    def of(self, name: str) -> list[bool]:
        return [thorough for each, thorough in self.asked if each == name]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_SECONDS", (0.001, 0.001))


@pytest.mark.usefixtures("hasty")
async def test_the_prober_asks_again_and_again() -> None:
    servers = Servers(a=[True, False, True], b=[False, False, False])
    prober = Prober(["a", "b"], servers.probe)
    prober.open()
    for idle in servers.idle.values():
        await idle.wait()
    await prober.close()
    assert servers.answers == {"a": [], "b": []}


async def test_a_probe_that_hangs_does_not_hold_the_others_or_the_end() -> None:
    asked = asyncio.Event()

    async def probe(name: str, thorough: bool) -> bool:
        if name == "hangs":
            await asyncio.sleep(3600)
        asked.set()
        return True

    prober = Prober(["hangs", "b"], probe)
    prober.open()
    await asked.wait()
    await prober.close()


@pytest.mark.usefixtures("hasty")
async def test_a_credential_is_asked_for_until_it_is_good_and_then_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(health, "CREDENTIAL_ROUNDS", 3)
    servers = Servers(a=[False, False, True, True, True, True, False, True])
    prober = Prober(["a"], servers.probe)
    prober.open()
    await servers.idle["a"].wait()
    await prober.close()
    assert servers.of("a") == [True, True, True, False, False, True, False, True]


@pytest.mark.usefixtures("hasty")
async def test_a_fault_of_a_probe_does_not_end_the_probes(caplog: pytest.LogCaptureFixture) -> None:
    asked = 0
    thrice = asyncio.Event()

    async def probe(name: str, thorough: bool) -> bool:
        nonlocal asked
        asked += 1
        if asked == 3:
            thrice.set()
        raise RuntimeError(name)

    prober = Prober(["a"], probe)
    prober.open()
    await thrice.wait()
    await prober.close()
    assert "target a could not be probed" in caplog.text


async def test_a_hurried_probe_does_not_wait_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_SECONDS", (60.0, 60.0))
    asked: list[str] = []
    answer = asyncio.Event()

    async def probe(name: str, thorough: bool) -> bool:
        asked.append(name)
        await answer.wait()
        return True

    prober = Prober(["a", "b"], probe)
    prober.hurry("a")
    prober.open()
    while sorted(asked) != ["a", "b"]:
        await asyncio.sleep(0.01)
    prober.hurry("a")  # it is being probed: that one may be too old
    answer.set()
    while asked.count("a") < 2:
        await asyncio.sleep(0.01)
    prober.hurry("b")
    prober.hurry("nobody")
    while asked.count("b") < 2:
        await asyncio.sleep(0.01)
    prober.replace(["a", "b"], anew=["b"])
    prober.hurry("b")
    while asked.count("b") < 3:
        await asyncio.sleep(0.01)
    await prober.close()
    assert asked.count("a") == 2


async def test_targets_come_and_go_while_the_prober_runs() -> None:
    servers = Servers(a=[True, True], b=[False], c=[True])
    prober = Prober(["a", "b"], servers.probe)
    prober.open()
    await servers.idle["b"].wait()
    prober.replace(["a", "c"])
    assert list(prober.names) == ["a", "c"]
    await servers.idle["c"].wait()
    servers.answers["a"] = [False]
    servers.idle["a"].clear()
    prober.replace(["a", "c"], anew=["a"])
    await servers.idle["a"].wait()
    assert servers.of("a")[-1], "another server under the same name: its credential is asked for"
    await prober.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("probe ")]


async def test_a_prober_that_is_not_open_asks_nobody() -> None:
    servers = Servers(a=[True])
    prober = Prober([], servers.probe)
    prober.replace(["a"])
    await asyncio.sleep(0)
    assert list(prober.names) == ["a"] and not servers.asked
    await prober.close()
