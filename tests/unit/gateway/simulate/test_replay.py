"""The simulation as a whole: everything ends, what is measured is right, and the same seed gives the same figures."""

from __future__ import annotations

import pytest

from gateway.routes.policies.api import Prompt
from gateway.routes.policies.round_robin import RoundRobin
from gateway.simulate import study, workloads
from gateway.simulate.calls import Call, count
from gateway.simulate.oracle import Oracle, Truth
from gateway.simulate.replay import Replay
from gateway.simulate.replica import Replica
from gateway.simulate.side import Side
from gateway.simulate.study import Fleet, Member, members, quantile, simulate


def call(at: float, *segments: tuple[int, int], answer: int = 50, draw: float = 0.0) -> Call:
    return Call(at, Prompt(sum(size for _, size in segments), segments[-1][0]), segments, answer, draw)


def replay(calls: list[Call], end: float, replicas: int = 1, gateways: int = 1) -> tuple[Replay, list[Side]]:
    targets = [Replica(f"r-{number}", 1.0, 1000.0, 100_000) for number in range(replicas)]
    truth = Truth(targets)
    sides = [Side(f"g-{number}", Oracle(truth, number), targets) for number in range(gateways)]
    return Replay(calls, targets, sides, 0.2, end, truth), sides


def test_times_to_the_first_token_are_waiting_and_reading() -> None:
    calls = [call(10.0, (1, 500)), call(10.1, (1, 500), (2, 100)), call(20.0, (3, 1000))]
    run, _ = replay(calls, 20.0)
    run.run()
    assert run.ttft == pytest.approx([0.5, 0.4 + 0.1, 1.0])
    assert (run.prompt_tokens, run.cached_tokens) == (500 + 600 + 1000, 500)


def test_the_first_quarter_of_the_time_is_not_measured() -> None:
    run, _ = replay([call(time, (number, 100)) for number, time in enumerate((1.0, 4.9, 5.0, 19.0))], 20.0)
    run.run()
    assert len(run.ttft) == 2
    assert run.arrived == 4


def test_what_follows_comes_after_the_answer_and_not_after_the_end() -> None:
    first, second, third = call(1.0, (1, 500), answer=100), call(3.0, (2, 100)), call(100.0, (3, 100))
    first.next, second.next = (second,), (third,)
    run, _ = replay([first], 20.0)
    seen: list[int] = []
    run.run(seen.append, each=1)
    assert seen == [1, 2]
    assert run.ttft == pytest.approx([0.1])  # of the second: it came at 1 + 0.5 + 100 * 0.02 + 3, in the measured part


@pytest.mark.parametrize("policy", [*study.POLICIES, study.ORACLE])
def test_all_counts_return_to_nothing(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Side] = []

    class Watched(Side):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            made.append(self)

    monkeypatch.setattr(study, "Side", Watched)
    calls = workloads.calls(workloads.find("mixture"), 30, 20, 1)
    simulate(calls, 20, Fleet(members(4)), policy)
    loads = [target.load for side in made for target in side.targets]
    assert len(loads) == 16
    assert [(load.prefill, load.waiting, load.running) for load in loads] == [(0, 0, 0)] * 16
    assert sum(load.charged for load in loads) > 0


@pytest.mark.parametrize("policy", [*study.POLICIES, study.ORACLE])
def test_the_same_seed_gives_the_same_figures_and_another_does_not(policy: str) -> None:
    def outcome(seed: int) -> study.Outcome:
        calls = workloads.calls(workloads.find("mixture"), 30, 20, seed)
        return simulate(calls, 20, Fleet(members(4)), policy, seed).outcome

    assert outcome(1) == outcome(1)
    assert outcome(1).ttft_mean != outcome(2).ttft_mean


