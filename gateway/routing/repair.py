"""Whole answers that are not the JSON that was asked for: their target is asked once more (`repair: retry` of a route).

What looks at them never decides over an answer: where a wish or an answer cannot be read, the answer is fine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import msgspec
from msgspec import Struct

from backends import answers
from backends.api import Call, Chunk
from gateway.core.errors import GatewayError
from gateway.metering import CallRecord
from gateway.upstream import Exchange

HEADER: Final = (b"x-trunkline-repair", b"retried")
"""Says that the answer is the second one."""
_WISHES: Final = {
    "chat/completions": ("response_format",),
    "completions": ("response_format",),
    "responses": ("text", "format"),
    "messages": ("output_config", "format"),
}
"""Where a call says in which form its answer is to be."""
_UNREAD: Final = (ValueError, RecursionError, LookupError, TypeError, AttributeError)


class Form(Struct, frozen=True):
    """What a whole answer must be: JSON, and of its schema what stands at the top."""

    kind: type | None = None
    """An object or a list; None: any value."""
    required: tuple[str, ...] = ()
    """Fields that an object must have."""

    def fits(self, text: str) -> bool:
        """Whether an answer is of this form."""
        try:
            value = msgspec.json.decode(text)
        except (ValueError, RecursionError):
            return False
        if self.kind is not None and not isinstance(value, self.kind):
            return False
        return not isinstance(value, dict) or all(name in value for name in self.required)


def form(call: Call) -> Form | None:
    """The form that a call wants its answer to have; None: it wants none, or its answer is a stream."""
    path = _WISHES.get(call.endpoint, ("",))
    if call.stream or path[0] not in call.body.fields:
        return None
    try:
        wish = msgspec.json.decode(call.body.fields[path[0]])
        for name in path[1:]:
            wish = wish[name]
        if wish["type"] == "json_object":
            return Form(dict)
        if wish["type"] != "json_schema":
            return None
        schema = wish.get("json_schema", wish)["schema"]
        required = tuple(each for each in schema.get("required", ()) if isinstance(each, str))
        return Form({"object": dict, "array": list}.get(schema.get("type")), required)
    except _UNREAD:
        return None


class Repair:
    """A call whose answer is to be JSON, and its record."""

    def __init__(self, form: Form, endpoint: str, record: CallRecord) -> None:
        self._form, self._endpoint, self._record = form, endpoint, record
        self.headers: tuple[tuple[bytes, bytes], ...] = ()
        """What the client is told of it."""

    @classmethod
    def of(cls, call: Call, record: CallRecord) -> Repair | None:
        """What repairs the answer to a call; None: nothing could be wrong with it."""
        wanted = form(call)
        return None if wanted is None else cls(wanted, call.endpoint, record)

    async def checked(self, exchange: Exchange, again: Callable[[], Awaitable[Exchange]]) -> Exchange | Whole:
        """The answer, read whole, or a second one, which `again` asks for, whatever that is. If none comes, the first.

        Raises as `Exchange.next` does for the first one. Whoever asks closes what this gives; the first, if it raises.
        """
        record, first = self._record, await exchange.next()
        if self._is_fine(first.data):
            return Whole(exchange, first)
        exchange.close()  # its connection may serve the second
        record.asked_again(len(first.data), first.usage)
        other: Exchange | None = None
        try:
            other = await again()
            second = await other.next()
        except BaseException as error:
            if other is not None:
                other.close()
            if not isinstance(error, GatewayError):
                raise
            record.first_kept()
            return Whole(exchange, first)
        self.headers = (HEADER,)
        record.repaired(self._is_fine(second.data))
        return Whole(other, second)

    def _is_fine(self, answer: bytes) -> bool:
        try:
            return all(map(self._form.fits, _texts(self._endpoint, answers.parsed(answer))))
        except _UNREAD:
            return True


class Whole:
    """An exchange whose answer was read already."""

    def __init__(self, exchange: Exchange, answer: Chunk) -> None:
        self._exchange, self._answer = exchange, answer
        self.content_type, self.kept = exchange.content_type, 0

    async def next(self) -> Chunk:
        """The whole answer."""
        return self._answer

    def keep(self, size: int) -> None:
        """Nothing of it waits for its first output."""

    def close(self) -> None:
        """As the exchange's."""
        self._exchange.close()


def _texts(endpoint: str, answer: Any) -> Iterator[str]:
    """The texts of an answer that should be JSON: not of one that was cut off, refused, or is a call of tools."""
    if endpoint == "messages":
        parts = [part["text"] for part in answer["content"] if part["type"] == "text"]
        ended = answer["stop_reason"] in ("end_turn", "stop_sequence")
    elif endpoint == "responses":
        said = [item for item in answer["output"] if item["type"] == "message"]
        parts = [part["text"] for item in said for part in item["content"] if part["type"] == "output_text"]
        ended = answer["status"] == "completed"
    else:
        for choice in answer["choices"]:
            text = choice["message"]["content"] if endpoint == "chat/completions" else choice["text"]
            called = choice.get("message", {}).get("tool_calls") or choice.get("message", {}).get("refusal")
            if choice["finish_reason"] == "stop" and not called and isinstance(text, str):
                yield text
        return
    if ended and parts:
        yield "".join(parts)
