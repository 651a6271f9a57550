"""All recorded exchanges of tests/golden again: answers come byte for byte, or are the gateway's own for a reason."""

from __future__ import annotations

from harness.captures import GOLDEN
from transparency.replay import EQUAL, replayed


def test_recorded_exchanges_come_as_they_were() -> None:
    rows = list(replayed(GOLDEN))
    assert [row for row in rows if not row.is_good] == []
    assert sum(row.verdict == EQUAL for row in rows) > 90
    assert {row.asked for row in rows} <= {"as it was", "not asked", "with model", "with stream_options", "with store"}
