"""`session`: one target for a session, whatever its load, and another one only while that is away."""

from __future__ import annotations

from collections import Counter

import pytest
from harness.routing import Gateway, Replica, fleet, key

from gateway.routing.policies.api import Prompt
from gateway.routing.policies.registry import load
from gateway.targets.load import Share

SESSION = load("session")


def of(session: object, conversation: object = None, tokens: int = 1000) -> Prompt:
    return Prompt(
        tokens,
        None if conversation is None else key("c", conversation),
        session=None if session is None else key("s", session),
    )


def test_a_session_stays_whatever_the_load_and_the_conversation() -> None:
    asked = fleet(SESSION, 1, 6)[0]
    for n in range(50):
        first = asked.place(of(n, "one"))
        Share(first.replica.load, 10**6)
        again = asked.place(of(n, "another", 9000))
        assert again.replica is first.replica
        assert again.score.reason == "session"


def test_all_gateways_agree() -> None:
    one, other = fleet(SESSION, 2, 6)
    assert [one.serve(of(n)).score.index for n in range(200)] == [other.serve(of(n)).score.index for n in range(200)]


def test_a_session_whose_target_is_away_has_one_other_and_comes_back() -> None:
    asked = fleet(SESSION, 1, 6)[0]
    seconds = Counter[int]()
    for n in range(300):
        at = asked.serve(of(n)).score.index
        if at != 2:
            assert asked.serve(of(n), usable=[0, 1, 3, 4, 5]).score.index == at, "others do not move"
            continue
        second = {asked.serve(of(n), usable=[0, 1, 3, 4, 5]).score.index for _ in range(5)}
        assert len(second) == 1
        seconds[second.pop()] += 1
        assert asked.serve(of(n)).score.index == 2
    assert len(seconds) == 5, "they are spread over all that are left"


def test_sessions_follow_weights() -> None:
    asked = Gateway(SESSION, [Replica("a", 1.0), Replica("b", 3.0)])
    found = Counter(asked.serve(of(n)).score.index for n in range(4000))
    assert found[1] / 4000 == pytest.approx(0.75, abs=0.04)


def test_without_a_session_the_conversation_stays() -> None:
    asked = fleet(SESSION, 1, 6)[0]
    homes = {n: asked.serve(of(None, n)).score.index for n in range(100)}
    assert len(set(homes.values())) == 6
    for n, at in homes.items():
        Share(asked.replicas[at].load, 10**5)
        assert asked.serve(of(None, n)).score.index == at


def test_without_either_the_load_decides() -> None:
    asked = fleet(SESSION, 1, 2)[0]
    Share(asked.replicas[0].load, 500)
    placed = asked.serve(of(None))
    assert (placed.score.index, placed.score.reason, placed.charge) == (1, "no_key", 1000)


def test_a_young_target_draws_its_sessions_step_by_step_and_none_leaves_it() -> None:
    asked, before = fleet(SESSION, 1, 4)[0], set[int]()
    asked.replicas[3].since = 100.0
    for age in (0, 5, 15, 30, 60):
        there = {n for n in range(800) if asked.serve(of(n), 100.0 + age).score.index == 3}
        assert before <= there
        before = there
    assert len(before) == pytest.approx(200, abs=60)
