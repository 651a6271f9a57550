"""`round-robin`: smooth turns in proportion to weights."""

from __future__ import annotations

from harness.routing import Gateway, Replica, fleet
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.policies.api import Prompt
from gateway.routing.policies.registry import load

TURNS = load("round-robin")
CALL = Prompt(10)


def turns(weights: list[float], count: int) -> list[int]:
    asked = Gateway(TURNS, [Replica(f"t{n}", weight) for n, weight in enumerate(weights)])
    return [asked.serve(CALL).score.index for _ in range(count)]


def test_equal_targets_take_turns() -> None:
    found = turns([1.0] * 4, 40)
    for start in range(0, 40, 4):
        assert sorted(found[start : start + 4]) == [0, 1, 2, 3]


def test_a_heavy_target_does_not_have_its_turns_in_a_row() -> None:
    """As nginx spreads 5, 1, 1."""
    assert turns([5.0, 1.0, 1.0], 7) == [0, 0, 1, 0, 2, 0, 0]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 200))
def test_at_any_time_each_has_had_its_part(weights: list[int], count: int) -> None:
    """Within one turn per target, not only at the end of a round."""
    found = turns([float(weight) for weight in weights], count)
    for place, weight in enumerate(weights):
        assert abs(found.count(place) - count * weight / sum(weights)) < len(weights)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_a_round_is_exact(weights: list[int]) -> None:
    found = turns([float(weight) for weight in weights], 3 * sum(weights))
    assert [found.count(place) for place in range(len(weights))] == [3 * weight for weight in weights]


def test_a_target_that_was_away_is_not_sent_all_it_missed() -> None:
    asked = fleet(TURNS, 1, 4)[0]
    for _ in range(300):
        asked.serve(CALL, usable=[0, 1, 2])
    found = [asked.serve(CALL).score.index for _ in range(40)]
    assert found.count(3) <= 11


def test_load_and_keys_do_not_matter() -> None:
    asked = fleet(TURNS, 1, 3)[0]
    asked.replicas[1].load.prefill = 10**6
    found = [asked.serve(Prompt(1000, 5, 6, 900, True, 7)) for _ in range(30)]
    assert {each.score.reason for each in found} == {"turn"}
    assert [sum(each.score.index == place for each in found) for place in range(3)] == [10, 10, 10]
    assert all(each.score.cached == 0 for each in found)
