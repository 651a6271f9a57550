"""Calls as Hermes and Qwen models write them: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from gateway.dialects.tools.calls import attempt, object_call
from gateway.dialects.tools.tape import Steps, Tape, matches, nonblank, text_until

OPENING: Final = "<tool_call>"
CLOSING: Final = "</tool_call>"


def hermes(tape: Tape, names: Container[str]) -> Steps[None]:
    """Finds the calls in the text of one answer. A model may end with a call without closing it."""
    while (yield from text_until(tape, OPENING)):
        tape.mark(len(OPENING))
        yield from attempt(tape, _call(tape))


def _call(tape: Tape) -> Steps[None]:
    yield from object_call(tape)
    yield from nonblank(tape)
    yield from matches(tape, CLOSING)
