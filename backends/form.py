"""A multipart form as the body of a call: its short fields can be read, and `model` replaced, but no other byte."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

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


class Form(Body):
    """Its `fields` are those that are no files, as JSON texts, and a name for each of the files.

    Raises `Malformed` for what is no form by the letter: two readers of an odd one may each see another model.
    """

    __slots__ = ("_model", "_opening")

    def __init__(self, raw: bytes, content_type: str) -> None:
        found = _BOUNDARY.match(content_type)
        if found is None:
            raise Malformed("the body is to be multipart/form-data, with its boundary in the content-type")
        self.raw, self._spans = raw, None
        self.fields: dict[str, Raw] = {}
        self._model: tuple[int, int] | None = None
        self._opening = b"--" + (found[1] or found[2]).encode()
        self._read(self._opening)

    def _read(self, mark: bytes) -> None:
        raw, parts = self.raw, 0
        if not raw.startswith(mark + b"\r\n"):
            raise Malformed("the form does not begin with its boundary")
        start = len(mark) + 2
        while True:
            parts += 1
            end = raw.find(b"\r\n" + mark, start)
            value = raw.find(_END, start, min(end, start + MOST_HEAD)) if end >= 0 else -1
            if value < 0 or parts > MOST_PARTS:
                raise Malformed(f"the form is not whole, or has more than {MOST_PARTS} parts")
            self._take(raw[start : value + 2], value + len(_END), end)
            start = end + 2 + len(mark)
            if raw.startswith(b"--", start):
                return
            if not raw.startswith(b"\r\n", start):
                raise Malformed("the form's boundary is a part of its content")
            start += 2

    def _take(self, head: bytes, start: int, end: int) -> None:
        named = _NAME.search(head)
        if named is None:
            raise Malformed("a part of the form has no name")
        name = named[1].decode("utf-8", "replace")
        if name in self.fields and name == "model":
            raise Malformed("the form has 'model' more than once", name)
        if _FILE.search(head) is not None:
            self.fields[name] = Raw(b'"file"')
            return
        if end - start > MOST_VALUE:
            raise Malformed(f"{name}: a field that is no file has at most {MOST_VALUE} bytes", name)
        try:
            text = self.raw[start:end].decode()
        except UnicodeDecodeError:
            raise Malformed(f"{name}: the field is not UTF-8", name) from None
        if name == "stream" and text.lower() in ("true", "false", "1", "0"):
            self.fields[name] = Raw(b"true" if text.lower() in ("true", "1") else b"false")
        else:
            self.fields[name] = Raw(msgspec.json.encode(text))
        if name == "model":
            self._model = start, end

    def spliced(self, changes: Mapping[str, bytes | None]) -> bytes:
        """The form with another model. Raises `Malformed` for any other change."""
        if set(changes) != {"model"}:
            raise Malformed("a form's fields cannot be changed by rules for bodies")
        model = msgspec.json.decode(changes["model"] or b'""', type=str).encode()
        if self._model is not None:
            start, end = self._model
            return b"".join((self.raw[:start], model, self.raw[end:]))
        head = b'%b\r\ncontent-disposition: form-data; name="model"\r\n\r\n' % self._opening
        return b"".join((head, model, b"\r\n", self.raw))
