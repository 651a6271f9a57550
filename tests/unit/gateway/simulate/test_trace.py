"""Traces: what is read of them, how they are spread in time, and what is said of bad ones."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from gateway.simulate.calls import Call
from gateway.simulate.trace import BLOCK, MANY, BadTrace, calls, read


def line(timestamp: float, *hash_ids: int, tokens: int | None = None, answer: int = 5) -> dict[str, Any]:
    length = len(hash_ids) * BLOCK - 12 if tokens is None else tokens
    return {"timestamp": timestamp, "input_length": length, "output_length": answer, "hash_ids": list(hash_ids)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


def made(file: Path, *lines: dict[str, Any], load: float = 1.0, seed: int = 1) -> list[Call]:
    file.write_text("\n".join(map(json.dumps, lines)))
    return calls(read(file), load, seed)[0]


def test_blocks_become_segments_and_the_last_is_as_long_as_is_left(file: Path) -> None:
    first, second = made(file, line(0, 1, 2, tokens=700), line(1000, 1, 2, 3, tokens=1400))
    assert first.segments == ((1, 512), (2, 188))
    assert second.segments == ((1, 512), (2, 512), (3, 376))
    assert (first.prompt.tokens, first.answer) == (700, 5)


def test_a_call_follows_up_when_its_conversation_was_seen(file: Path) -> None:
    many = [line(1000 * number, 7, 100 + number) for number in range(MANY + 1)]
    made_of = made(file, *many, line(999_000, 7, 100, 5000), line(999_999, 7, 9000))
    assert [call.prompt.follow_up for call in made_of] == [False] * (MANY + 1) + [True, False]
    assert made_of[-2].prompt.conversation == made_of[0].prompt.conversation
    assert len({call.prompt.conversation for call in made_of}) == MANY + 2
    assert {call.prompt.group for call in made_of} == {None}


def test_rounded_times_are_spread_over_what_they_were_rounded_to(file: Path) -> None:
    lines = [line(3000 * (number // 10), number) for number in range(100)]
    times = [call.after for call in made(file, *lines)]
    assert len(set(times)) == 100
    assert times == sorted(times)
    assert times[0] == 0
    assert max(later - earlier for earlier, later in pairwise(times)) < 3
    assert [call.after for call in made(file, *lines)] == times
    assert [call.after for call in made(file, *lines, seed=2)] != times


def test_load_makes_calls_come_faster(file: Path) -> None:
    lines = [line(1000 * number, number) for number in range(50)]
    slow, fast = made(file, *lines), made(file, *lines, load=2.0)
    assert [call.after / 2 for call in slow] == pytest.approx([call.after for call in fast])


def test_lines_need_no_order_and_may_be_empty(file: Path) -> None:
    file.write_text(f"{json.dumps(line(9000, 2))}\n\n{json.dumps(line(1000, 1))}\n")
    assert [call.segments[0][0] for call in calls(read(file), 1.0, 1)[0]] == [1, 2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"trace\.jsonl:2: .*expected an object with timestamp"),
        ("[1, 2]", r":2: .*expected an object"),
        ('{"timestamp": 1}', r":2: .*input_length.*expected an object"),
        (json.dumps(line(-1, 3)), r":2: .*>= 0.*timestamp"),
        (json.dumps(line(1, 3) | {"input_length": 0}), r":2: .*>= 1.*input_length"),
        (json.dumps(line(1, 3) | {"hash_ids": ["x"]}), r":2: .*hash_ids"),
        (json.dumps(line(1, 3, 4, tokens=100)), r":2: 2 hash_ids for input_length 100; expected 1"),
        ("\xff", r":2: "),
    ],
)
def test_bad_lines_are_named_with_what_is_allowed(file: Path, text: str, said: str) -> None:
    file.write_bytes(json.dumps(line(1, 1)).encode() + b"\n" + text.encode("latin-1") + b"\n")
    with pytest.raises(BadTrace, match=said):
        read(file)


def test_files_that_are_no_traces(file: Path) -> None:
    with pytest.raises(BadTrace, match=r"trace\.jsonl: cannot be read: No such file"):
        read(file)
    file.write_text("\n")
    with pytest.raises(BadTrace, match="holds no calls"):
        read(file)
    file.write_text("\n".join(map(json.dumps, [line(0, 1), line(1e15, 2)])))
    with pytest.raises(BadTrace, match="days; expected timestamps in ms"):
        read(file)
