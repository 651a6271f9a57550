"""Globs and the index of names, against regular expressions and enumeration."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import names
from gateway.config.names import Globs, NameIndex, matches, overlap, specificity

GLOB = st.text(alphabet="ab*", max_size=6)
NAME = st.text(alphabet="ab", max_size=8)
WORDS = ["".join(word) for size in range(9) for word in itertools.product("ab", repeat=size)]


def oracle(glob: str, name: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, glob.split("*"))), name, re.DOTALL) is not None


@given(GLOB, NAME)
def test_matches_like_a_regular_expression(glob: str, name: str) -> None:
    assert matches(glob, name) == oracle(glob, name)


@given(st.text(max_size=6), st.text(max_size=6))
def test_nothing_but_the_star_is_special(glob: str, name: str) -> None:
    assert matches(glob, name) == oracle(glob, name)


@given(st.text(alphabet="ab*", max_size=4), st.text(alphabet="ab*", max_size=4))
def test_overlap_means_that_some_name_matches_both(one: str, other: str) -> None:
    # Two globs that overlap do so in a name no longer than both together.
    found = any(oracle(one, word) and oracle(other, word) for word in WORDS)
    assert overlap(one, other) == overlap(other, one) == found


@pytest.mark.parametrize(
    "build",
    [
        lambda n: ("*" + "a*" * n, "*" + "a*" * n + "b"),
        lambda n: ("a" * n + "*", "a" * n + "b*"),
        lambda n: ("*a" * n, "b" + "*a" * n + "c"),
    ],
)
def test_long_globs_end(build: Callable[[int], tuple[str, str]]) -> None:
    one, other = build(120)
    overlap(one, other)
    matches(one, "a" * 5000 + "c")


def test_globs_as_long_as_any_name_are_compared_too() -> None:
    assert overlap("a" * 256 + "*", "a" * 256 + "b")
    assert not overlap("a" * 256 + "c*", "a" * 256 + "b*")


def test_exact_names_go_before_globs_and_specific_globs_before_others() -> None:
    index = NameIndex([("*", "all"), ("gpt-*", "gpt"), ("gpt-4*", "four"), ("gpt-4o", "exact"), ("*-mini", "mini")])
    assert index.find("gpt-4o") == "exact"
    assert index.find("gpt-4.1") == "four"
    assert index.find("gpt-3") == "gpt"
    assert index.find("x-mini") == "mini"
    assert index.find("gpt-4-mini") == "four"
    assert index.find("") == "all"
    assert NameIndex([("a", "a")]).find("b") is None


@given(st.lists(st.tuples(GLOB, st.sampled_from("xyz")), max_size=6), NAME)
def test_the_index_finds_the_most_specific(pairs: list[tuple[str, str]], name: str) -> None:
    found = NameIndex(pairs).find(name)
    exact = [route for glob, route in pairs if "*" not in glob and glob == name]
    globs = [(specificity(glob), route) for glob, route in pairs if "*" in glob and oracle(glob, name)]
    if exact:
        assert found == exact[0]
    elif globs:
        assert found in {route for size, route in globs if size == max(globs)[0]}
    else:
        assert found is None


@given(st.lists(st.tuples(GLOB.filter(lambda glob: "*" in glob), st.sampled_from("xyz")), max_size=8))
def test_rivals_are_those_that_comparing_each_with_each_finds(pairs: list[tuple[str, str]]) -> None:
    globs = Globs()
    for number, (glob, owner) in enumerate(pairs):
        expected = [
            (other, whose)
            for other, whose in pairs[:number]
            if specificity(other) == specificity(glob) and overlap(other, glob)
        ]
        assert sorted(globs.rivals(glob)) == sorted(expected)
        globs.add(glob, owner)


@pytest.mark.parametrize("glob", ["vendor-{}/*", "*-{}", "model-{}-*-v1"])
def test_globs_that_cannot_meet_are_not_compared(glob: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with each would be a million comparisons for a table of a thousand routes."""
    compared = []
    monkeypatch.setattr(names, "overlap", lambda *pair: compared.append(pair))
    globs = Globs()
    for number in range(1000, 1500):
        assert not list(globs.rivals(glob.format(number)))
        globs.add(glob.format(number), str(number))
    assert not compared
