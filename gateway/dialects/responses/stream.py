"""A chat's stream in the language of OpenAI's responses: items, one after the other, in numbered events."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw

from backends.api import Call
from gateway.dialects import chat
from gateway.dialects.parts import Part, Parts
from gateway.dialects.responses.namespaces import named, namespaces
from gateway.dialects.responses.response import (
    INCOMPLETE,
    call_item,
    ended,
    item_id,
    logprobs_of,
    message_item,
    refusal_part,
    response,
    text_part,
    thought_item,
)

_PIECE: Final = (
    b"event: response.%b.delta\n"
    b'data: {"type":"response.%b.delta","sequence_number":%d,"item_id":"%b","output_index":%d%b,"delta":"%b"}\n\n'
)
_PIECES: Final = {
    "thought": b"reasoning_text",
    "text": b"output_text",
    "refusal": b"refusal",
    "call": b"function_call_arguments",
}
_PREFIXES: Final = {"thought": "rs", "text": "msg", "refusal": "msg", "call": "fc"}


class ResponseEvents(Parts):
    """Writes one stream."""

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._number = 0
        self._model: str | None = None
        self._created: float | None = None
        self._output: list[Any] = []
        """Items that are whole, and the message that may still go on."""
        self._content: list[Any] | None = None
        """The parts of that message; None: there is none."""
        self._id = ""
        self._pieces: list[bytes] = []
        self._logprobs: list[Raw] = []
        self._namespaces = namespaces(call)

    def begin(self, event: chat.Answer) -> bytes:
        self._model, self._created = event.model, event.created
        begun = self._response(status="in_progress", output=[])
        return self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)

    def begin_part(self, part: Part) -> bytes:
        self._pieces, self._logprobs = [], []
        if part.kind in ("text", "refusal"):
            begun = b"" if self._content is not None else self._begin_message()
            empty = Raw(b'""')
            told = text_part(empty, []) if part.kind == "text" else refusal_part(empty)
            return begun + self._event("response.content_part.added", **self._place(part), part=told)
        ended = self._end_message()
        self._id = item_id(_PREFIXES[part.kind], self.call, len(self._output))
        added = self._event(
            "response.output_item.added", output_index=len(self._output), item=self._item(part, "in_progress", None)
        )
        if part.kind == "thought":
            told = {"type": "reasoning_text", "text": ""}
            added += self._event("response.content_part.added", **self._place(part), part=told)
        return ended + added

    def go_on(self, part: Part, inside: bytes, logprobs: Raw) -> bytes:
        self._pieces.append(inside)
        kind, more = _PIECES[part.kind], b""
        if part.kind != "call":
            more = b',"content_index":%d' % self._place(part)["content_index"]
        if part.kind == "text":
            tokens = logprobs_of(logprobs)
            self._logprobs += tokens
            more += b',"logprobs":' + msgspec.json.encode(tokens)
        self._number += 1
        index = self._place(part)["output_index"]
        return _PIECE % (kind, kind, self._number - 1, msgspec.json.encode(self._id)[1:-1], index, more, inside)

    def end_part(self, part: Part) -> bytes:
        text = chat.string(b"".join(self._pieces))
        if part.kind == "call":
            place = {"item_id": self._id, "output_index": len(self._output)}
            done = self._event("response.function_call_arguments.done", **place, arguments=text)
            return done + self._end_item(self._item(part, self._status, text))
        place = self._place(part)
        if part.kind == "thought":
            done = self._event("response.reasoning_text.done", **place, text=text)
            done += self._event("response.content_part.done", **place, part={"type": "reasoning_text", "text": text})
            return done + self._end_item(self._item(part, self._status, text))
        assert self._content is not None
        if part.kind == "text":
            told = text_part(text, self._logprobs)
            done = self._event("response.output_text.done", **place, text=text, logprobs=self._logprobs)
        else:
            told = refusal_part(text)
            done = self._event("response.refusal.done", **place, refusal=text)
        self._content.append(told)
        return done + self._event("response.content_part.done", **place, part=told)

    def finish(self, reason: str) -> bytes:
        said = self._end_message()
        known = ended(reason, self.usage)
        return said + self._event("response." + known["status"], response=self._response(output=self._output, **known))

    def _begin_message(self) -> bytes:
        self._content = []
        self._id = item_id("msg", self.call, len(self._output))
        item = message_item(self._id, [], "in_progress")
        return self._event("response.output_item.added", output_index=len(self._output), item=item)

    @property
    def _status(self) -> str:
        """Of the item that ends now."""
        return "incomplete" if self.reason in INCOMPLETE else "completed"

    def _end_message(self) -> bytes:
        if self._content is None:
            return b""
        content, self._content = self._content, None
        return self._end_item(message_item(self._id, content, self._status))

    def _end_item(self, item: dict[str, Any]) -> bytes:
        encoded = Raw(msgspec.json.encode(item))
        self._output.append(encoded)
        return self._event("response.output_item.done", output_index=len(self._output) - 1, item=encoded)

    def _item(self, part: Part, status: str, text: Raw | None) -> dict[str, Any]:
        if part.kind == "thought":
            return thought_item(self._id, text, status)
        name = named(part.name, self._namespaces)
        return call_item(self._id, part.id, name, Raw(b'""') if text is None else text, status)

    def _place(self, part: Part) -> dict[str, Any]:
        """Where the open part is."""
        content = 0 if part.kind == "thought" else len(self._content or ())
        return {"item_id": self._id, "output_index": len(self._output), "content_index": content}

    def _response(self, **known: Any) -> dict[str, Any]:
        return response(self.call, self._model, self._created, **known)

    def _event(self, name: str, /, **fields: Any) -> bytes:
        self._number += 1
        value = {"type": name, "sequence_number": self._number - 1, **fields}
        return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(value))
