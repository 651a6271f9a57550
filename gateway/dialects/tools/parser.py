"""The calls in a model's text, found while it comes or in the whole of it."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from typing import Final

from gateway.dialects.tools.calls import is_object
from gateway.dialects.tools.hermes import hermes
from gateway.dialects.tools.llama import llama
from gateway.dialects.tools.mistral import mistral
from gateway.dialects.tools.tape import Arguments, Begun, Ended, Found, Steps, Tape, Text

Format = Callable[[Tape, Container[str]], Steps[None]]

FORMATS: Final[dict[str, Format]] = {"hermes": hermes, "llama": llama, "mistral": mistral}
"""By the name that the table has for them."""


class Parser:
    """Finds the calls in one text as it comes. Each is told as soon as it is sure that it is one."""

    def __init__(self, format: str, names: Container[str]) -> None:
        """`names`: the functions that were offered to the model."""
        self._tape = Tape()
        self._steps = FORMATS[format](self._tape, names)
        self._between = _Between()

    def feed(self, text: str) -> list[Found]:
        """What the text, which follows the one before, tells."""
        self._tape.add(text)
        return list(self._between.told(self._found()))

    def end(self) -> list[Found]:
        """What is known when nothing follows."""
        self._tape.ended = True
        return [*self._between.told(self._found()), *self._between.end()]

    def _found(self) -> Iterator[Found]:
        for found in self._steps:
            if found is None:
                return
            yield found


def calls_in(format: str, text: str, names: Container[str]) -> list[Found]:
    """What the whole text tells. A call whose arguments are no JSON object, or that has no end, is text."""
    tape, between = Tape(keeps=True), _Between()
    tape.add(text)
    tape.ended = True
    steps = FORMATS[format](tape, names)
    return [*between.told(_sure(found for found in steps if found is not None)), *between.end()]


def _sure(every: Iterable[Found]) -> Iterator[Found]:
    call: list[Found] = []
    for found in every:
        if isinstance(found, Text):
            yield found
        elif isinstance(found, Ended):
            arguments = "".join(each.text for each in call if isinstance(each, Arguments))
            if found.whole and is_object(arguments):
                yield from (*call, found)
            else:
                yield Text(found.source)
            call = []
        else:
            call.append(found)


class _Between:
    """Leaves out blanks that only part calls from each other, or from the beginning or the end of the text."""

    def __init__(self) -> None:
        self._blanks = ""
        self._fresh = True
        """Nothing but blanks since the beginning, or since a call."""
        self._called = False

    def told(self, every: Iterable[Found]) -> Iterator[Found]:
        for found in every:
            if isinstance(found, Text):
                if not found.text:
                    continue
                if self._fresh and not found.text.strip():
                    self._blanks += found.text
                    continue
                text, self._blanks, self._fresh = self._blanks + found.text, "", False
                yield Text(text)
            else:
                if isinstance(found, Begun):
                    self._blanks, self._fresh, self._called = "", True, True
                yield found

    def end(self) -> Iterator[Found]:
        if self._blanks and not self._called:
            yield Text(self._blanks)
