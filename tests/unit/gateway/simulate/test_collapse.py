"""What real engines taught: the rule keeps caches whole under load, and comes back after too much of it.

40 documents of 6,000 tokens on four engines with 80,000 tokens of cache each. With a cap on engines that told of
waiting calls the first test had a hit ratio of .41 and 524 calls in gateways' queues (docs/routing-simulation.md).
"""

from __future__ import annotations

from random import Random

import pytest

from gateway.simulate import workloads
from gateway.simulate.calls import Call
from gateway.simulate.study import Fleet, Run, members, simulate

ENGINES = members(4, kv_tokens=80_000)


def ran(calls: list[Call], seconds: float, gateways: int) -> Run:
    return simulate(calls, seconds, Fleet(ENGINES, gateways, rate=33_000), "home-cost", 1)


def hit_ratio(run: Run, begin: float, end: float) -> float:
    """Of the calls that came in that time."""
    found = [(tokens, cached) for came, tokens, cached in run.cached if begin <= came < end]
    return sum(cached for _, cached in found) / sum(tokens for tokens, _ in found)


@pytest.mark.parametrize("gateways", [1, 2, 4])
@pytest.mark.parametrize("rate", [45, 60])
def test_from_a_cold_start_documents_are_read_once_and_nothing_waits_in_gateways(rate: float, gateways: int) -> None:
    run = ran(workloads.calls(workloads.find("questions"), rate, 30, 1), 30, gateways)
    assert run.outcome.hit_ratio >= 0.93
    assert (run.outcome.queued, run.outcome.refused, run.outcome.unfinished) == (0, 0, 0)


@pytest.mark.parametrize("gateways", [1, 4])
def test_after_a_burst_of_twice_the_capacity_all_is_as_before(gateways: int) -> None:
    """Half of what the engines can carry; for ten seconds twice what they can; twenty seconds later."""
    capacity = 190
    documents = workloads.questions(Random("base"), capacity / 2, 75)
    burst = workloads.questions(Random("base"), capacity * 3 / 2, 10)  # on the same documents
    for call in burst:
        call.after += 30
    assert {call.prompt.group for call in burst} == {call.prompt.group for call in documents}
    run = ran([*documents, *burst], 75, gateways)
    assert hit_ratio(run, 60, 75) >= hit_ratio(run, 20, 30) - 0.03
    assert run.outcome.unfinished == 0