def test_gateways_that_exchange_know_of_each_other() -> None:
    """One target is given much to read by one gateway; the other one is then told, or not."""

    def second_goes_to(share_seconds: float) -> int:
        targets = [Replica(f"r-{number}", 1.0, 1000.0, 100_000) for number in range(2)]
        truth = Truth(targets)
        sides = [Side(f"g-{number}", Oracle(truth, number), targets) for number in range(2)]
        calls = [call(0.1, (1, 6000)), *[call(1.0, (number, 10), draw=0.9) for number in range(2, 12)]]
        Replay(calls, targets, sides, share_seconds, 2.0, truth).run()
        busy = next(place for place, target in enumerate(sides[0].targets) if target.load.charged)
        return sides[1].targets[busy].load.charged

    assert second_goes_to(0.2) == 0
    assert second_goes_to(0.0) > 0


def test_a_heavier_target_is_given_more() -> None:
    fleet = Fleet((Member("heavy", 3.0), Member("light", 1.0)), gateways=1)
    calls = workloads.calls(workloads.find("unique"), 9, 60, 1)
    for policy in ("round-robin", "least-tokens", "home-cost"):
        outcome = simulate(calls, 60, fleet, policy).outcome
        assert outcome.token_imbalance < 1.2, policy  # of the weighted mean: alone, half of all would make it 2


def test_imbalance_counts_the_calls_that_are_there_when_one_comes() -> None:
    """Calls of ten seconds on two targets in turn; then a long time of nothing, and one more."""
    times = (10.0, 11.0, 12.0, 39.0)
    calls = [call(time, (number, 10), answer=500) for number, time in enumerate(times)]
    targets = [Replica(name, 1.0, 1000.0, 100_000) for name in ("a", "b")]
    run = Replay(calls, targets, [Side("g", RoundRobin(["a", "b"]), targets)], 0.2, 40.0, Truth(targets))
    run.run()
    assert run.busiest == 1 + 1 + 2 + 1
    assert run.busy == (1 + 2 + 3 + 1) / 2


def test_a_prompt_that_has_been_read_is_no_longer_pending() -> None:
    """A long answer is still being written where the first call went: that is no reason to go elsewhere."""
    later = [call(12.0 + number, (number, 10), answer=0) for number in range(2, 14)]
    run, (side,) = replay([call(10.0, (1, 500), answer=2000), *later], 40.0, replicas=2)
    run.run()
    charged = sorted(target.load.charged for target in side.targets)
    assert charged[0] > 0
    assert charged[1] > 500


def test_the_oracle_goes_where_the_prompt_is() -> None:
    calls = [call(10.0 + number, (1, 900), (10 + number, 10)) for number in range(20)]
    run, (side,) = replay(calls, 40.0, replicas=4)
    run.run()
    assert sum(target.load.charged > 0 for target in side.targets) == 1
    assert run.cached_tokens == 19 * 900


def test_fleets_of_a_size() -> None:
    listed = [Member("a", 1.0), Member("b", 2.0, 9)]
    assert [member.name for member in members(3)] == ["replica-1", "replica-2", "replica-3"]
    assert [(each.name, each.weight) for each in members(5, listed)] == [
        ("a", 1.0), ("b", 2.0), ("a-2", 1.0), ("b-2", 2.0), ("a-3", 1.0),
    ]  # fmt: skip
    assert [each.kv_tokens for each in members(2, listed)] == [study.KV_TOKENS, 9]
    assert [each.kv_tokens for each in members(2, listed, 77)] == [77, 77]


def test_quantiles_are_values_that_were_there() -> None:
    assert quantile([], 0.5) == 0
    assert quantile([3.0], 0.99) == 3.0
    values = [float(number) for number in range(1, 101)]
    assert [quantile(values, part) for part in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]


def test_what_follows_counts() -> None:
    first, second = call(1.0, (1, 1)), call(1.0, (2, 1))
    first.next = (second, call(1.0, (3, 1)))
    second.next = (call(1.0, (4, 1)),)
    assert count([first]) == 4
