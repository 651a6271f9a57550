"""The simulation as a whole: everything ends, what is measured is right, and the same seed gives the same figures."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest
from harness.virtual_time import run

from gateway.config import TargetSpec
from gateway.faults.engine import Shape, TimedEngine
from gateway.routing.policies.registry import Factory, load
from gateway.simulate import study, workloads
from gateway.simulate.cache_aware import CacheAware
from gateway.simulate.calls import Asked, Call, count
from gateway.simulate.gateways import Boards, SimulatedGateway
from gateway.simulate.oracle import Oracle
from gateway.simulate.replay import Replay
from gateway.simulate.study import Fleet, Member, members, quantile, simulate

SLOW = Shape(kv_tokens=100_000, rate=1000.0, step=0.0, write=0.02, batch=1000)


def call(at: float, *segments: tuple[int, int], answer: int = 50, draw: float = 0.0) -> Call:
    tokens = sum(size for _, size in segments)
    return Call(at, Asked(tokens, segments[-1][0], segments=segments), answer, draw)


class Ran:
    """A run of a few calls, and what is left of it."""

    def __init__(
        self,
        calls: Sequence[Call],
        end: float,
        *,
        engines: int = 1,
        gateways: int = 1,
        share: float = 0.2,
        skip: float = 0.0,
        policy: str = "oracle",
    ) -> None:
        self.seen: list[int] = []
        run(self._play(calls, end, engines, gateways, share, skip, policy))

    async def _play(
        self, calls: Sequence[Call], end: float, engines: int, gateways: int, share: float, skip: float, policy: str
    ) -> None:
        clock = asyncio.get_running_loop().time
        self.engines = [TimedEngine(SLOW) for _ in range(engines)]
        targets = [TargetSpec(name=f"r-{n}", backend="vllm", url=f"http://r-{n}") for n in range(engines)]

        def policies(name: str) -> Factory:
            made = {"oracle": partial(Oracle, [engine.cache for engine in self.engines]), "cache_aware": CacheAware}
            return made.get(name) or load(name)

        boards = Boards(clock)

        self.gateways = [
            SimulatedGateway(f"g-{n}", targets, policy, policies, boards, clock, n) for n in range(gateways)
        ]
        self.replay = Replay(calls, self.engines, [1.0] * engines, self.gateways, share, end, skip, self.seen.append)
        await self.replay.run()

    @property
    def ttft(self) -> list[float]:
        return [seconds for _, seconds in self.replay.ttft]

    @property
    def cached(self) -> list[int]:
        return [cached for _, _, cached in self.replay.cached]

    def charged(self, gateway: int = 0) -> list[int]:
        """Tokens that a gateway charged to each target."""
        return [target.load.charged for target in self.gateways[gateway].route.targets]


def test_times_to_the_first_token_are_waiting_and_reading() -> None:
    ran = Ran([call(10.0, (1, 500)), call(10.1, (1, 500), (2, 100)), call(20.0, (3, 900))], 30.0)
    assert ran.ttft == pytest.approx([0.5, 0.4 + 0.1 + 0.02, 0.9])
    assert ran.cached == [0, 500, 0]
    assert ran.replay.tokens == [500 + 600 + 900]


def test_what_comes_in_the_skipped_time_is_not_measured() -> None:
    ran = Ran([call(time, (number, 100)) for number, time in enumerate((1.0, 4.9, 5.0, 19.0))], 20.0, skip=5.0)
    assert [came for came, _ in ran.replay.ttft] == pytest.approx([5.0, 19.0])
    assert ran.replay.arrived == 4


def test_what_follows_comes_after_the_answer_and_not_after_the_end() -> None:
    first, second, third = call(1.0, (1, 500), answer=101), call(3.0, (2, 100)), call(100.0, (3, 100))
    first.next, second.next = (second,), (third,)
    ran = Ran([first], 20.0)
    assert ran.replay.ttft == [(1.0, 0.5), (pytest.approx(1.0 + 0.5 + 100 * 0.02 + 3), pytest.approx(0.1))]
    assert ran.replay.arrived == 2


def test_an_answer_that_has_not_begun_a_minute_after_the_end_counts_with_the_time_it_had() -> None:
    ran = Ran([call(1.0, (1, 50_000)), call(2.0, (2, 90_000))], 3.0)
    assert ran.ttft == pytest.approx([50.0, 61.0])
    assert ran.replay.unfinished == 1
    assert ran.engines[0].running == 0 and ran.engines[0].cache.kept_tokens == 0


@pytest.mark.parametrize("policy", [*study.POLICIES, study.ORACLE, study.CACHE_AWARE])
def test_all_counts_return_to_nothing(policy: str) -> None:
    calls = workloads.calls(workloads.find("mixture"), 1, 20, 1)
    ran = Ran(calls, 20, engines=3, gateways=2, policy=policy)
    for gateway in ran.gateways:
        loads = [target.load for target in gateway.route.targets]
        assert [(load.prefill, load.waiting, load.running) for load in loads] == [(0, 0, 0)] * 3
        assert gateway.route.waiting == 0
    left = [(engine.running, len(engine.waiting), engine.cache.kept_tokens) for engine in ran.engines]
    assert left == [(0, 0, 0)] * 3
    assert sum(ran.charged()) > 0 and sum(ran.charged(1)) > 0


@pytest.mark.parametrize("policy", [*study.POLICIES, study.ORACLE, study.CACHE_AWARE])
def test_the_same_seed_gives_the_same_figures_and_another_does_not(policy: str) -> None:
    def outcome(seed: int) -> study.Outcome:
        calls = workloads.calls(workloads.find("mixture"), 30, 20, seed)
        return simulate(calls, 20, Fleet(members(4)), policy, seed).outcome

    assert outcome(1) == outcome(1)
    assert outcome(1).ttft_mean != outcome(2).ttft_mean


@pytest.mark.parametrize(("share", "told"), [(0.2, True), (0.0, False)])
def test_gateways_that_exchange_know_of_each_other(share: float, told: bool) -> None:
    """One engine is given much to read by one gateway; the other one is then told, or not."""
    calls = [call(0.1, (1, 60_000)), *[call(1.0, (number, 10), draw=0.9) for number in range(2, 12)]]
    ran = Ran(calls, 2.0, engines=2, gateways=2, share=share)
    busy = next(place for place, charged in enumerate(ran.charged()) if charged)
    assert (ran.charged(1)[busy] == 0) is told


def test_calls_wait_in_the_gateway_while_all_engines_are_full() -> None:
    """More tokens are outstanding than a target may have."""
    calls = [call(0.1 * number, (number, 90_000), answer=1) for number in range(1, 8)]
    ran = Ran(calls, 1.0)
    assert ran.replay.queued + ran.replay.refused > 0


def test_a_heavier_target_is_given_more() -> None:
    fleet = Fleet((Member("heavy", 3.0), Member("light", 1.0)), gateways=1)
    calls = workloads.calls(workloads.find("unique"), 9, 60, 1)
    for policy in ("round-robin", "least-tokens", "home-cost"):
        outcome = simulate(calls, 60, fleet, policy).outcome
        assert outcome.token_imbalance < 1.2, policy  # of the weighted mean: alone, half of all would make it 2


def test_imbalance_counts_the_calls_that_are_there_when_one_comes() -> None:
    """Calls of ten seconds on two targets in turn; then a long time of nothing, and one more."""
    times = (10.0, 11.0, 12.0, 39.0)
    ran = Ran([call(time, (number, 10), answer=500) for number, time in enumerate(times)], 40.0, engines=2,
              policy="round-robin")  # fmt: skip
    assert ran.replay.busiest == 1 + 1 + 2 + 1
    assert ran.replay.busy == (1 + 2 + 3 + 1) / 2
    assert ran.replay.reasons == {"turn": 4}


def test_the_oracle_goes_where_the_prompt_is() -> None:
    ran = Ran([call(10.0 + number, (1, 900), (10 + number, 10)) for number in range(20)], 40.0, engines=4)
    assert sum(engine.queried > 0 for engine in ran.engines) == 1
    assert ran.cached == [0] + [900] * 19


def test_the_other_router_keeps_prompts_together_and_new_ones_apart() -> None:
    calls = [call(1.0 + number, (number % 4, 900), (10 + number, 100)) for number in range(40)]
    ran = Ran(calls, 60.0, engines=4, policy="cache_aware")
    assert [engine.queried for engine in ran.engines] == [10_000] * 4
    assert sum(ran.cached) == 36 * 900


def test_the_other_router_looks_at_load_alone_once_that_is_far_apart() -> None:
    """All share a prefix: the first target gets all, until it runs 64 more than the other."""
    calls = [call(1.0 + number / 1000, (1, 10), (10 + number, 1), answer=2000) for number in range(80)]
    ran = Ran(calls, 2.0, engines=2, policy="cache_aware")
    assert ran.replay.tokens == [(65 + 7) * 11, 8 * 11], "then by turns, as it is even enough again"


def test_fleets_of_a_size() -> None:
    listed = [Member("a", 1.0), Member("b", 2.0, 9)]
    assert [member.name for member in members(3)] == ["replica-1", "replica-2", "replica-3"]
    assert [(each.name, each.weight) for each in members(5, listed)] == [
        ("a", 1.0), ("b", 2.0), ("a-2", 1.0), ("b-2", 2.0), ("a-3", 1.0),
    ]  # fmt: skip
    assert [each.kv_tokens for each in members(2, listed)] == [study.KV_TOKENS, 9]
    assert [each.kv_tokens for each in members(2, listed, 77)] == [77, 77]


def test_an_engine_of_twice_the_weight_does_all_in_half_the_time() -> None:
    one, two = (Fleet((), rate=8000.0).shape(Member("a", weight, 70_000)) for weight in (1.0, 2.0))
    assert (two.rate, two.step, two.write) == (2 * one.rate, one.step / 2, one.write / 2)
    assert (one.kv_tokens, one.batch, two.batch) == (70_000, 2000, 4000)


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
