"""`least-tokens`: the less loaded of two drawn by weight."""

from __future__ import annotations

from collections import Counter

import pytest
from harness.routing import Gateway, Replica, exchange, fleet

from gateway.routing.policies.api import Prompt
from gateway.routing.policies.registry import load
from gateway.targets.load import LoadReport, Share

LEAST = load("least-tokens")
CALL = Prompt(1000)


def loaded(*tokens: int, weights: tuple[float, ...] | None = None) -> Gateway:
    asked = Gateway(LEAST, [Replica(f"t{n}", weights[n] if weights else 1.0) for n in range(len(tokens))])
    for replica, due in zip(asked.replicas, tokens, strict=True):
        if due:
            Share(replica.load, due)
    return asked


def test_of_two_the_one_with_less_to_read_is_taken() -> None:
    for _ in range(50):
        assert loaded(5000, 4000).serve(CALL).score.index == 1


def test_of_several_the_one_with_most_to_read_is_never_taken() -> None:
    asked = loaded(100, 200, 9000, 300)
    found = Counter(asked.serve(CALL).score.index for _ in range(400))
    assert found[2] == 0
    assert found[0] > found[1] > found[3] > 0, "two at random, not the least of all: gateways do not run together"


def test_calls_that_have_their_first_token_weigh_nothing() -> None:
    asked = loaded(0, 100)
    for _ in range(50):
        Share(asked.replicas[0].load, 9000).first_token()
    assert asked.serve(CALL).score.index == 0


def test_between_equals_the_one_with_fewer_calls_is_taken() -> None:
    asked = loaded(0, 0)
    Share(asked.replicas[0].load, 500).first_token()
    assert {asked.serve(CALL).score.index for _ in range(30)} == {1}


def test_a_heavier_target_reads_faster() -> None:
    asked = loaded(3000, 5000, weights=(1.0, 4.0))
    assert asked.serve(CALL).score.index == 1


def test_others_calls_count_and_grow_old() -> None:
    asked = loaded(1000, 0)
    asked.replicas[1].load.apply({"a": (LoadReport(6000, 2, 2, 6000), 0.0)}, 0.0)
    assert asked.serve(CALL, 0.0).score.index == 0
    assert asked.serve(CALL, 0.7).score.index == 1, "6000 less 0.7 s at 8000 tokens a second"


def test_nothing_is_expected_in_caches() -> None:
    placed = loaded(0, 0).serve(Prompt(1000, 5, 6, 900, True, 7))
    assert (placed.score.cached, placed.charge, placed.score.reason) == (0, 1000, "least")


def test_gateways_that_see_the_same_do_not_run_to_the_same_target() -> None:
    gateways = fleet(LEAST, 8, 8)
    for n in range(20):
        for gateway in gateways:
            gateway.place(CALL, n * 0.2)
        exchange(gateways, n * 0.2)
    calls = [sum(gateway.replicas[n].load.running for gateway in gateways) for n in range(8)]
    assert max(calls) <= 1.5 * sum(calls) / 8


@pytest.mark.timeout(10)
@pytest.mark.parametrize("weights", [(1000.0, 1e-6, 1e-6), (1e-9, 1.0, 1e-9, 1e-9)])
def test_weights_far_apart_are_drawn_at_once(weights: tuple[float, ...]) -> None:
    """A table may say so, and a target that has just come back has a fiftieth of its weight."""
    asked = loaded(*[0] * len(weights), weights=weights)
    heaviest = max(range(len(weights)), key=weights.__getitem__)
    assert {asked.serve(CALL).score.index for _ in range(50)} == {heaviest}
