"""Calls as Mistral models write them, behind `[TOOL_CALLS]`.

Older ones write a list of objects there, newer ones a name with its arguments: `name{...}` or `name[ARGS]{...}`, with
`[CALL_ID]` and an id behind the name, perhaps.
"""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Final

from gateway.dialects.tools.calls import attempt, object_call, written
from gateway.dialects.tools.tape import NoCall, Steps, Tape, matches, nonblank, run, text_until

MARKER: Final = "[TOOL_CALLS]"
CALL_ID: Final = "[CALL_ID]"
ARGS: Final = "[ARGS]"
_NAME: Final = re.compile(r"[\w.\-]*")


def mistral(tape: Tape, names: Container[str]) -> Steps[None]:
    """Finds the calls in the text of one answer."""
    while (yield from text_until(tape, MARKER)):
        tape.mark(len(MARKER))
        if (yield from nonblank(tape)) == "[":
            tape.at += 1
            while (yield from attempt(tape, _listed(tape))) and (yield from _goes_on(tape)):
                pass
        else:
            yield from attempt(tape, _named(tape))


def _listed(tape: Tape) -> Steps[None]:
    """An object of a list, and the end of the list if it comes then."""
    yield from object_call(tape)
    yield from nonblank(tape)
    yield from matches(tape, "]")


def _goes_on(tape: Tape) -> Steps[bool]:
    """Whether another object of the list follows the call that has ended."""
    tape.mark()
    if (yield from nonblank(tape)) != ",":
        tape.back()
        return False
    tape.at += 1
    return True


def _named(tape: Tape) -> Steps[None]:
    name = yield from run(tape, _NAME)
    id = (yield from run(tape, _NAME)) if (yield from matches(tape, CALL_ID)) else ""
    yield from matches(tape, ARGS)
    if not name or (yield from nonblank(tape)) != "{":
        raise NoCall
    yield from written(tape, name, id)
