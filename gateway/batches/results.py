"""Answers on their way into a batch's output and error files: lines, and the parts in which they wait for its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from gateway.batches.lines import lines, request
from gateway.batches.storage import FileStorage
from gateway.core.batches import Batch, Part

TURN_LINES: Final = 64
"""After so many lines others have a turn of the loop."""


class Answered(Struct, frozen=True):
    """One line's answer."""

    number: int
    """The line, from 0."""
    good: bool
    text: bytes
    """The line of the output or error file, without its end."""

    def record(self) -> bytes:
        """As it stands in a part."""
        return b"%d %b %b\n" % (self.number, b"+" if self.good else b"-", self.text)


def answered(number: int, custom_id: str, call_id: str, status: int, body: bytes) -> Answered:
    """The answer to a line as the engine, or the gateway for an error, gave it: it need not be JSON."""
    shown: Any
    try:
        shown = Raw(msgspec.json.format(body, indent=-1))
    except msgspec.DecodeError:
        shown = body.decode("utf-8", "replace")
    response = {"status_code": status, "request_id": call_id, "body": shown}
    return Answered(number, status < 400, _text(call_id, custom_id, response, None))


def unanswered(number: int, custom_id: str, call_id: str, code: str, message: str) -> Answered:
    """A line that was never answered."""
    return Answered(number, False, _text(call_id, custom_id, None, {"code": code, "message": message}))


def _text(call_id: str, custom_id: str, response: Any, error: Any) -> bytes:
    shown = {"id": f"batch_req_{call_id}", "custom_id": custom_id, "response": response, "error": error}
    return msgspec.json.encode(shown)


def folder(batch: Batch) -> str:
    """Where the parts of a batch lie."""
    return f"batches/{batch.id}"


def part(answers: Sequence[Answered]) -> bytes:
    """Answers as they are written together."""
    return b"".join(answer.record() for answer in answers)


async def collected(storage: FileStorage, batch: Batch, parts: Sequence[Part], good: bool) -> AsyncIterator[bytes]:
    """The good answers of all parts, or the others, as lines."""
    number = 0
    for each in parts:
        async for _, raw in lines(storage.pieces(f"{folder(batch)}/{each.name}"), 1 << 40):
            line, sign, text = raw.split(b" ", 2)
            if (sign == b"+") is good and int(line) not in each.void:
                yield text + b"\n"
            number += 1
            if number % TURN_LINES == 0:
                await asyncio.sleep(0)


async def missing(
    storage: FileStorage, batch: Batch, path: str, recorded: set[int], code: str, message: str
) -> AsyncIterator[bytes]:
    """For each line of the input that has no answer, why not."""
    number = 0
    async for _, raw in lines(storage.pieces(path), 1 << 40):
        if number not in recorded:
            custom_id, _body = request(raw)
            yield unanswered(number, custom_id, f"{batch.id}_{number}", code, message).text + b"\n"
        number += 1
        if number % TURN_LINES == 0:
            await asyncio.sleep(0)
