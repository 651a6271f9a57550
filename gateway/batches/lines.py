"""The lines of a batch's input: one request each. What is wrong with them is found before any is asked."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from gateway.core.batches import LineError, Work
from gateway.core.errors import BadRequest

MAX_ERRORS: Final = 100
"""Of what is wrong with an input so much is told."""
MAX_CUSTOM_ID: Final = 512
CHUNK_LINES: Final = 16
"""So many lines are one piece of work: what a worker that dies leaves to be asked again, at the most."""
CHUNK_BYTES: Final = 1024 * 1024
"""A piece of work with more lines than one is not larger."""
_BLANK: Final = re.compile(rb"\s*")


class Line(Struct, frozen=True):
    """A line as clients write it."""

    custom_id: str | UnsetType = UNSET
    method: str | UnsetType = UNSET
    url: str | UnsetType = UNSET
    body: Raw | UnsetType = UNSET


class _Body(Struct, frozen=True):
    """Of a request what is looked at beforehand."""

    model: Any = UNSET
    stream: Any = UNSET


_line, _body, _object = msgspec.json.Decoder(Line), msgspec.json.Decoder(_Body), msgspec.json.Decoder(dict[str, Raw])


class Checked:
    """What was found in an input: pieces of work, or mistakes."""

    def __init__(self) -> None:
        self.work: list[Work] = []
        self.errors: list[LineError] = []
        self.total = 0


async def lines(pieces: AsyncIterable[bytes], most: int) -> AsyncIterator[tuple[int, bytes]]:
    """Each line that is not blank, with where it begins. Raises `BadRequest` for one of more than `most` bytes."""
    begin, rest = 0, bytearray()
    async for piece in pieces:
        rest += piece
        while (end := rest.find(b"\n")) >= 0:
            if end > most:
                break
            line, begin, offset = bytes(rest[:end]), begin + end + 1, begin
            del rest[: end + 1]
            if not _BLANK.fullmatch(line):
                yield offset, line
        if len(rest) > most:
            raise BadRequest(f"The line that begins at byte {begin} is longer than the limit of {most} bytes.")
    if not _BLANK.fullmatch(rest):
        yield begin, bytes(rest)


def split(data: bytes) -> Iterator[bytes]:
    """The lines of a piece of work."""
    return (line for line in data.split(b"\n") if not _BLANK.fullmatch(line))


async def check(pieces: AsyncIterable[bytes], endpoint: str, most_lines: int, most_bytes: int) -> Checked:
    """Look at all lines of an input for this endpoint, such as `/v1/embeddings`."""
    found, seen, at = Checked(), set[bytes](), _Chunk()
    try:
        async for offset, raw in lines(pieces, most_bytes):
            if found.total >= most_lines:
                found.errors.append(LineError(code="too_many_requests", message=f"More than {most_lines} lines."))
                break
            error = _mistake(raw, endpoint, found.total + 1, seen)
            if error is not None:
                found.errors.append(error)
                if len(found.errors) >= MAX_ERRORS:
                    break
            if work := at.add(found.total, offset, len(raw)):
                found.work.append(work)
            found.total += 1
    except BadRequest as error_:
        found.errors.append(LineError(code="line_too_long", message=error_.message, line=found.total + 1))
    if work := at.end():
        found.work.append(work)
    if not found.total and not found.errors:
        found.errors.append(LineError(code="empty_file", message="The input file has no lines."))
    return found


class _Chunk:
    """Lines become pieces of work."""

    def __init__(self) -> None:
        self._first = self._count = self._offset = self._length = 0

    def add(self, number: int, offset: int, size: int) -> Work | None:
        """One line more; what was complete before it."""
        done = None
        if self._count and (self._count >= CHUNK_LINES or offset + size - self._offset > CHUNK_BYTES):
            done = self.end()
        if not self._count:
            self._first, self._offset = number, offset
        self._count += 1
        self._length = offset + size - self._offset
        return done

    def end(self) -> Work | None:
        count, self._count = self._count, 0
        if not count:
            return None
        return Work(kind="lines", first=self._first, count=count, offset=self._offset, length=self._length)


def _mistake(raw: bytes, endpoint: str, number: int, seen: set[bytes]) -> LineError | None:
    """What is wrong with a line."""

    def wrong(code: str, message: str, param: str | None = None) -> LineError:
        return LineError(code=code, message=message, line=number, param=param)

    try:
        line = _line.decode(raw)
    except msgspec.ValidationError as error:
        return wrong("invalid_request", f"The line is no request: {error}.")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return wrong("invalid_json_line", "The line is no JSON object.")
    if not line.custom_id or len(line.custom_id) > MAX_CUSTOM_ID:
        return wrong("missing_required_parameter", f"1 to {MAX_CUSTOM_ID} characters are required.", "custom_id")
    digest = hashlib.blake2b(line.custom_id.encode(), digest_size=16).digest()
    if digest in seen:
        return wrong("duplicate_custom_id", f"{line.custom_id[:64]!r} is the id of a line before.", "custom_id")
    seen.add(digest)
    if line.method != "POST":
        return wrong("invalid_method", "The method must be POST.", "method")
    if line.url != endpoint:
        return wrong("invalid_url", f"The url must be that of the batch, {endpoint}.", "url")
    return _body_mistake(line, wrong)


def _body_mistake(line: Line, wrong: Any) -> LineError | None:
    try:
        body = _body.decode(line.body or b"null")
        _object.decode(line.body or b"null")
    except (msgspec.DecodeError, UnicodeDecodeError):
        mistake: LineError = wrong("invalid_request", "The body must be an object.", "body")
        return mistake
    found: LineError | None = None
    if not isinstance(body.model, str) or not body.model:
        found = wrong("missing_required_parameter", "The model is required.", "body.model")
    elif body.stream not in (UNSET, False, None):
        found = wrong("invalid_request", "An answer of a batch cannot be a stream: leave it out.", "body.stream")
    return found


def request(raw: bytes) -> tuple[str, bytes]:
    """The custom id and the body of a line that was checked."""
    line = _line.decode(raw)
    assert line.custom_id is not UNSET and line.body is not UNSET
    return line.custom_id, bytes(line.body)
