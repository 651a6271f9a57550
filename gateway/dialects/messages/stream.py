"""A chat's stream in Anthropic's language: a message of blocks, of which one is open at a time."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Raw

from backends.api import Call
from gateway.dialects import chat
from gateway.dialects.messages.answer import message_id, no_object, stop, tool_use_id, usage

_DELTA: Final = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":"%b"}}\n\n'
)


class MessageEvents:
    """Writes one stream. The prompt's tokens are told at its end, where servers count them."""

    def __init__(self, call: Call, *, thoughts: bool) -> None:
        """`thoughts`: with what the model thinks."""
        self._call, self._thoughts = call, thoughts
        self._begun = False
        self._open = ""
        """What the open block is: "text", "thinking", or the number of a tool call; empty: none is open."""
        self._blocks = 0
        self._called: dict[int, str] = {}
        """Tool calls that have begun."""
        self._held: list[bytes] | None = None
        """The arguments of the open tool call, as long as they have not begun as an object; None: they have."""
        self._odd = False
        """They have begun as something else."""
        self._refused = False
        self._reason, self._sequence = "stop", Raw()
        self._usage = Raw()

    def take(self, event: chat.Answer) -> bytes:
        said = [] if self._begun else [self._begin(event.model or self._call.model)]
        if event.usage and bytes(event.usage) != b"null":
            self._usage = Raw(bytes(event.usage))
        for choice in event.choices or ():
            if choice.delta is not None:
                self._say(choice.delta, said)
            if choice.finish_reason:
                self._reason, self._sequence = chat.ended(choice.finish_reason), Raw(bytes(choice.stop_reason))
                self._close(said)
        return b"".join(said)

    def end(self) -> bytes:
        said = [] if self._begun else [self._begin(self._call.model)]
        self._close(said)
        reason, sequence = stop(self._reason, self._sequence, called=bool(self._called))
        delta = {"stop_reason": "refusal" if self._refused else reason, "stop_sequence": sequence}
        said.append(_event("message_delta", {"delta": delta, "usage": usage(self._usage)}))
        said.append(_event("message_stop", {}))
        return b"".join(said)

    def _begin(self, model: str) -> bytes:
        self._begun = True
        message: dict[str, Any] = {
            "id": message_id(self._call),
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage(Raw()),
        }
        return _event("message_start", {"message": message})

    def _say(self, delta: chat.Said, said: list[bytes]) -> None:
        if self._thoughts and (thought := delta.thought):
            self._turn_to("thinking", {"type": "thinking", "thinking": "", "signature": ""}, said)
            said.append(self._delta(b"thinking_delta", b"thinking", thought))
        refusal = chat.inside(delta.refusal)
        self._refused |= bool(refusal)
        if text := chat.inside(delta.content) + refusal:
            self._turn_to("text", {"type": "text", "text": ""}, said)
            said.append(self._delta(b"text_delta", b"text", text))
        for position, piece in enumerate(delta.tool_calls or ()):
            self._call_tool(position if piece.index is None else piece.index, piece, said)

    def _call_tool(self, index: int, piece: chat.ToolCall, said: list[bytes]) -> None:
        function = piece.function or chat.Function()
        name = f"call {index}"
        if index not in self._called:
            if not function.name:
                raise ValueError(f"tool call {index} begins without a name")
            self._called[index] = name
            block = {
                "type": "tool_use",
                "id": tool_use_id(self._call, index, piece),
                "name": function.name,
                "input": {},
            }
            self._turn_to(name, block, said)
            self._held, self._odd = [], False
        elif self._open != name and chat.inside(function.arguments):
            raise ValueError(f"tool call {index} goes on behind another part of the answer")
        fragment = chat.inside(function.arguments)
        if self._held is not None and fragment:
            self._held.append(fragment)
            begun = chat.text_of(fragment).lstrip()
            self._odd |= bool(begun) and begun[0] != "{"
            if self._odd or not begun:
                return
            fragment, self._held = b"".join(self._held), None
        if fragment:
            said.append(self._delta(b"input_json_delta", b"partial_json", fragment))

    def _turn_to(self, what: str, block: dict[str, Any], said: list[bytes]) -> None:
        """Begin a block of this kind, unless the open one is of it."""
        if self._open == what:
            return
        self._close(said)
        said.append(_event("content_block_start", {"index": self._blocks, "content_block": block}))
        self._open = what
        self._blocks += 1

    def _close(self, said: list[bytes]) -> None:
        if not self._open:
            return
        if self._open == "thinking":
            signature = msgspec.json.encode(message_id(self._call))[1:-1]
            said.append(self._delta(b"signature_delta", b"signature", signature))
        if self._held and (odd := chat.text_of(b"".join(self._held)).strip()):
            fragment = msgspec.json.encode(msgspec.json.encode(no_object(odd)).decode())[1:-1]
            said.append(self._delta(b"input_json_delta", b"partial_json", fragment))
        self._held = None
        said.append(_event("content_block_stop", {"index": self._blocks - 1}))
        self._open = ""

    def _delta(self, kind: bytes, name: bytes, inside: bytes) -> bytes:
        return _DELTA % (self._blocks - 1, kind, name, inside)


def _event(name: str, fields: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode({"type": name, **fields}))
