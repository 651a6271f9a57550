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
    told: list[bool] = []
    breaker = Breaker("t", clock, lambda: told.append(breaker.closed))
    breaker.succeeded()
    fail(breaker, 4)
    breaker.succeeded()
    assert not told
    fail(breaker)
    clock.advance(10.1)
    breaker.attempt()
    breaker.succeeded()
    breaker.succeeded()
    assert told == [True], "and it takes calls by then"


async def test_the_prober_remembers_and_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_SECONDS", (0.001, 0.001))
    answers = {"a": [True, False, True], "b": [False, False, False]}
    seen: dict[str, list[bool | None]] = {"a": [], "b": []}
    done = asyncio.Event()

    async def probe(name: str) -> str:
        seen[name].append(prober.up[name])
        if not answers[name]:
            done.set()
            await asyncio.sleep(60)
        return "" if answers[name].pop(0) else "status 503"

    prober = Prober(["a", "b"], probe)
    assert prober.up == {"a": None, "b": None}
    prober.open()
    await done.wait()
    await asyncio.sleep(0.05)
    await prober.close()
    assert seen == {"a": [None, True, False, True], "b": [None, False, False, False]}


async def test_a_probe_that_hangs_does_not_hold_the_others_or_the_end() -> None:
    asked = asyncio.Event()

    async def probe(name: str) -> str:
        if name == "hangs":
            await asyncio.sleep(3600)
        asked.set()
        return ""

    prober = Prober(["hangs", "b"], probe)
    prober.open()
    await asked.wait()
    await prober.close()
    assert prober.up["hangs"] is None


class Servers:
    """What probes and looks at credentials get from the servers of a test, in turn; then they wait for ever."""

    def __init__(self, **health: list[str]) -> None:
        self.health = health
        self.credentials: dict[str, list[str]] = {name: [] for name in health}
        self.log: list[tuple[str, ...]] = []
        self.idle = {name: asyncio.Event() for name in health}

    async def probe(self, name: str) -> str:
        if not self.health[name]:
            self.idle[name].set()
            await asyncio.sleep(3600)
        return self.health[name].pop(0)

    async def credential(self, name: str) -> str:
        self.log.append(("credential", name))
        return self.credentials[name].pop(0) if self.credentials[name] else ""

    def prober(self, *names: str) -> Prober:
        return Prober(
            names,
            self.probe,
            credential=self.credential,
            told=lambda name, why: self.log.append(("told", name, why)),
            recovered=lambda name: self.log.append(("recovered", name)),
        )

    def of(self, kind: str) -> list[tuple[str, ...]]:
        return [entry[1:] for entry in self.log if entry[0] == kind]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_SECONDS", (0.001, 0.001))


@pytest.mark.usefixtures("hasty")
async def test_the_prober_says_why_and_tells_of_recoveries() -> None:
    servers = Servers(a=["unreachable", "status 503", "", "", "timeout"], b=["", ""])
    prober = servers.prober("a", "b")
    prober.open()
    for idle in servers.idle.values():
        await idle.wait()
    assert (prober.up, prober.why) == ({"a": False, "b": True}, {"a": "timeout"})
    assert [why for name, why in servers.of("told") if name == "a"] == ["unreachable", "status 503", "", "", "timeout"]
    assert servers.of("recovered") == [("a",)], "a target that was never seen down has not recovered"
    await prober.close()


@pytest.mark.usefixtures("hasty")
async def test_a_well_target_with_a_bad_credential_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CREDENTIAL_ROUNDS", 3)
    servers = Servers(a=[""] * 8)
    servers.credentials["a"] = ["credential refused", "credential refused", "", "", "credential refused"]
    prober = servers.prober("a")
    prober.open()
    await servers.idle["a"].wait()
    bad = "credential refused"
    # Asked at every probe until it is good, and then at every third.
    assert [why for _, why in servers.of("told")] == [bad, bad, "", "", "", "", "", ""]
    assert len(servers.of("credential")) == 4
    assert servers.of("recovered") == [("a",)]
    await prober.close()


@pytest.mark.usefixtures("hasty")
async def test_a_target_that_is_down_is_not_asked_about_its_credential() -> None:
    servers = Servers(a=["unreachable"] * 3)
    prober = servers.prober("a")
    prober.open()
    await servers.idle["a"].wait()
    assert not servers.of("credential")
    await prober.close()


@pytest.mark.usefixtures("hasty")
async def test_a_hurried_probe_does_not_wait_for_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PROBE_SECONDS", (60.0, 60.0))
    asked: list[str] = []
    answer = asyncio.Event()

    async def probe(name: str) -> str:
        asked.append(name)
        await answer.wait()
        return ""

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
    servers = Servers(a=["", ""], b=["status 500"], c=[""])
    prober = servers.prober("a", "b")
    prober.open()
    await servers.idle["a"].wait()
    await servers.idle["b"].wait()
    before = prober.up
    prober.replace(["a", "c"])
    assert prober.up is before and prober.up == {"a": True, "c": None} and not prober.why
    await servers.idle["c"].wait()
    assert prober.up == {"a": True, "c": True}
    servers.health["a"] = ["unreachable"]
    servers.idle["a"].clear()
    prober.replace(["a", "c"], anew=["a"])
    assert prober.up["a"] is None, "another server under the same name"
    await servers.idle["a"].wait()
    assert prober.up == {"a": False, "c": True}
    assert not servers.of("recovered")
    await prober.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("probe ")]


async def test_a_prober_that_is_not_open_asks_nobody() -> None:
    servers = Servers(a=[""])
    prober = servers.prober()
    prober.replace(["a"])
    await asyncio.sleep(0)
    assert prober.up == {"a": None} and not servers.log
    await prober.close()
