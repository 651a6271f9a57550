"""Bodies that are large, or of many small pieces: read in windows, so that nobody else waits for more than one of them.

Each window is checked by the decoder that small bodies are read with: what is open where it begins is opened before
it, and what is open where it ends is closed behind it. Then what is long in it, a text or a row of numbers, is left
out. What remains of all windows is a short body of the same shape, which is read like any other.
"""

from __future__ import annotations

import codecs
import re
import secrets
from bisect import bisect_right
from collections.abc import Generator
from typing import Final

import msgspec
from msgspec import Raw, Struct, structs

from backends import asked, surrogates
from backends.asked import Asked
from backends.body import MAX_KEYS, Body, Malformed, too_many_keys

WINDOW: Final = 32 * 1024
"""Bytes that are read at once."""
TOKENS: Final = 200
"""Texts and brackets that are looked at, one by one, at once; each costs a microsecond."""
ONE_PASS: Final = 2 * 1024**2
"""Bytes; a larger body is always read in windows."""
SURELY_FEW: Final = 512 * 1024
"""Bytes; a smaller body is read at once, as far as it cannot have too many elements."""
LONG: Final = 20 * 1024
"""Bytes of a text, of which then only the ends are kept."""
END: Final = 9 * 1024
"""Bytes of each end: more than routing looks at."""
PLENTY: Final = 1024**2
"""Bytes of a short body; of what comes after them only the outlines are kept."""
BRIEF: Final = 96
"""Bytes of a text that is long there, and of a row of numbers that is long anywhere."""
BRIEF_END: Final = 24
DEEP: Final = 1000
"""Brackets within one another; the decoder goes no deeper."""
MOST_RUNS: Final = 8
"""Numbers with nothing but space between them; two are too many already."""

_TOKEN = re.compile(rb'[^"\[\]{}]*+["\[\]{}]')
_UNITS = re.compile(rb'(?:[^"\\]++|\\u[dD][89abAB]..\\u....|\\u(?![dD][89abAB])....|\\[^u])*+', re.DOTALL)
"""Characters of a text as JSON writes them, whole also where a window ends."""
_SECOND_HALF = re.compile(rb"\\u[dD][c-fC-F]")
"""Of a character that is written as two escapes."""
_COLON = re.compile(rb"[ \t\r\n]*+:")
_RUN = re.compile(rb"[^ \t\r\n]+")
_BYTE = re.compile(r" \(byte \d+\)")
_QUOTE, _LIST, _OBJECT = b'"[{'
_OPENED: Final = {_LIST: b"[", _OBJECT: b'{"":'}
_CLOSED: Final = {_LIST: b"]", _OBJECT: b"}"}

_MARK: Final = secrets.token_hex(12).encode()
"""Comes before a number of bytes that were left out; no client can know it."""
_DIGITS: Final = 12
_MARKED = re.compile(_MARK + rb"([0-9]{%d})" % _DIGITS)


class _Anything(Struct):
    """An object whose fields are passed over."""


_passed = msgspec.json.Decoder(_Anything)


def is_large(raw: bytes, elements: int) -> bool:
    """Whether a body is to be read in windows: it is long, or may have more than so many elements."""
    size = len(raw)
    if size <= min(SURELY_FEW, 2 * elements):  # not even brackets alone could be so many
        return False
    if size > ONE_PASS:
        return True
    texts = raw.count(b'"') // 2
    if texts < size >> 9:  # so few that windows are faster than more counting
        return True
    return texts + raw.count(b"{") + raw.count(b"[") > elements


def read(endpoint: str, raw: bytes, elements: int) -> Generator[None, None, tuple[Body, Asked]]:
    """The body and what it asks for, in steps of about a millisecond.

    Raises `Malformed` as `Body` does, and for more than `elements` objects, lists, keys and texts in lists.
    """
    yield from _check_characters(raw)
    scan = _Scan(raw, elements)
    yield from scan.run()
    short = Body(b"".join(scan.short))
    yield
    spans = {name: (scan.place(start), scan.place(end - 1) + 1) for name, (start, end) in short.spans().items()}
    body = Body.known(raw, spans)
    yield
    what = asked.read(endpoint, len(raw), body.fields, short.fields, _size)
    read = asked.conversation(endpoint, short.fields)
    shared = read.shared and tuple(_MARKED.sub(rb"\1", part) for part in read.shared)
    read = structs.replace(read, shared=shared, question=_MARKED.sub(rb"\1", read.question))
    ids = what.token_ids
    return body, structs.replace(what, token_ids=ids and ids + scan.commas, conversation=read)


