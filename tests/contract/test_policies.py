"""What every policy keeps to, whoever wrote it: one suite for all that are installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from math import isfinite
from random import Random
from typing import get_args

import pytest
from contract.chats import anything, chat, twins
from harness.routing import Gateway, Make, Replica, fleet, key
from hypothesis import given
from hypothesis import strategies as st

from gateway.routing.policies.api import Gossips, Inherits, Note, Prompt, Reason, Score
from gateway.routing.policies.registry import installed, load
from gateway.targets.load import Load, LoadReport, Share

NAMES = sorted(installed())
EACH = pytest.mark.parametrize("make", [load(name) for name in NAMES], ids=NAMES)
POLICIES = st.sampled_from([load(name) for name in NAMES])
HASHES = st.none() | st.integers(1, 2**64 - 1)


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    prefix = draw(st.integers(0, 10_000))
    return Prompt(
        prefix + draw(st.integers(0, 100_000)), draw(HASHES), draw(HASHES), prefix, draw(st.booleans()), draw(HASHES)
    )


@st.composite
def replicas(draw: st.DrawFn) -> Replica:
    load = Load()
    for tokens in draw(st.lists(st.integers(0, 50_000), max_size=3)):
        Share(load, tokens)
    if draw(st.booleans()):
        load.apply({"a": (LoadReport(draw(st.integers(0, 90_000)), 3, 5, 10**9), draw(st.floats(0, 3)))}, 50.0)
    return Replica(
        "",
        draw(st.floats(0.01, 100)),
        draw(st.sampled_from([1, 1000, 10**6])),
        draw(st.sampled_from([float("-inf"), 60.0, 100.0, 101.0])),
        load,
    )


def told(scores: Sequence[Score]) -> list[tuple[int, float, int, str]]:
    return [(each.index, each.cost, each.cached, each.reason) for each in scores]


def test_our_own_policies_are_installed_as_anyone_elses_are() -> None:
    assert {"home-cost", "least-tokens", "round-robin", "session"} <= set(installed())
    with pytest.raises(KeyError):
        load("no-such-policy")


@given(POLICIES, st.lists(replicas(), min_size=1, max_size=20), st.lists(prompts(), min_size=1, max_size=6), st.data())
def test_answers_are_in_range(make: Make, targets: list[Replica], asked: list[Prompt], data: st.DataObject) -> None:
    for n, each in enumerate(targets):
        each.name = f"t{n}"
    gateway = Gateway(make, targets)
    for prompt in asked:
        usable = sorted(data.draw(st.sets(st.integers(0, len(targets) - 1), min_size=1)))
        scores = gateway.scores(prompt, 100.0, usable)
        places = [score.index for score in scores]
        assert places and len(set(places)) == len(places) and set(places) <= set(usable)
        for score in scores:
            assert isfinite(score.cost)
            assert 0 <= score.cached <= prompt.tokens and isinstance(score.cached, int)
            assert score.reason in get_args(Reason)
        picked = gateway.policy.pick(scores)
        assert any(picked is score or picked == score for score in scores)
        gateway.place(prompt, 100.0, usable)


@EACH
def test_to_ask_changes_nothing(make: Make) -> None:
    """An explanation scores, too: whatever it asks, calls go where they would have gone."""
    chance = Random(3)
    asked, quiet = twins(make)
    for n in range(300):
        prompt = anything(chance)
        before = told(asked.scores(prompt, n * 0.1))
        for _ in range(3):
            asked.scores(anything(chance), n * 0.1)
        assert told(asked.scores(prompt, n * 0.1)) == before
        one, other = asked.place(prompt, n * 0.1), quiet.place(prompt, n * 0.1)
        assert (one.score.index, one.score.reason) == (other.score.index, other.score.reason)
        if n % 3:
            one.share.end()
            other.share.end()


@EACH
def test_only_usable_targets_are_chosen(make: Make) -> None:
    chance, gateway = Random(4), twins(make)[0]
    for n in range(300):
        usable = sorted(chance.sample(range(5), chance.randint(1, 5)))
        placed = gateway.place(anything(chance), n * 0.1, usable)
        assert placed.score.index in usable
        if n % 2:
            placed.share.end()


@EACH
def test_a_call_that_failed_somewhere_goes_elsewhere(make: Make) -> None:
    """The target that failed is not usable for this call; every other one is."""
    chance, gateway = Random(5), twins(make)[0]
    for n in range(200):
        prompt, left = anything(chance), list(range(5))
        tried = []
        while left:
            tried.append(gateway.serve(prompt, n * 0.1, left).score.index)
            left.remove(tried[-1])
        assert sorted(tried) == list(range(5))
    assert all((each.load.prefill, each.load.waiting, each.load.running) == (0, 0, 0) for each in gateway.replicas)


PROGRAM = """
import sys
from random import Random
from contract.chats import anything, twins
from gateway.routing.policies.registry import load
chance, gateway = Random(6), twins(load(sys.argv[1]))[0]
open_calls = []
for n in range(400):
    placed = gateway.place(anything(chance), n * 0.1)
    print(placed.score.index, placed.score.reason, placed.score.cached, placed.score.cost)
    open_calls.append(placed)
    if len(open_calls) > 20:
        open_calls.pop(chance.randrange(20)).share.end()
