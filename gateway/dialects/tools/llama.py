"""Calls as Llama models write them: the answer is `{"name": ..., "parameters": {...}}`, or several with `;` between.

`<|python_tag|>` may stand before them. Without it only what the answer begins with is a call, and only of a function
that was offered: other JSON is an answer.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

from gateway.dialects.tools.calls import attempt, object_call
from gateway.dialects.tools.tape import Steps, Tape, Text, matches, nonblank, text_until

TAG: Final = "<|python_tag|>"


def llama(tape: Tape, names: Container[str]) -> Steps[None]:
    """Finds the calls in the text of one answer; `names` are the functions that were offered."""
    tape.mark()
    yield from nonblank(tape)
    yield from matches(tape, TAG)
    yield from _calls(tape, names)
    while (yield from text_until(tape, TAG)):
        tape.mark(len(TAG))
        yield from _calls(tape, names)


def _calls(tape: Tape, names: Container[str]) -> Steps[None]:
    """Calls, from the mark on, one behind the other."""
    while (yield from nonblank(tape)) == "{":
        if not (yield from attempt(tape, object_call(tape, names))):
            return
        tape.mark()
        yield from nonblank(tape)
        yield from matches(tape, ";")
        yield from nonblank(tape)
        yield from matches(tape, TAG)
    yield Text(tape.marked())