def _check_characters(raw: bytes) -> Generator[None, None, None]:
    if raw.isascii():
        return
    decoder, begun = codecs.getincrementaldecoder("utf-8")(), 0
    for start in range(0, len(raw), WINDOW):
        try:
            decoder.decode(raw[start : start + WINDOW], start + WINDOW >= len(raw))
        except UnicodeDecodeError as error:
            raise Malformed(f"the body is not UTF-8: invalid byte at position {begun + error.start}") from None
        begun = start + WINDOW - len(decoder.getstate()[0])
        yield


def _size(part: Raw) -> int:
    """How many bytes of the body a part of the short one stands for."""
    left_out = _MARKED.findall(bytes(part))
    return len(part) + sum(map(int, left_out)) - len(left_out) * (len(_MARK) + _DIGITS)


def _check(text: bytes) -> None:
    try:
        _passed.decode(text)
    except RecursionError:
        raise Malformed("the body is nested too deeply") from None
    except msgspec.DecodeError as error:
        if (half := surrogates.told(text, None)) is not None:
            raise Malformed(*half) from None
        raise Malformed(f"the body is not a JSON object: {_BYTE.sub('', str(error))}") from None


class _Scan:
    """A walk along a body: from text to text and from bracket to bracket, and in leaps over what is between them."""

    def __init__(self, raw: bytes, elements: int) -> None:
        self._raw, self._elements, self._seen, self._keys = raw, elements, 0, 0
        self.short: list[bytes] = []
        """The pieces of the short body."""
        self.commas = 0
        """Those of the rows of numbers that were left out."""
        self._places: list[tuple[int, int]] = []
        """Where each piece begins in the short body, and in the whole one."""
        self._length = 0
        self._stack: list[int] = []
        """The brackets that are open."""
        self._before: list[int] = []
        """Those that were open where the window began."""
        self._window: list[tuple[int, bytes, bool]] = []
        """The window's pieces: where each is in the body, its bytes, and whether the short body keeps them."""
        self._start = 0
        """Up to here the body is in the windows."""

    def place(self, position: int) -> int:
        """Where a byte of the short body is in the whole one."""
        short, whole = self._places[bisect_right(self._places, position, key=_first) - 1]
        return whole + position - short

    def run(self) -> Generator[None, None, None]:
        """Walk; raises `Malformed`."""
        raw, position, tokens, rested = self._raw, 0, 0, 0
        while position < len(raw):
            token = _TOKEN.match(raw, position, position + WINDOW)
            if token is None:
                position = rested = self._numbers(position)
                yield
                continue
            if token.end() - position > BRIEF:
                self._row(position, token.end())
            position = token.end()
            if raw[position - 1] == _QUOTE:
                begun = position
                position = yield from self._text(begun)
                ends = not self._is_key(begun, position)
            else:
                ends = self._bracket(raw[position - 1])
            tokens += 1
            if tokens >= TOKENS or position - rested >= WINDOW:
                if ends and self._stack:
                    self._end(position)
                tokens, rested = 0, position
                yield
        self._keep(len(raw))
        self._close(b"")

    def _bracket(self, kind: int) -> bool:
        """Whether it closes something."""
        if kind not in _OPENED:
            if self._stack:  # otherwise, and where it does not fit, the decoder will say so
                self._stack.pop()
            return True
        self._count()
        self._stack.append(kind)
        if len(self._stack) > DEEP:
            raise Malformed("the body is nested too deeply")
        return False

    def _is_key(self, start: int, end: int) -> bool:
        key = _COLON.match(self._raw, end, end + WINDOW) is not None
        if key or (self._stack and self._stack[-1] == _LIST):
            self._count()
        if key and end - start > LONG:
            raise Malformed("the body has a key that is too long")
        if key and len(self._stack) == 1:
            self._keys += 1
            if self._keys > MAX_KEYS:
                raise too_many_keys()
        if not key and end - start > (LONG if self._length < PLENTY else BRIEF):
            self._leave_out(start, end - 1)
        return key

    def _count(self) -> None:
        self._seen += 1
        if self._seen > self._elements:
            raise Malformed(
                f"the body has more than {self._elements} objects, lists, keys and texts in lists (bodies.elements)"
            )

    def _text(self, begun: int) -> Generator[None, None, int]:
        """Where the text that begins here has ended. A long one is checked on the way."""
        raw, position = self._raw, begun
        while True:
            stop = raw.find(b'"', position, position + WINDOW)
            if stop < 0:
                stop = self._before_escape(position, min(position + WINDOW, len(raw)))
            elif raw.find(b"\\", position, stop) >= 0:
                units = _UNITS.match(raw, position, position + WINDOW)
                assert units is not None
                stop = units.end()
            ended = raw[stop : stop + 1] == b'"'
            if not ended and stop == position and (half := surrogates.told(raw[stop : stop + 12], stop)) is not None:
                raise Malformed(*half)
            if not ended and (stop == position or stop == len(raw)):
                raise Malformed("the body is not a JSON object: a text does not end, or has an invalid escape")
            if not ended or stop - begun > LONG:
                _check(b'{"":"' + raw[position:stop] + b'"}')
            if ended:
                return stop + 1
            position = stop
            yield

    def _before_escape(self, start: int, end: int) -> int:
        """The last place in a text, no further than `end`, that is not within an escape."""
        raw = self._raw
        last = raw.rfind(b"\\", max(start, end - 12), end)
        if last < 0:
            return end
        before = raw[start : last + 1]
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:  # one backslash escapes the other
            return end
        return last - 6 if _SECOND_HALF.match(raw, last) and last - 6 > start else last

    def _leave_out(self, start: int, end: int) -> None:
        """Keep the ends of a text."""
        raw, size = self._raw, END if self._length < PLENTY else BRIEF_END
        units = _UNITS.match(raw, start, start + size)
        assert units is not None
        first, last = units.end(), end - size
        while raw[first] & 0xC0 == 0x80:  # within a character
            first -= 1
        if raw.find(b"\\", last - 12, last) >= 0:
            last = end  # perhaps within an escape
        while raw[last] & 0xC0 == 0x80:
            last += 1
        self._keep(first)
        self._window.append((first, _MARK + b"%0*d" % (_DIGITS, last - first), True))
        if end - start <= LONG:  # a longer one was checked
            self._window.append((first, raw[first:last], False))
        self._start = last

    def _row(self, start: int, end: int) -> None:
        """Keep the first and the last of the numbers in a row."""
        first, last = self._raw.find(b",", start, end), self._raw.rfind(b",", start, end)
        if first < last:
            self._keep(first)
            self._window.append((first, self._raw[first:last], False))
            self._start = last

    def _keep(self, position: int) -> None:
        if self._start < position:
            self._window.append((self._start, self._raw[self._start : position], True))
            self._start = position

    def _numbers(self, position: int) -> int:
        """Pass over a window that has neither texts nor brackets. Returns where it ended."""
        raw = self._raw
        end = min(position + WINDOW, len(raw))
        last = raw.rfind(b",", position + 1, end)
        if last > 0:
            self._row(position, end)
            self._end(last)
            return last
        if end == len(raw):
            return end
        runs = list(_RUN.finditer(raw, position, end))
        if len(runs) > MOST_RUNS or any(run.end() - run.start() > LONG for run in runs):
            raise Malformed("the body is not a JSON object: a number is too long")
        self._keep(position)
        for run in runs:  # of the space between them one is enough
            if run.start() > position:
                self._window.append((position, b" ", True))
            self._window.append((run.start(), run[0], True))
            position = run.end()
        if position < end:
            self._window.append((position, b" ", True))
        self._start = end
        return end

    def _end(self, position: int) -> None:
        """End the window, behind a value within something that is open."""
        self._keep(position)
        self._close(b"".join(_CLOSED[kind] for kind in reversed(self._stack)))
        self._before = self._stack.copy()

    def _close(self, closing: bytes) -> None:
        opening = b"".join(_OPENED[kind] for kind in self._before)
        _check(opening + b"0" * bool(opening) + b"".join([piece for _, piece, _ in self._window]) + closing)
        for place, piece, kept in self._window:
            if kept:
                self._places.append((self._length, place))
                self.short.append(piece)
                self._length += len(piece)
            else:
                self.commas += piece.count(b",")
        self._window.clear()


def _first(pair: tuple[int, int]) -> int:
    return pair[0]
