"""What the routing rule must hold, in the simulator and with the real routes: 8 targets, 4 gateways that exchange each
0.2 s, about 80 % of what 8 targets can carry, from a cold start.

Traces lie in the folder that TRUNKLINE_TRACES names, if any.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

from gateway.simulate import study, trace, workloads
from gateway.simulate.study import Fleet, Outcome, members, simulate

pytestmark = pytest.mark.slow

SECONDS = 120.0
SEED = 1
CONVERSATION = "mooncake_conversation.jsonl"
GROUPED = ["groups", "chats", "mixture"]
"""Affinity pays."""
UNIQUE = ["unique", "unique-system"]
"""Affinity can only harm."""
UNSEEN = ["agents", "documents"]
"""The rule was not chosen by these."""


@cache
def outcome(workload: str, policy: str) -> Outcome:
    found = workloads.find(workload)
    calls = workloads.calls(found, found.rate, SECONDS, SEED)
    return simulate(calls, SECONDS, Fleet(members(8)), policy, SEED).outcome


@pytest.mark.parametrize("workload", [*GROUPED, *UNSEEN])
def test_prompts_that_share_are_answered_in_half_the_time_of_least_tokens(workload: str) -> None:
    assert outcome(workload, "home-cost").ttft_mean <= 0.5 * outcome(workload, "least-tokens").ttft_mean


@pytest.mark.parametrize("workload", UNIQUE)
def test_prompts_that_share_nothing_lose_nothing(workload: str) -> None:
    assert outcome(workload, "home-cost").ttft_mean <= 1.05 * outcome(workload, "least-tokens").ttft_mean


@pytest.mark.parametrize("workload", GROUPED)
def test_it_does_better_than_a_policy_that_sees_into_caches_and_knows_load_as_late(workload: str) -> None:
    assert outcome(workload, "home-cost").ttft_mean < outcome(workload, study.ORACLE).ttft_mean


@pytest.mark.parametrize("workload", ["unique", *UNSEEN])
def test_it_does_nearly_as_well_as_that_policy_elsewhere(workload: str) -> None:
    assert outcome(workload, "home-cost").ttft_mean <= 1.2 * outcome(workload, study.ORACLE).ttft_mean


def test_one_prefix_for_all_is_spread_over_all_targets() -> None:
    assert outcome("one-prefix", "home-cost").token_imbalance <= 1.3


def test_a_recorded_hour_of_conversations_is_answered_in_three_fifths_of_the_time_of_round_robin() -> None:
    if not (folder := os.environ.get("TRUNKLINE_TRACES")):
        pytest.skip("TRUNKLINE_TRACES names no folder with traces")
    calls, seconds = trace.calls(trace.read(Path(folder) / CONVERSATION), 1.0, SEED)
    fleet = Fleet(members(8, kv_tokens=2_000_000))
    ours, theirs = (
        simulate(calls, seconds, fleet, policy, SEED).outcome.ttft_mean for policy in ("home-cost", "round-robin")
    )
    assert ours <= 0.6 * theirs