"""


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_choose_alike(name: str) -> None:
    said = set()
    for seed in ("1", "77"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(["tests", "."])}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, name], env=env, capture_output=True, text=True, check=True
        )
        said.add(done.stdout)
    assert len(said) == 1
    assert len(said.pop().splitlines()) == 400


@EACH
def test_one_target_is_always_the_one(make: Make) -> None:
    chance, gateway = Random(8), fleet(make, 1, 1)[0]
    assert {gateway.place(anything(chance), n * 0.1).score.index for n in range(200)} == {0}


@EACH
def test_a_reload_keeps_choices_where_targets_stay(make: Make) -> None:
    """A policy that inherits goes on as its predecessor would, wherever the targets stand in the new table."""
    chance, (old, twin) = Random(9), twins(make)
    for n in range(300):
        prompt = chat(chance)
        old.serve(prompt, n * 0.1)
        twin.serve(prompt, n * 0.1)
    new = Gateway(make, old.replicas, 7)
    if not isinstance(new.policy, Inherits):
        pytest.skip("remembers nothing")
    new.policy.inherit(old.policy, [each.name for each in old.replicas])
    for n in range(300, 600):
        prompt = chat(chance)
        assert new.serve(prompt, n * 0.1).replica.name == twin.serve(prompt, n * 0.1).replica.name


@EACH
def test_a_reload_that_changes_the_targets_breaks_nothing(make: Make) -> None:
    chance, (old, _) = Random(10), twins(make)
    for n in range(300):
        old.serve(anything(chance), n * 0.1)
    for names in (["t4", "new", "t0"], ["other"], [f"t{n}" for n in range(40)], ["t0"]):
        by_name = {each.name: each for each in old.replicas}
        new = Gateway(make, [by_name.get(name) or Replica(name) for name in names], 8)
        if isinstance(new.policy, Inherits):
            new.policy.inherit(old.policy, [each.name for each in old.replicas])
        for n in range(100):
            new.serve(anything(chance), 100 + n * 0.1)
        old = new


@EACH
def test_what_others_say_is_bounded_and_cannot_do_harm(make: Make) -> None:
    gateway = fleet(make, 1, 4)[0]
    if not isinstance(gateway.policy, Gossips):
        pytest.skip("tells nothing")
    gateway.policy.heard([], gateway.replicas)
    strange = [
        Note("call", 2**64 - 1, "t1", 10**9),
        Note("call", 1, "unknown", 5),
        Note("group", 2**63, "", 0),
        Note("group", 7, "t3", -1),
    ]
    gateway.policy.heard(strange * 200, gateway.replicas)
    for n in range(500):
        prompt = Prompt(5000, key(n), key("g", n), 3000, True)
        for score in gateway.scores(prompt, 0.0):
            assert 0 <= score.cached <= 5000
        gateway.place(prompt, 0.0, [n % 4])
    assert 0 < len(gateway.policy.notes()) <= 32
    assert gateway.policy.notes() == []


@EACH
def test_reports_that_cannot_be_do_no_harm(make: Make) -> None:
    chance, gateway = Random(11), fleet(make, 1, 4)[0]
    for n in range(500):
        placed = gateway.serve(anything(chance), n * 0.1)
        gateway.learn(placed, *chance.choice([(0, 0), (10, 10**9), (1, -5), (10**9, 10**9), (-1, -1)]))
        for score in gateway.scores(anything(chance), n * 0.1):
            assert isfinite(score.cost) and score.cached >= 0
