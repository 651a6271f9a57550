"""A completion's stream in TGI's own language: one event a token, the last with the whole text."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from backends.api import Call
from gateway.dialects import chat
from gateway.dialects.generate.request import parameters
from gateway.dialects.generate.tokens import UNKNOWN, finish_reason, token, tokens


class Generation:
    """Writes one stream.

    The last token waits for the end of the stream, where it is known how many there were: servers tell that at once.
    """

    def __init__(self, call: Call, *, full_text: bool) -> None:
        """`full_text`: the whole text begins with the prompt, where the call does not say."""
        self._asked = parameters(call)
        full = full_text if self._asked.return_full_text is None else self._asked.return_full_text
        self._text = [chat.inside(call.body.fields["inputs"])] if full else []
        self._index = 0
        self._last: dict[str, Any] | None = None
        self._reason = "eos_token"
        self._usage = Raw()
        self.piece: bytes | None = None
        """As `Writer.piece`."""

    def take(self, event: chat.Answer) -> bytes:
        said, self.piece = [], None
        if event.usage and bytes(event.usage) != b"null":
            self._usage = Raw(bytes(event.usage))
        for choice in event.choices or ():
            text = chat.inside(choice.text)
            self._text.append(text)
            told = tokens(choice)
            if not told and text:
                self.piece = text if choice.token_ids is None and not choice.finish_reason else None
                ids = choice.token_ids or []
                told = [token(ids[0] if len(ids) == 1 else UNKNOWN, chat.string(text), None)]
            if choice.finish_reason:
                self._reason = finish_reason(choice)
                self._last = told.pop() if told else None
            said += [self._event(each) for each in told]
        return b"".join(said)

    def say(self, inside: bytes) -> bytes:
        """As `Writer.say`."""
        self._text.append(inside)
        return self._event(token(UNKNOWN, chat.string(inside), None))

    def end(self) -> bytes:
        last = token(UNKNOWN, Raw(b'""'), None, special=True) if self._last is None else self._last
        details = None
        if self._asked.details:
            counted = chat.counts(self._usage)
            details = {
                "finish_reason": self._reason,
                "generated_tokens": self._index if counted is None else counted.completion,
                "seed": self._asked.seed,
                "input_length": 0 if counted is None else counted.prompt,
            }
        return self._event(last, chat.string(b"".join(self._text)), details)

    def _event(self, said: dict[str, Any], text: Raw | None = None, details: dict[str, Any] | None = None) -> bytes:
        self._index += 1
        value = {"index": self._index, "token": said, "generated_text": text, "details": details}
        return b"data: %b\n\n" % msgspec.json.encode(value)
