"""A chat's stream, with the calls that its text holds as tool calls, each piece in the event that brings it."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from backends import answers
from backends.api import Call
from gateway.dialects import chat
from gateway.dialects.tools.answer import call_id
from gateway.dialects.tools.parser import Parser
from gateway.dialects.tools.tape import Arguments, Begun, Found, Text


class _Choice(Struct):
    index: int = 0
    delta: dict[str, Raw] | None = None
    finish_reason: Raw = Raw()
    logprobs: Raw = Raw()


class _Event(Struct):
    choices: list[_Choice] | None = None


_event = msgspec.json.Decoder(_Event)
_choices = msgspec.json.Decoder(list[dict[str, Raw]])
_SILENT: Final = (b"", b"null", b'""', b"[]")


class _Calls:
    """The calls of one choice."""

    def __init__(self, call: Call, choice: int, parser: Parser) -> None:
        self._call, self._choice, self.parser = call, choice, parser
        self.count = 0
        self.over = False

    def deltas(self, every: Iterable[Found]) -> list[dict[str, Any]]:
        """What was found as deltas, as few as keep its order."""
        deltas = list[dict[str, Any]]()
        for found in every:
            last = deltas[-1] if deltas else {}
            if isinstance(found, Text):
                if "content" not in last:
                    deltas.append(last := {"content": ""})
                last["content"] += found.text
                continue
            if "tool_calls" not in last:
                last = {"tool_calls": []}
            pieces: list[dict[str, Any]] = last["tool_calls"]
            if isinstance(found, Begun):
                id = found.id or call_id(self._call, self._choice, self.count)
                function = {"name": found.name, "arguments": ""}
                pieces.append({"index": self.count, "id": id, "type": "function", "function": function})
                self.count += 1
            elif isinstance(found, Arguments):
                if not pieces:
                    pieces.append({"index": self.count - 1, "function": {"arguments": ""}})
                pieces[-1]["function"]["arguments"] += found.text
            if pieces and (not deltas or last is not deltas[-1]):
                deltas.append(last)
        return deltas


class CallEvents:
    """Reads one stream. What turns out to be no call goes on as the text that it is; an event without any stays as it
    is, byte for byte."""

    def __init__(self, call: Call, parser: str, names: Container[str]) -> None:
        """`names`: the functions that were offered to the model."""
        self._call, self._parser, self._names = call, parser, names
        self._choices: dict[int, _Calls] = {}
        self._data = b"{}"
        """Of the event that was read last; what it has beside its choices, others have."""
        self.piece: bytes | None = None
        """The inside of the text of the last event, where it had nothing else; else None."""
        self._speaker = 0
        """The choice that said it."""
        self._known: dict[str, Any] | None = None
        """What that event has beside its choices, once it was asked for."""

    def take(self, event: bytes, data: bytes) -> bytes:
        """What the client gets for an event with this data."""
        self.piece = None
        if not data.startswith(b"{"):
            return event
        choices = answers.decoded(_event, data).choices or []
        self._data, self._known = data, None
        if len(choices) == 1:
            self._note(choices[0])
        said = [self._said(choice) for choice in choices]
        if all(each is None for each in said):
            return event
        like = self._like()
        counted = bytes(like.get("usage", b"null")) != b"null"
        every = answers.decoded(_choices, like["choices"])
        pairs = zip(every, said, strict=True)
        return b"".join(self._written(choice, deltas, like, counted=counted) for choice, deltas in pairs)

    def say(self, event: bytes, inside: bytes) -> bytes:
        """What the client gets for one more event like the last, which had a `piece`, with this text in its place."""
        deltas = self._found(self._choices[self._speaker], chat.text_of(inside), ended=False)
        if deltas is None:
            return event
        if self._known is None:
            self._known = self._like()
        choice: dict[str, Any] = {"index": self._speaker}
        return b"".join(_event_of(self._known, {**choice, "delta": delta, "finish_reason": None}) for delta in deltas)

    def _note(self, choice: _Choice) -> None:
        """Remember an event's only choice, if all that it says is a piece of text."""
        delta = choice.delta or {}
        told = [name for name, raw in delta.items() if bytes(raw) not in _SILENT]
        if told == ["content"] and bytes(choice.finish_reason) in _SILENT and bytes(choice.logprobs) in _SILENT:
            self.piece, self._speaker = chat.inside(delta["content"]), choice.index

    def end(self) -> bytes:
        """What was held back of a stream whose server does not tell why it ends."""
        held = [(index, self._rest(calls)) for index, calls in self._choices.items()]
        like = self._like()
        return b"".join(
            self._written({"index": index}, deltas, like, counted=False) for index, deltas in held if deltas
        )

    def _like(self) -> dict[str, Any]:
        return {name: Raw(raw) for name, raw in answers.members(self._data).items()}

    def _said(self, choice: _Choice) -> list[dict[str, Any]] | None:
        """What the choice's text tells; None: it is text, and stays as it is."""
        content = chat.inside((choice.delta or {}).get("content", Raw()))
        ended = bytes(choice.finish_reason) not in _SILENT
        if not content and not ended:
            return None
        calls = self._choices.get(choice.index)
        if calls is None:
            parser = Parser(self._parser, self._names)
            calls = self._choices[choice.index] = _Calls(self._call, choice.index, parser)
        return self._found(calls, chat.text_of(content), ended=ended)

    def _found(self, calls: _Calls, text: str, *, ended: bool) -> list[dict[str, Any]] | None:
        """As `_said`, of a choice's text, and of its end where it has `ended`."""
        if calls.over:
            return None
        every = calls.parser.feed(text) if text else []
        if not ended and len(every) == 1 and every[0] == Text(text):
            return None
        deltas = calls.deltas(every)
        if ended:
            deltas += self._rest(calls)
        alone = deltas == ([{"content": text}] if text else [])
        return None if alone and not (ended and calls.count) else deltas

    def _rest(self, calls: _Calls) -> list[dict[str, Any]]:
        if calls.over:
            return []
        calls.over = True
        return calls.deltas(calls.parser.end())

    def _written(
        self, choice: dict[str, Any], deltas: list[dict[str, Any]] | None, like: dict[str, Any], *, counted: bool
    ) -> bytes:
        """The choice's events: one a delta, with what it says beside its text in the first, and its end in the last."""
        if deltas is None:
            return _event_of(like, choice)
        raw, finish = choice.get("index", 0), choice.get("finish_reason", Raw())
        index = raw if isinstance(raw, int) else answers.whole(raw) or 0
        beside = answers.members(choice["delta"]) if "delta" in choice else {}
        other = {name: Raw(value) for name, value in beside.items() if name != "content" and value not in _SILENT}
        if not deltas and not other and not counted and bytes(finish) in _SILENT:
            return b""
        written = [{**other, **deltas[0]}, *deltas[1:]] if deltas else [other]
        calls = self._choices.get(index)
        if bytes(finish) == b'"stop"' and calls is not None and calls.count:
            choice["finish_reason"] = "tool_calls"
        plain = [{"index": index, "delta": delta, "finish_reason": None} for delta in written[:-1]]
        return b"".join(_event_of(like, each) for each in [*plain, {**choice, "delta": written[-1]}])


def _event_of(like: dict[str, Any], choice: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode({**like, "choices": [choice]}) + b"\n\n"
