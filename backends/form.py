"""A multipart form as the body of a call: its short fields can be read, and `model` replaced, but no other byte."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw

from backends.body import Body, Malformed

_BOUNDARY = re.compile(r'multipart/form-data\s*;(?:.*;)?\s*boundary=(?:"([^"]{1,70})"|([^\s;"]{1,70}))', re.IGNORECASE)
_NAME = re.compile(rb'^content-disposition:\s*form-data\b[^\r\n]*?;\s*name="([^"\r\n]{1,128})"', re.I | re.M)
_FILE = re.compile(rb"^content-disposition:[^\r\n]*;\s*filename\*?=", re.I | re.M)
MOST_PARTS: Final = 64
MOST_HEAD: Final = 4096
"""Bytes of the headers of a part."""
MOST_VALUE: Final = 64 * 1024
"""Bytes of a field that is no file."""
_END: Final = b"\r\n\r\n"
_NOT_WHOLE: Final = f"the form is not whole, or has more than {MOST_PARTS} parts"


class FormReader:
    """Reads a form as it comes, and keeps nothing of its files.

    `feed` raises `Malformed` for what is no form by the letter: two readers of an odd one may each see another model.
    """

    def __init__(self, content_type: str) -> None:
        found = _BOUNDARY.match(content_type)
        if found is None:
            raise Malformed("the body is to be multipart/form-data, with its boundary in the content-type")
        self.opening: Final = b"--" + (found[1] or found[2]).encode()
        self.fields: dict[str, Raw] = {}
        """As JSON texts those that are no files, and a name for each of the files."""
        self.model: tuple[int, int] | None = None
        """Where the value of `model` begins and ends."""
        self.has_file = self.ended = False
        """A file has begun; the form has come to its end."""
        self._rest, self._at, self._seen = bytearray(), 0, 0
        """What was not read yet, where it begins in the form, and how much of it cannot begin a boundary."""
        self._step, self._name, self._parts = self._opens, "", 0

    def feed(self, data: bytes) -> None:
        """The next piece of the form."""
        if not self.ended:
            self._rest += data
            while not self.ended and self._step():
                pass

    def end(self) -> None:
        """That was all of it. Raises `Malformed` if it is not whole."""
        if not self.ended:
            raise Malformed(_NOT_WHOLE)

    def _took(self, size: int) -> None:
        del self._rest[:size]
        self._at += size
        self._seen = 0

    def _opens(self) -> bool:
        wanted = self.opening + b"\r\n"
        if not wanted.startswith(self._rest[: len(wanted)]):
            raise Malformed("the form does not begin with its boundary")
        if len(self._rest) < len(wanted):
            return False
        self._took(len(wanted))
        self._step = self._head
        return True

    def _head(self) -> bool:
        """The headers of a part."""
        end = self._rest.find(_END, 0, MOST_HEAD)
        head = bytes(self._rest[: end + 2 if end >= 0 else MOST_HEAD])
        if (end < 0 and len(head) >= MOST_HEAD) or b"\r\n" + self.opening in head or self._parts >= MOST_PARTS:
            raise Malformed(_NOT_WHOLE)
        if end < 0:
            return False
        self._parts += 1
        named = _NAME.search(head)
        if named is None:
            raise Malformed("a part of the form has no name")
        self._name = named[1].decode("utf-8", "replace")
        if self._name in self.fields and self._name == "model":
            raise Malformed("the form has 'model' more than once", self._name)
        self._took(end + len(_END))
        self._step = self._value
        if _FILE.search(head) is not None:
            self.has_file, self.fields[self._name], self._step = True, Raw(b'"file"'), self._file
        return True

    def _value(self) -> bool:
        end = self._boundary()
        if (len(self._rest) if end is None else end) > MOST_VALUE + len(self.opening):
            raise Malformed(f"{self._name}: a field that is no file has at most {MOST_VALUE} bytes", self._name)
        if end is None:
            return False
        try:
            text = self._rest[:end].decode()
        except UnicodeDecodeError:
            raise Malformed(f"{self._name}: the field is not UTF-8", self._name) from None
        if self._name == "stream" and text.lower() in ("true", "false", "1", "0"):
            self.fields[self._name] = Raw(b"true" if text.lower() in ("true", "1") else b"false")
        else:
            self.fields[self._name] = Raw(msgspec.json.encode(text))
        if self._name == "model":
            self.model = self._at, self._at + end
        return self._goes_on(end)

    def _file(self) -> bool:
        end = self._boundary()
        if end is not None:
            return self._goes_on(end)
        self._took(self._seen)
        return False

    def _boundary(self) -> int | None:
        """Where the value at hand ends, once what follows its boundary has come."""
        mark = b"\r\n" + self.opening
        end = self._rest.find(mark, self._seen)
        if end < 0:
            self._seen = max(0, len(self._rest) - len(mark) + 1)
            return None
        self._seen = end
        return end if len(self._rest) >= end + len(mark) + 2 else None

    def _goes_on(self, end: int) -> bool:
        """The value has ended; another part follows, or nothing."""
        after = end + 2 + len(self.opening)
        follows = bytes(self._rest[after : after + 2])
        if follows not in (b"--", b"\r\n"):
            raise Malformed("the form's boundary is a part of its content")
        self._took(after + 2)
        self.ended, self._step = follows == b"--", self._head
        return True


class Form(Body):
    """Its `fields` are those that `FormReader` has found so far; `rest` gives what has not come, where that is not all.

    Raises `Malformed` for a form that is not whole, and has no rest.
    """

    __slots__ = ("_model", "_opening", "rest")

    def __init__(self, raw: bytes, content_type: str, reader: FormReader | None = None, rest: Any = None) -> None:
        if reader is None:
            reader = FormReader(content_type)
            reader.feed(raw)
        if rest is None:
            reader.end()
        self.raw, self.fields, self.rest, self._spans = raw, dict(reader.fields), rest, None
        self._model, self._opening = reader.model, reader.opening

    @property
    def spent(self) -> bool:
        return self.rest is not None and bool(self.rest.begun)

    def spliced(self, changes: Mapping[str, bytes | None]) -> bytes:
        """The form, as far as it has come, with another model. Raises `Malformed` for any other change."""
        if set(changes) != {"model"}:
            raise Malformed("a form's fields cannot be changed by rules for bodies")
        model = msgspec.json.decode(changes["model"] or b'""', type=str).encode()
        if self._model is not None:
            start, end = self._model
            return b"".join((self.raw[:start], model, self.raw[end:]))
        head = b'%b\r\ncontent-disposition: form-data; name="model"\r\n\r\n' % self._opening
        return b"".join((head, model, b"\r\n", self.raw))
