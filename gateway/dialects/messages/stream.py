"""A chat's stream in Anthropic's language: a message of blocks, of which one is open at a time."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw

from backends.api import Call
from gateway.dialects import chat
from gateway.dialects.messages.answer import message_id, no_object, stop, usage
from gateway.dialects.parts import Part, Parts

_DELTA: Final = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":"%b"}}\n\n'
)
_DELTAS: Final = {
    "thought": (b"thinking_delta", b"thinking"),
    "text": (b"text_delta", b"text"),
    "refusal": (b"text_delta", b"text"),
    "call": (b"input_json_delta", b"partial_json"),
}
_BLOCKS: Final[dict[str, dict[str, Any]]] = {
    "thought": {"type": "thinking", "thinking": "", "signature": ""},
    "text": {"type": "text", "text": ""},
    "refusal": {"type": "text", "text": ""},
}


class MessageEvents(Parts):
    """Writes one stream. The prompt's tokens are told at its end, where servers count them."""

    def __init__(self, call: Call, *, thoughts: bool) -> None:
        """`thoughts`: with what the model thinks."""
        super().__init__(call, thoughts=thoughts)
        self._blocks = 0
        self._held: list[bytes] | None = None
        """The arguments of the open tool call, as long as they have not begun as an object; None: they have."""
        self._odd = False
        """They have begun as something else."""

    def begin(self, event: chat.Answer) -> bytes:
        message: dict[str, Any] = {
            "id": message_id(self.call),
            "type": "message",
            "role": "assistant",
            "model": event.model or self.call.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage(Raw()),
        }
        return _event("message_start", {"message": message})

    def begin_part(self, part: Part) -> bytes:
        self._blocks += 1
        if part.kind == "call":
            self._held, self._odd = [], False
            block: dict[str, Any] = {"type": "tool_use", "id": part.id, "name": part.name, "input": {}}
        else:
            block = _BLOCKS[part.kind]
        return _event("content_block_start", {"index": self._blocks - 1, "content_block": block})

    def go_on(self, part: Part, inside: bytes, logprobs: Raw) -> bytes:
        if part.kind == "call" and self._held is not None:
            self._held.append(inside)
            begun = chat.text_of(inside).lstrip()
            self._odd |= bool(begun) and begun[0] != "{"
            if self._odd or not begun:
                return b""
            inside, self._held = b"".join(self._held), None
        return self._delta(*_DELTAS[part.kind], inside)

    def end_part(self, part: Part) -> bytes:
        end = _event("content_block_stop", {"index": self._blocks - 1})
        if part.kind == "thought":
            signature = msgspec.json.encode(message_id(self.call))[1:-1]
            return self._delta(b"signature_delta", b"signature", signature) + end
        if self._held and (odd := chat.text_of(b"".join(self._held)).strip()):
            self._held = None
            fragment = msgspec.json.encode(msgspec.json.encode(no_object(odd)).decode())[1:-1]
            return self._delta(b"input_json_delta", b"partial_json", fragment) + end
        return end

    def finish(self, reason: str) -> bytes:
        stop_reason, sequence = stop(reason, self.stop_reason, called=self.called)
        delta = {"stop_reason": "refusal" if self.refused else stop_reason, "stop_sequence": sequence}
        return _event("message_delta", {"delta": delta, "usage": usage(self.usage)}) + _event("message_stop", {})

    def _delta(self, kind: bytes, name: bytes, inside: bytes) -> bytes:
        return _DELTA % (self._blocks - 1, kind, name, inside)


def _event(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode({"type": name, **fields}))
