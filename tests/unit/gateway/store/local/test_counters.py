"""The counters of one process: what holds in a gateway that is cut off, beyond what every store must do."""

from __future__ import annotations

import pytest
from contract.wanted import Wanted, asking
from harness.clock import FixedClock

from gateway.core.types import Ask, Period
from gateway.store import periods
from gateway.store.local import counters
from gateway.store.local.counters import Counters


def rate(limit: int, amount: int = 1, name: str = "rpm") -> Wanted:
    unit = "requests" if name == "rpm" else "tokens"
    return Wanted(name, "rate", f"rate:key:k:{name}", limit, 60.0, "key", unit, amount=amount)


def slots(limit: int, key: str = "lease:key:k") -> Wanted:
    return Wanted("concurrency", "lease", key, limit, 15.0, "key", "calls")


def budget(limit: int, amount: int = 1, period: Period = "day", key: str = "budget:key:k:day:tokens") -> Wanted:
    return Wanted("budget", "budget", key, limit, 60.0, "key", "tokens", period, "closed", amount)


class Bench:
    def __init__(self) -> None:
        self.clock = FixedClock()
        self.counters = Counters(self.clock.now)
        self.calls = 0

    def ask(self, *dimensions: Wanted) -> Ask:
        self.calls += 1
        return asking(f"c{self.calls}", (("key:k", 1),), *dimensions)

    def granted(self, *dimensions: Wanted, times: int = 1) -> int:
        return sum(self.counters.charge(self.ask(*dimensions)).denied is None for _ in range(times))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_slots_of_calls_admitted_elsewhere_count(bench: Bench) -> None:
    elsewhere = [bench.ask(slots(5), rate(9), budget(9)) for _ in range(3)]
    for ask in elsewhere:
        bench.counters.register_lease(ask)
        bench.counters.register_lease(ask)
    assert bench.granted(slots(5), times=9) == 2
    bench.counters.release_lease(elsewhere[0])
    bench.counters.release_lease(elsewhere[0])
    assert bench.granted(slots(5), times=9) == 1


def test_only_slots_are_held(bench: Bench) -> None:
    """What a call admitted elsewhere takes of rates and budgets is counted there."""
    bench.counters.register_lease(bench.ask(rate(1), budget(1)))
    assert bench.granted(rate(1), budget(1)) == 1


def test_letting_go_of_what_was_never_held_is_nothing(bench: Bench) -> None:
    bench.counters.release_lease(bench.ask(slots(1), rate(1), budget(1)))
    assert bench.granted(slots(1), rate(1), budget(1), times=3) == 1


def test_settling_what_was_granted_elsewhere_is_nothing(bench: Bench) -> None:
    bench.granted(rate(100, 50, "tpm"), slots(2))
    stranger = asking("stranger", (), rate(100, 50, "tpm"), slots(2))
    bench.counters.settle(stranger, int(bench.clock.now() * 1e6), (0, 1))
    assert bench.granted(rate(100, 51, "tpm")) == 0
    assert bench.granted(slots(2), times=3) == 1


def test_budgets_begin_with_what_the_ledger_knows(bench: Bench) -> None:
    number, _ = periods.period("day", bench.clock.now())
    bench.counters.restore([("budget:key:k:day:tokens", number, 70), ("budget:key:other:day:tokens", number, 100)])
    verdict = bench.counters.charge(bench.ask(budget(100, 10)))
    assert verdict.standings[0].remaining == 20
    assert bench.granted(budget(100, 1, key="budget:key:other:day:tokens")) == 0


def test_what_the_ledger_knows_of_another_period_is_over(bench: Bench) -> None:
    number, _ = periods.period("day", bench.clock.now())
    bench.counters.restore([("budget:key:k:day:tokens", number - 1, 100)])
    assert bench.granted(budget(100, 100)) == 1


def test_a_denial_says_which_of_several_takes_longest(bench: Bench) -> None:
    bench.granted(rate(1), rate(60, 60, "tpm"))
    verdict = bench.counters.charge(bench.ask(rate(60, 30, "tpm"), rate(1)))
    assert verdict.denied == 1
    assert verdict.retry_after == 60.0
    assert [each.remaining for each in verdict.standings] == [0, 0]


def test_buckets_that_are_whole_again_are_dropped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "MAX_BUCKETS", 10)
    for number in range(100):
        dimension = Wanted("rpm", "rate", f"rate{number}", 60, 60.0)
        bench.counters.charge(asking(f"c{number}", (), dimension))
        bench.clock.advance(1.0)
    assert len(bench.counters._tats) <= 11
    again = bench.counters.charge(bench.ask(Wanted("rpm", "rate", "rate99", 60, 60.0)))
    assert again.standings[0].remaining == 59


def test_nothing_is_left_of_calls_that_have_ended(bench: Bench) -> None:
    """A gateway that runs for months keeps nothing of each call."""
    for _ in range(1000):
        ask = bench.ask(slots(3), budget(10**9), rate(10**6))
        at = bench.counters.charge(ask).at
        bench.counters.settle(ask, at, (1, 1, 1))
    assert bench.counters._granted == set()
    assert bench.counters.leases == {}
    assert all(not spending.open for spending in bench.counters._budgets.values())
