"""A call that a model writes as a JSON object, with the function's name and its arguments as members."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

import msgspec
from msgspec import Raw, Struct

from gateway.dialects.tools.tape import (
    Arguments,
    Begun,
    Ended,
    NoCall,
    Steps,
    Tape,
    Text,
    expect,
    nonblank,
    string,
    value,
    whole,
)

ARGUMENTS: Final = ("arguments", "parameters")


def attempt(tape: Tape, call: Steps[None]) -> Steps[bool]:
    """A call that begins at the tape's mark, if it is one; else the text that it is. Whether it was one to its end."""
    try:
        yield from call
    except NoCall:
        begun, source = tape.begun, tape.marked()
        yield Ended(False, source) if begun else Text(source)
        return False
    yield Ended(True, tape.marked())
    return True


class _Read(Struct):
    """What is known of a call."""

    name: str = ""
    arguments: str = ""


def object_call(tape: Tape, names: Container[str] | None = None) -> Steps[None]:
    """The object; `names`: only a call of one of these is one. Raises `NoCall`."""
    yield from expect(tape, "{")
    read = _Read()
    while True:
        key = yield from string(tape)
        yield from expect(tape, ":")
        first = yield from nonblank(tape)
        if key == "name" and not read.name:
            yield from _name(tape, read, names)
        elif key in ARGUMENTS and not read.arguments:
            yield from _arguments(tape, read, first)
        else:
            yield from whole(tape, first)
        end = yield from nonblank(tape)
        if end not in (",", "}"):
            raise NoCall
        tape.at += 1
        if end == "}":
            break
    if not tape.begun:
        raise NoCall


def _name(tape: Tape, read: _Read, names: Container[str] | None) -> Steps[None]:
    read.name = yield from string(tape)
    if not read.name or (names is not None and read.name not in names):
        raise NoCall
    if read.arguments:
        yield from _begin(tape, read)


def _arguments(tape: Tape, read: _Read, first: str) -> Steps[None]:
    if read.name and first == "{":
        read.arguments = first
        yield from written(tape, read.name)
        return
    read.arguments = _object((yield from whole(tape, first)))
    if read.name:
        yield from _begin(tape, read)


def _begin(tape: Tape, read: _Read) -> Steps[None]:
    """A call whose arguments are known."""
    tape.begin()
    yield Begun(read.name)
    yield Arguments(read.arguments)


def written(tape: Tape, name: str, id: str = "") -> Steps[None]:
    """A call whose arguments, an object, come next."""
    tape.begin()
    yield Begun(name, id)
    for piece in value(tape, "{"):
        yield None if piece is None else Arguments(piece)


def is_object(text: str) -> bool:
    """Whether a text is a JSON object."""
    try:
        msgspec.json.decode(text, type=dict[str, Raw])
    except (ValueError, RecursionError):
        return False
    return True


def _object(arguments: str) -> str:
    """Arguments as an object: some models write it into a string. Raises `NoCall` for what is none."""
    if arguments.startswith('"'):
        try:
            arguments = msgspec.json.decode(arguments, type=str)
        except msgspec.DecodeError:
            raise NoCall from None
    if not is_object(arguments):
        raise NoCall
    return arguments
