"""How every policy spreads calls: by weight, without hot spots, gently to those who have just come."""

from __future__ import annotations

from random import Random

import pytest
from contract.chats import anything, unique
from harness.queueing import imbalance, play
from harness.routing import Gateway, Make, Replica, fleet, key

from gateway.routing.policies.api import Prompt
from gateway.routing.policies.registry import installed, load

NAMES = sorted(installed())
EACH = pytest.mark.parametrize("make", [load(name) for name in NAMES], ids=NAMES)


@EACH
def test_load_follows_weights(make: Make) -> None:
    """Calls that pile up: each target has its weight's part of them."""
    weights = [0.5, 1.0, 1.0, 2.0, 5.5]
    gateway = Gateway(make, [Replica(f"t{n}", weight) for n, weight in enumerate(weights)])
    for n in range(4000):
        gateway.place(unique(n), n * 0.01)
    for each in gateway.replicas:
        assert each.load.prefill / 4_000_000 == pytest.approx(each.weight / sum(weights), rel=0.15)


@EACH
def test_idle_targets_are_all_used(make: Make) -> None:
    """Each call ends before the next one comes: none of them is sent everything."""
    gateway = fleet(make, 1, 6)[0]
    found = [0] * 6
    for n in range(1200):
        found[gateway.serve(unique(n), float(n)).score.index] += 1
    assert imbalance(found) <= 1.3 and min(found) > 100


@EACH
def test_calls_with_nothing_to_go_by_are_spread(make: Make) -> None:
    gateway = fleet(make, 1, 6)[0]
    found = [0] * 6
    for n in range(1200):
        placed = gateway.serve(Prompt(1000), float(n))
        found[placed.score.index] += 1
        assert placed.score.reason in ("no_key", "least", "turn")
    assert imbalance(found) <= 1.3


@EACH
@pytest.mark.parametrize("gateways", [1, 4])
def test_one_system_prompt_for_all_leaves_no_hot_spot(make: Make, gateways: int) -> None:
    """Max/mean load <= 1.3 over 8 targets, at four fifths of what they can do."""

    def prompt(chance: Random, number: int) -> Prompt:
        return Prompt(3000, key("e", number), key("everyone"), 2500, session=key("e-session", number))

    sent = play(fleet(make, gateways, 8), prompt, calls=4000, per_second=36.0 if make is load("home-cost") else 17.0)
    assert imbalance(sent) <= 1.3


@EACH
@pytest.mark.parametrize("gateways", [1, 4])
def test_unique_prompts_leave_no_hot_spot(make: Make, gateways: int) -> None:
    sent = play(fleet(make, gateways, 8), lambda _, number: unique(number, 2400), calls=4000, per_second=19.0)
    assert imbalance(sent) <= 1.3


@EACH
def test_all_counters_are_zero_when_all_calls_have_ended(make: Make) -> None:
    gateways = fleet(make, 3, 5)
    play(gateways, anything, calls=3000, per_second=30.0)
    for gateway in gateways:
        for each in gateway.replicas:
            assert (each.load.prefill, each.load.waiting, each.load.running) == (0, 0, 0)
            assert each.load.charged > 0


@EACH
def test_a_young_target_is_given_little_at_first_and_all_in_the_end(make: Make) -> None:
    """Slow start: a fiftieth at once, half after half of 30 s, the whole from then on."""
    found = []
    for age in (0.0, 15.0, 30.0, 1000.0):
        gateway = fleet(make, 1, 5)[0]
        gateway.replicas[2].since = 100.0
        served = [gateway.serve(unique(n), 100.0 + age).score.index for n in range(2000)]
        found.append(served.count(2) / 400)
    assert found[0] <= 0.2
    assert found[0] < found[1] < found[2] or found[0] <= found[1] == 0
    assert found[2] == pytest.approx(1, rel=0.3) == found[3]
