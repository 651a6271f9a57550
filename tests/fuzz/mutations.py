"""Inputs for a harness: noise, rows of its tokens, and its seeds with damage done to them."""

from __future__ import annotations

from typing import NamedTuple

from fuzz.feeding import Harness
from hypothesis import strategies as st

MOST_EDITS = 6
NOISE = (b"\x00", b"\xff", b"\r", b"\n", b" ", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"9" * 400, b"[" * 1500, b"\\", b'"')


class Edit(NamedTuple):
    """One piece of damage: a stretch is replaced by bytes, or said twice."""

    start: float
    """Where, as a part of the whole."""
    length: int
    new: bytes | None
    """None: the stretch is repeated."""

    def apply(self, data: bytes) -> bytes:
        start = int(self.start * len(data))
        stretch = data[start : start + self.length]
        new = 2 * stretch if self.new is None else self.new
        return data[:start] + new + data[start + self.length :]


def inputs(harness: Harness) -> st.SearchStrategy[bytes]:
    """What hypothesis feeds to the harness."""
    tokens = st.sampled_from((*harness.tokens(), *NOISE))
    rows = st.lists(tokens | st.binary(max_size=3), max_size=24).map(b"".join)
    seeds = st.sampled_from(harness.seeds())
    edit = st.builds(
        Edit,
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 4) | st.integers(0, 200),
        st.none() | st.just(b"") | tokens | st.binary(max_size=4),
    )
    damaged = st.builds(_damaged, seeds, st.lists(edit, max_size=MOST_EDITS))
    return st.one_of(damaged, damaged, rows, st.binary(max_size=64))


def _damaged(data: bytes, edits: list[Edit]) -> bytes:
    for edit in edits:
        data = edit.apply(data)
    return data
