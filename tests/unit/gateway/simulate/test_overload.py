"""`trunkline simulate` says when figures are those of a fleet that cannot keep up: they tell little else."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from gateway.cli.simulate import simulate


def said(*arguments: str) -> list[str]:
    result = CliRunner().invoke(simulate, ["--workload", "unique", "--seconds", "20", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_enough_targets_are_not_overloaded() -> None:
    assert not [line for line in said("--policies", "home-cost") if "Overloaded" in line]


@pytest.mark.parametrize("more", [("--replicas", "4"), ("--load", "2"), ("--rate", "4000")])
def test_too_much_for_the_targets_is_said_before_the_figures(more: tuple[str, str]) -> None:
    lines = said("--policies", "home-cost,round-robin", *more)
    assert lines[1].startswith("Overloaded: home-cost, round-robin.")
    assert [line.split()[0] for line in lines[-2:]] == ["home-cost", "round-robin"]


def test_only_the_policies_are_named_that_do_not_find_what_is_cached() -> None:
    lines = said("--workload", "mixture", "--seconds", "60", "--load", "0.7", "--policies", "home-cost,round-robin")
    assert lines[1].startswith("Overloaded: round-robin.")


def test_times_have_a_unit() -> None:
    heading = next(line for line in said("--policies", "session") if line.startswith("policy"))
    assert [each.strip() for each in heading.split("  ") if each.strip()] == [
        "policy", "TTFT mean, s", "p50, s", "p95, s", "p99, s", "hit ratio", "imbalance", "queued",
    ]  # fmt: skip
