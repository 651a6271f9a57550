"""The ways in which other routers have failed: each seen in the wild, each with a test that it is not so here.

These are a policy's own and are driven through the real policy class; those that take a whole gateway are in
test_failure_patterns_live.py.
"""

from __future__ import annotations

import tracemalloc
from random import Random

from harness.routing import Gateway, Placed, exchange, fleet, key

from gateway.routing.policies.api import Prompt
from gateway.routing.policies.home_cost import HomeCost


def chat(group: object, number: object, tokens: int = 3000, prefix: int = 2000, *, follow_up: bool = False) -> Prompt:
    """A call of a conversation in a group that shares a system prompt."""
    return Prompt(tokens, key("c", group, number), key("g", group), prefix, follow_up)


def loads(gateway: Gateway) -> list[int]:
    return [replica.load.prefill for replica in gateway.replicas]


def test_memory_for_prefixes_is_bounded() -> None:
    """production-stack#687, dynamo#10774, smg#2137, sglang#16734: a tree of all prefixes eats all memory."""
    (gateway,) = fleet(HomeCost, 1, 8)
    for number in range(2000):
        gateway.serve(chat(number, number))
    tracemalloc.start()
    try:
        for number in range(30_000):
            placed = gateway.place(chat(number, number), usable=[number % 8])  # none goes home: all are exceptions
            placed.share.end()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 3_000_000


def test_routers_do_not_diverge() -> None:
    """GAIE#1406, aibrix#917, smg#1578: each router's own index sends a conversation elsewhere."""
    gateways, chance = fleet(HomeCost, 4, 8), Random(1)

    def places(prefix: int, number: int) -> set[str]:
        """Where six calls of one conversation go, each through any of the gateways."""
        calls = [chat(number % 20, number, 3000, prefix, follow_up=turn > 0) for turn in range(6)]
        return {gateways[chance.randrange(4)].serve(call).replica.name for call in calls}

    for number in range(300):
        assert len(places(0, number)) == 1
    # A long system prompt gets further homes as its calls pay for them, which moves some conversations; then they stay.
    found = []
    for number in range(1200):
        found.append(len(places(2000, number)))
        exchange(gateways, number * 0.2)
    assert max(found) <= 4
    assert sum(found[900:]) / 300 < 1.1


def test_one_shared_prefix_does_not_make_one_replica_hot() -> None:
    """llm-d-router#355, production-stack#990, sglang#21199: with one system prompt for all, one replica works."""
    (gateway,) = fleet(HomeCost, 1, 8)
    sent_to = [0] * 8
    waiting: list[Placed] = []
    for number in range(1600):
        waiting.append(gateway.place(chat("all", number, 3000, 2500), number * 0.02))
        sent_to[waiting[-1].score.index] += 1
        if len(waiting) > 16:
            waiting.pop(0).share.end()
    assert max(sent_to) * 8 / sum(sent_to) <= 1.3


def test_one_prefix_uses_more_than_two_of_eight_replicas() -> None:
    """llm-d-router#355: one unique prefix under load stayed on two of eight replicas."""
    (gateway,) = fleet(HomeCost, 1, 8)
    placed = [gateway.place(chat("all", number), number * 0.001) for number in range(64)]
    assert {each.replica.name for each in placed} == {f"t{n}" for n in range(8)}


def test_a_burst_is_spread_by_counting_at_once() -> None:
    """llm-d-router#298: scores by polled metrics send a whole burst to whatever was idle at the last poll."""
    (gateway,) = fleet(HomeCost, 1, 8)
    for number in range(64):
        gateway.place(Prompt(1000, key("burst", number)), 0.0)
    assert max(loads(gateway)) <= 1.5 * min(loads(gateway))


def test_bursts_at_several_routers_do_not_meet_at_one_replica() -> None:
    """llm-d-router#298, smg#2437: routers that see the same old load all choose the same target."""
    gateways = fleet(HomeCost, 4, 8)
    exchange(gateways, 0.0)
    counts = [0] * 8
    for number in range(64):
        counts[gateways[number % 4].place(Prompt(1000, key("herd", number)), 0.0).score.index] += 1
    assert max(counts) <= 2 * 64 / 8


def test_load_is_counted_when_the_call_is_sent() -> None:
    """sglang#27547, smg#1714: load counted once headers arrive sends all calls of a moment to worker 0."""
    (gateway,) = fleet(HomeCost, 1, 4)
    placed = gateway.place(Prompt(4000))
    assert placed.replica.load.prefill == 4000 and placed.replica.load.running == 1
    assert gateway.place(Prompt(4000)).replica is not placed.replica


def test_new_conversations_do_not_pile_up_on_the_emptiest_cache() -> None:
    """sglang#14305, sglang#14532: a miss goes to the smallest tree, however much that worker has to do."""
    (gateway,) = fleet(HomeCost, 1, 4)
    for number in range(400):  # three have full caches, the fourth is empty and busy
        gateway.serve(chat(number % 30, number), usable=[0, 1, 2])
    busy = gateway.replicas[3]
    held = gateway.place(Prompt(50_000, key("long")), usable=[3])
    places = [gateway.serve(chat("new", number, 1500, 500)).replica for number in range(100)]
    assert busy not in places
    held.share.end()


def test_imbalance_does_not_throw_all_affinity_away() -> None:
    """sglang#32195: as soon as one worker is busier, everything goes by load, and hit rates collapse."""
    (gateway,) = fleet(HomeCost, 1, 4)
    homes = {number: gateway.serve(chat(number, number, 3000, 0)).replica for number in range(80)}
    overloaded = gateway.replicas[0]
    held = [gateway.place(Prompt(30_000, key("hog", n)), usable=[0]) for n in range(3)]
    stayed = moved = 0
    for number, home in homes.items():
        now_at = gateway.serve(chat(number, number, 3500, 0, follow_up=True)).replica
        if home is overloaded:
            moved += now_at is not home
        else:
            stayed += now_at is home
    assert moved == sum(home is overloaded for home in homes.values()) > 0
    assert stayed == sum(home is not overloaded for home in homes.values())
    for each in held:
        each.share.end()


def test_the_longest_match_is_no_monopoly() -> None:
    """production-stack#990: routing by the longest match alone reinforces itself until one backend has all."""
    (gateway,) = fleet(HomeCost, 1, 4)
    first = gateway.serve(chat("hot", 0, 8000, 7000)).replica
    placed = [gateway.place(chat("hot", number, 8000, 7000)) for number in range(1, 41)]
    others = [each for each in placed if each.replica is not first]
    assert len(others) > len(placed) / 2
    assert len({each.replica.name for each in placed}) == 4


def test_a_single_group_is_not_slower_than_by_load() -> None:
    """sglang#21199: with one group of prompts cache-aware routing had 2.6 times the TTFT of round-robin."""
    (gateway,) = fleet(HomeCost, 1, 4)
    worst = 0
    waiting: list[Placed] = []
    for number in range(400):
        waiting.append(gateway.place(chat("only", number, 2500, 2000), number * 0.05))
        worst = max(worst, waiting[-1].replica.load.prefill)
        if len(waiting) > 8:
            waiting.pop(0).share.end()
    assert worst <= 4 * 2500, "eight calls on four targets wait for two others each, and not in one line"
