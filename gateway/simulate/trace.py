"""Traces of real calls, in the format that Mooncake published: lengths and prefixes, no text.

Each line is a JSON object with `timestamp` (milliseconds), `input_length` and `output_length` (tokens) and `hash_ids`,
a number for each block of 512 tokens of the prompt: equal numbers mean equal text from the prompt's beginning on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

from gateway.simulate.calls import Asked, Call

BLOCK: Final = 512
"""Tokens."""
MANY: Final = 200
"""A block that more calls share is a system prompt, not the beginning of a conversation."""
HELP: Final = (
    "A trace in Mooncake's format, a JSON object a line: timestamp (ms), input_length, output_length, "
    "hash_ids (of blocks of 512 tokens)."
)
DAY_MS: Final = 86_400_000
LONGEST_MS: Final = 7 * DAY_MS
"""Of simulated time, gateways exchange five times a second."""
_ODD = 0x9E3779B97F4A7C15


class Line(Struct, frozen=True):
    """One call of a trace."""

    timestamp: Annotated[float, Meta(ge=0)]
    input_length: Annotated[int, Meta(ge=1)]
    output_length: Annotated[int, Meta(ge=0)]
    hash_ids: tuple[Annotated[int, Meta(ge=0)], ...]


class BadTrace(ValueError):
    """A file that is no trace; the text names file, line and what is allowed."""


def read(path: Path) -> list[Line]:
    """The calls of a trace file. Raises `BadTrace`, also for a file that cannot be read or is empty."""
    try:
        with path.open("rb") as file:
            lines = [_line(path, number, text) for number, text in enumerate(file, 1) if text.strip()]
    except OSError as error:
        raise BadTrace(f"{path}: cannot be read: {error.strerror}") from None
    if not lines:
        raise BadTrace(f"{path}: holds no calls; expected one JSON object a line")
    span = max(line.timestamp for line in lines) - min(line.timestamp for line in lines)
    if span > LONGEST_MS:
        raise BadTrace(f"{path}: spans {span / DAY_MS:.3g} days; expected timestamps in ms, of at most 7 days")
    return lines


def calls(lines: Sequence[Line], load: float, seed: int) -> tuple[list[Call], float]:
    """The calls of a trace, arriving `load` times as fast, and the seconds to the last of them.

    Timestamps that were rounded would come in bursts that never were: each is moved, at random, within what the
    closest two different timestamps are apart. A call is taken for one of the conversation that the first of its
    blocks names that few calls share; it follows up when that was seen before.
    """
    rng = Random(f"{seed} trace")  # noqa: S311
    quantum = _quantum(lines)
    times = sorted((line.timestamp + rng.random() * quantum, number) for number, line in enumerate(lines))
    shared = Counter(block for line in lines for block in line.hash_ids)
    seen: set[int] = set()
    made = []
    for time, number in times:
        line = lines[number]
        conversation = _conversation(line, shared)
        prompt = Asked(
            line.input_length,
            conversation,
            follow_up=conversation in seen,
            session=conversation,
            segments=tuple(_segments(line)),
        )
        seen.add(conversation)
        made.append(Call((time - times[0][0]) / 1000 / load, prompt, line.output_length, rng.random()))
    return made, made[-1].after


def _line(path: Path, number: int, text: bytes) -> Line:
    try:
        line = msgspec.json.decode(text, type=Line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadTrace(
            f"{path}:{number}: {error}; expected an object with timestamp (ms), input_length, output_length, hash_ids"
        ) from None
    blocks = -(-line.input_length // BLOCK)
    if len(line.hash_ids) != blocks:
        raise BadTrace(
            f"{path}:{number}: {len(line.hash_ids)} hash_ids for input_length {line.input_length}; "
            f"expected {blocks}, one for each block of {BLOCK} tokens"
        )
    return line


def _quantum(lines: Sequence[Line]) -> float:
    different = sorted({line.timestamp for line in lines})
    return min((later - earlier for earlier, later in pairwise(different)), default=0.0)


def _conversation(line: Line, shared: Counter[int]) -> int:
    block = next((block for block in line.hash_ids if shared[block] <= MANY), line.hash_ids[-1])
    return (block + 1) * _ODD % 2**64 or 1


def _segments(line: Line) -> Iterator[tuple[int, int]]:
    left = line.input_length
    for block in line.hash_ids:
        yield block, min(BLOCK, left)
        left -= BLOCK
