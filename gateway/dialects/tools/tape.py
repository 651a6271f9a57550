"""Text that is still coming, read by steps that wait for more of it.

A step is a generator: it yields what it has found, and None where it needs more text. What it has passed is not looked
at again, so that reading takes as long as the text is, however it is cut.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

T = TypeVar("T")

_BLANKS: Final = re.compile(r"[ \t\r\n]*")
_PLAIN: Final = re.compile(r'[^"{}\[\]]*')
_QUOTED: Final = re.compile(r'[^"\\]*')
_SCALAR: Final = re.compile(r"[^\s,}\]]*")


class Text(Struct, frozen=True):
    """Text that is no call."""

    text: str


class Begun(Struct, frozen=True):
    """A call of this function begins."""

    name: str
    id: str = ""
    """As the model named the call; empty: it did not."""


class Arguments(Struct, frozen=True):
    """A piece of the arguments of the call that has begun, as the model writes them."""

    text: str


class Ended(Struct, frozen=True):
    """The call that has begun is over."""

    whole: bool
    """Its form is that of a call to its end."""
    source: str
    """All its text, if it is kept."""


Found = Text | Begun | Arguments | Ended
Steps = Generator[Found | None, None, T]
Waits = Generator[None, None, T]
"""Steps that find nothing by themselves."""


class NoCall(Exception):
    """What comes next is not in the form of a call. It is left on the tape."""


class Tape:
    """The text that is not read yet, and what was read since the mark."""

    def __init__(self, *, keeps: bool = False) -> None:
        """`keeps`: what was read is kept also behind the point from which it can be nothing but a call."""
        self.text, self.at, self.ended = "", 0, False
        self.begun = False
        """A call has begun since the mark."""
        self._keeps = keeps
        self._mark: int | None = None
        self._kept: list[str] = []

    def add(self, text: str) -> None:
        """What comes next."""
        if self._mark is not None:
            self._kept.append(self.text[self._mark : self.at])
            self._mark = 0
        self.text, self.at = self.text[self.at :] + text, 0

    def mark(self, back: int = 0) -> None:
        """Remember what is read from here on, and so many characters before, which were read just now."""
        self._mark, self._kept, self.begun = self.at - back, [], False

    def begin(self) -> None:
        """A call begins for sure."""
        self.begun = True
        if not self._keeps:
            self._mark, self._kept = None, []

    def marked(self) -> str:
        """What was read since the mark and is kept; it is forgotten."""
        text = "" if self._mark is None else "".join(self._kept) + self.text[self._mark : self.at]
        self._mark, self._kept = None, []
        return text

    def back(self) -> None:
        """Read anew what was read since the mark."""
        read = self.marked()
        self.text, self.at = read + self.text[self.at :], 0


def peek(tape: Tape) -> Waits[str]:
    """The next character; empty at the end."""
    while tape.at == len(tape.text):
        if tape.ended:
            return ""
        yield None
    return tape.text[tape.at]


def nonblank(tape: Tape) -> Waits[str]:
    """The next character that is no blank, which comes next then."""
    while True:
        tape.at = _end(_BLANKS, tape)
        if tape.at < len(tape.text) or tape.ended:
            return (yield from peek(tape))
        yield None


def matches(tape: Tape, literal: str) -> Waits[bool]:
    """Whether this comes next, and if so, passes it."""
    while len(tape.text) - tape.at < len(literal):
        if tape.ended or not literal.startswith(tape.text[tape.at :]):
            return False
        yield None
    found = tape.text.startswith(literal, tape.at)
    tape.at += len(literal) if found else 0
    return found


def expect(tape: Tape, char: str) -> Waits[None]:
    """Pass this character, and blanks before it. Raises `NoCall` at another."""
    if (yield from nonblank(tape)) != char:
        raise NoCall
    tape.at += 1


def run(tape: Tape, pattern: re.Pattern[str]) -> Waits[str]:
    """All characters that the pattern, which matches any number of them, takes."""
    taken = []
    while True:
        end = _end(pattern, tape)
        taken.append(tape.text[tape.at : end])
        tape.at = end
        if end < len(tape.text) or tape.ended:
            return "".join(taken)
        yield None


def text_until(tape: Tape, marker: str) -> Steps[bool]:
    """Text up to the marker, which is passed; False: there is none to the end."""
    while True:
        found = tape.text.find(marker, tape.at)
        end = found if found >= 0 else len(tape.text) - (0 if tape.ended else _begun(tape.text, marker, tape.at))
        if end > tape.at:
            start, tape.at = tape.at, end
            yield Text(tape.text[start:end])
        if found >= 0:
            tape.at += len(marker)
            return True
        if tape.ended:
            return False
        yield None


def value(tape: Tape, first: str) -> Generator[str | None, None, None]:
    """The pieces of the JSON value that begins with the next character, `first`, as they come.

    Only where it ends is looked at. Raises `NoCall` where it never does.
    """
    if first in ("{", "["):
        yield from _nested(tape)
    elif first == '"':
        tape.at += 1
        yield first
        yield from _quoted(tape)
    elif scalar := (yield from run(tape, _SCALAR)):
        yield scalar
    else:
        raise NoCall


def whole(tape: Tape, first: str) -> Waits[str]:
    """A JSON value, as `value` gives it piece by piece."""
    pieces = []
    for piece in value(tape, first):
        if piece is None:
            yield None
        else:
            pieces.append(piece)
    return "".join(pieces)


def string(tape: Tape) -> Waits[str]:
    """A JSON string's text. Raises `NoCall` for anything else."""
    if (yield from nonblank(tape)) != '"':
        raise NoCall
    try:
        text: str = msgspec.json.decode((yield from whole(tape, '"')), type=str)
    except msgspec.DecodeError:
        raise NoCall from None
    return text


def _nested(tape: Tape) -> Generator[str | None, None, None]:
    """An object or a list, up to the bracket that closes it."""
    depth = 0
    while True:
        start, char = tape.at, ""
        while (end := _end(_PLAIN, tape)) < len(tape.text):
            char, tape.at = tape.text[end], end + 1
            if char == '"':
                break
            depth += 1 if char in "{[" else -1
            if not depth:
                break
        else:
            tape.at = end
        if tape.at > start:
            yield tape.text[start : tape.at]
        if char == '"':
            yield from _quoted(tape)
        elif char and not depth:
            return
        elif tape.ended:
            raise NoCall
        else:
            yield None


def _quoted(tape: Tape) -> Generator[str | None, None, None]:
    """A string behind its opening quote, up to and with the closing one."""
    while True:
        start = tape.at
        while (end := _end(_QUOTED, tape)) + 1 < len(tape.text) and tape.text[end] == "\\":
            tape.at = end + 2
        closed = end < len(tape.text) and tape.text[end] == '"'
        tape.at = end + closed
        if tape.at > start:
            yield tape.text[start : tape.at]
        if closed:
            return
        if tape.ended:
            raise NoCall
        yield None


def _end(pattern: re.Pattern[str], tape: Tape) -> int:
    """Where what the pattern takes ends; it takes nothing, too."""
    return pattern.match(tape.text, tape.at).end()  # type: ignore[union-attr]


def _begun(text: str, marker: str, start: int) -> int:
    """How many characters at the end of the text may be the beginning of the marker."""
    for length in range(min(len(marker) - 1, len(text) - start), 0, -1):
        if text.endswith(marker[:length]):
            return length
    return 0
