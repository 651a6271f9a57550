"""An upload as clients send it, multipart/form-data: its fields are read, its file goes on as it comes."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, Final

from multipart import MultipartError, PushMultipartParser, parse_options_header

from gateway.core.errors import BadRequest, BodyTooLarge

FIELDS: Final = 16
FIELD_BYTES: Final = 4096
MAX_FILENAME: Final = 255


class Upload:
    """What came: the form's fields, and of the file its name and size."""

    def __init__(self) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        """None: there was no file."""
        self.bytes = 0


async def receive(
    content_type: str,
    pieces: AsyncIterable[bytes],
    write: Callable[[AsyncIterator[bytes]], Awaitable[None]],
    most: int,
) -> Upload:
    """Read a form whose field `file` is a file of at most `most` bytes, the content of which is given to `write`.

    Raises `BadRequest`, `BodyTooLarge`, and what `pieces` and `write` raise.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get("boundary", "")
    if kind != "multipart/form-data" or not boundary:
        raise BadRequest("Send the file as multipart/form-data, in the field 'file'.", param="content-type")
    upload = Upload()
    try:
        parser = PushMultipartParser(boundary, max_segment_count=FIELDS, strict=False)
        events = _events(parser, pieces)
        async for segment in events:
            if segment.name == "file" and segment.filename is not None and upload.filename is None:
                upload.filename = segment.filename[:MAX_FILENAME]
                await write(_counted(upload, events, most))
            else:
                upload.fields[segment.name] = await _text(segment.name, events)
    except MultipartError as error:
        raise BadRequest(f"The form cannot be read: {error}", param="file") from None
    return upload


async def _events(parser: Any, pieces: AsyncIterable[bytes]) -> AsyncIterator[Any]:
    with parser:
        async for piece in pieces:
            if piece and not parser.closed:
                for event in parser.parse(piece):
                    yield event


async def _content(events: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    """The rest of the segment at hand."""
    async for event in events:
        if event is None:
            return
        yield bytes(event)


async def _counted(upload: Upload, events: AsyncIterator[Any], most: int) -> AsyncIterator[bytes]:
    async for piece in _content(events):
        upload.bytes += len(piece)
        if upload.bytes > most:
            raise BodyTooLarge(f"The file is larger than the {most} bytes that your tenant may still store.")
        yield piece


async def _text(name: str, events: AsyncIterator[Any]) -> str:
    text = bytearray()
    async for piece in _content(events):
        text += piece
        if len(text) > FIELD_BYTES:
            raise BadRequest(f"The field is longer than {FIELD_BYTES} bytes.", param=name[:64])
    return text.decode("utf-8", "replace")
