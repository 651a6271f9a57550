"""Samples of an exposition: which lines count, what labels say, which of several names wins."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.exposition import Exposition, Sample

TEXT = """\
# HELP a What a is.
# TYPE a gauge
a{x="1",y="with \\"quotes\\", } and ="} 5
a{x="2"} 2.5e0 1795346695000
ab 7
a_total 8
 a 9
a{broken="} 10
a word
a_info{} 1
old 3
"""


def test_only_lines_of_the_name_count() -> None:
    told = Exposition(TEXT)
    assert list(told.samples("a")) == [
        Sample({"x": "1", "y": 'with \\"quotes\\", } and ='}, 5.0),
        Sample({"x": "2"}, 2.5),
    ]
    assert list(told.samples("a_info")) == [Sample({}, 1.0)]
    assert list(told.samples("b")) == list(told.samples("HELP")) == []


def test_the_first_name_that_is_there_counts_and_no_other() -> None:
    told = Exposition(TEXT)
    assert told.total("new", "old", "ab") == 3
    assert told.total("ab", "old") == 7
    assert told.total("new") is None and told.mean("new") is None and told.values("new") == []


def test_sums_and_means() -> None:
    told = Exposition("a 1\na 2\r\na 4")
    assert told.total("a") == 7
    assert told.mean("a") == pytest.approx(7 / 3)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-Inf", "1e308"])
def test_what_is_not_finite_is_as_if_it_were_not_there(value: str) -> None:
    told = Exposition(f"a {value}\na {value}\nold 2\n")
    assert told.total("a") is None
    assert told.total("a", "old") == 2


def test_a_long_line_that_never_ends_takes_no_time() -> None:
    """Braces and quotes that do not close must not be tried in all ways."""
    assert list(Exposition("a{" + 'x="y",' * 50_000).samples("a")) == []
    assert list(Exposition('a{x="' + "\\" * 100_000).samples("a")) == []
    assert list(Exposition("a{" * 50_000).samples("a")) == []


@given(st.text(alphabet='a{}="\\ \n019.e+-NIf,_', max_size=60))
def test_any_text_is_read(text: str) -> None:
    told = Exposition(text)
    total = told.total("a", "a_")
    assert total is None or math.isfinite(total)
    for labels, _ in told.samples("a"):
        assert all(labels)
