"""Streams that go on at another target: what the client has already, and how the next part joins it."""

from __future__ import annotations

from io import StringIO
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct, structs

from backends import answers, sse
from backends.api import Call, Chunk, RequestRefused, Resumable, Usage
from backends.body import Body
from gateway.core.errors import BadReply

MOST_TEXT: Final = 4 * 1024**2
"""Characters of an answer that are kept, in case its target dies."""
ONLY_AS: Final[dict[str, tuple[bytes, ...]]] = {
    "n": (b"1",),
    "best_of": (b"1",),
    "echo": (b"false",),
    "suffix": (b'""',),
    "logprobs": (b"false",),
    "top_logprobs": (b"0",),
    "prompt_logprobs": (b"0",),
    "use_beam_search": (b"false",),
    "continue_final_message": (b"false",),
    "tool_choice": (b'"auto"', b'"none"'),
    "functions": (b"[]",),
    "response_format": (b'{"type":"text"}',),
    "structured_outputs": (b"{}",),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "grammar": (b'""',),
    "json_schema": (),
    "regex": (),
    "ebnf": (),
    "audio": (),
    "return_token_ids": (b"false",),
}
"""Fields with the values, besides null, under which an answer can go on elsewhere: the rest of it would not be what
the field asks for. A grammar would begin anew in the middle, log probabilities and token ids would have a seam."""
_BOUNDS: Final = ("max_tokens", "max_completion_tokens", "min_tokens")


class _Delta(Struct):
    content: str | None = None
    tool_calls: Raw = Raw()
    function_call: Raw = Raw()
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None


class _Choice(Struct):
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Event(Struct):
    id: Raw = Raw()
    created: Raw = Raw()
    model: Raw = Raw()
    choices: list[_Choice] = []


class _Asked(Struct):
    role: str = ""


_event = msgspec.json.Decoder(_Event)
_NOTHING = (b"null", b"[]", b'""', b"")


class Transcript:
    """What the client has of one stream, whose next part may come from another target.

    Text counts, not tokens: the next target reads it as a part of its prompt. Blanks at its end are left out there,
    as chat templates may or may not, and are dropped from what comes back.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._forget()

    def _forget(self) -> None:
        self._told = _Event()
        self._text = StringIO()
        self._tokens = 0
        self._before = 0
        """Tokens of the parts before the one at hand."""
        self._blanks = 0
        """Events at the end of the text that hold nothing but blanks."""
        self._tail = ""
        """Blanks that the client has and the target at hand was not told of."""
        self._joining = self._ended = False
        self._spent = False
        """The client has as many tokens as it asked for."""
        self._barrier = ""
        """What in the answer keeps it from going on elsewhere."""

    def obstacle(self) -> str:
        """Why nobody else can go on with the answer, in a word; empty: another target can."""
        return "ended" if self._ended else self._barrier or _obstacle(self._call)

    def rest(self, resumable: Resumable | None, *, started: bool) -> Call:
        """The call for what is missing, for the next target: all, until the client's answer has started."""
        if not started:
            self._forget()
            return self._call
        text = self._text.getvalue()
        said = text.rstrip()
        self._joining, self._tail = True, text[len(said) :]
        self._tokens = self._before = self._tokens - self._blanks if said else 0  # they will be said again
        self._blanks = 0
        if not said:
            return self._call
        assert resumable is not None, "attempts after the first are at targets that can"
        try:
            return resumable.resume(self._bounded(), said)
        except (ValueError, RequestRefused) as error:
            raise BadReply(f"its rest cannot be asked for: {error}") from error

    def _bounded(self) -> Call:
        """The call with what is left of its bounds. One whose answer is whole asks for a token more, for its usage."""
        changes: dict[str, bytes] = {}
        for name in _BOUNDS:
            bound = self._call.body.get(name, int, -1)
            if bound >= 0:
                left = bound - self._tokens
                self._spent |= left <= 0 and name != "min_tokens"
                changes[name] = b"%d" % max(left, 0 if name == "min_tokens" else 1)
        return structs.replace(self._call, body=Body(self._call.body.spliced(changes))) if changes else self._call

    def take(self, chunk: Chunk) -> Chunk:
        """What of the chunk goes to the client. Raises `BadReply` for a later part's event that cannot be joined."""
        if self._barrier and not self._joining:
            return chunk
        if not self._joining:
            try:
                for event in sse.cut(chunk.data):
                    self._note(event)
            except (ValueError, RecursionError):  # the client may understand it; nobody can go on from it
                self._barrier = "odd"
            self._tokens += chunk.tokens
            return chunk
        try:
            data = b"".join(self._joined(event) for event in sse.cut(chunk.data))
        except (ValueError, RecursionError, AttributeError, TypeError) as error:
            raise BadReply(f"event not understood: {error}") from error
        counted = None if chunk.usage is None else self._whole(chunk.usage)
        tokens = 0 if self._spent else chunk.tokens
        self._tokens += tokens
        return structs.replace(chunk, data=data, usage=counted, tokens=tokens)

    def _note(self, event: bytes) -> None:
        """Remember what an event tells the client."""
        data = sse.data(event)
        if not data.startswith(b"{"):
            return
        try:
            seen = _event.decode(data)
        except msgspec.DecodeError:
            seen = answers.decoded(_event, data)
            self._barrier = "odd"  # half a surrogate pair, say: its text cannot be told to anybody else
        if seen.id and not self._told.id:
            self._told = _Event(Raw(bytes(seen.id)), Raw(bytes(seen.created)), Raw(bytes(seen.model)))
        for choice in seen.choices:
            self._ended |= bool(choice.finish_reason)
            delta = choice.delta
            text = choice.text if delta is None else delta.content
            if text:
                self._text.write(text)
                self._blanks = 0 if text.strip() else self._blanks + 1
            if delta is not None:
                if bytes(delta.tool_calls) not in _NOTHING or bytes(delta.function_call) not in _NOTHING:
                    self._barrier = "tools"
                elif delta.reasoning or delta.reasoning_content or delta.refusal:
                    self._barrier = "reasoning"
        if self._text.tell() > MOST_TEXT:
            self._barrier, self._text = "length", StringIO()

    def _joined(self, event: bytes) -> bytes:
        """An event of a later part, as if the first target had sent it; nothing of one that only opens the answer."""
        data = sse.data(event)
        if not data.startswith(b"{"):
            return event
        fields = {name: Raw(value) for name, value in answers.members(data).items()}
        choices: list[Any] = answers.parsed(fields.get("choices", b"[]")) or []
        said = [self._trimmed(choice) for choice in choices]
        if choices and not any(said) and "usage" not in fields:
            return b""
        if self._told.id:
            told = {"id": self._told.id, "created": self._told.created, "model": self._told.model}
            fields |= {name: raw for name, raw in told.items() if raw and name in fields}
        fields["choices"] = Raw(answers.encoded(choices, data))
        if bytes(fields.get("usage", b"null")) != b"null":
            fields["usage"] = Raw(answers.encoded(self._counts(answers.parsed(fields["usage"])), data))
        joined = b"data: " + msgspec.json.encode(fields) + b"\n\n"
        self._note(joined)
        return joined

    def _trimmed(self, choice: dict[str, Any]) -> bool:
        """Take from a choice what the client has; whether something is left of it."""
        delta = choice.get("delta")
        if isinstance(delta, dict):
            delta.pop("role", None)
        holder, name = (delta, "content") if isinstance(delta, dict) else (choice, "text")
        text = holder.get(name)
        if self._spent:
            if text:
                holder[name] = ""
            if choice.get("finish_reason"):
                choice["finish_reason"] = "length"
        elif text and self._tail:
            holder[name] = self._without_tail(text)
        kept = delta if isinstance(delta, dict) else {"text": choice.get("text")}
        return bool(choice.get("finish_reason")) or any(value not in (None, "", []) for value in kept.values())

    def _without_tail(self, text: str) -> str:
        """The text without the blanks at its start that the client has already."""
        while self._tail and text and text[0] == self._tail[0]:
            text, self._tail = text[1:], self._tail[1:]
        if text:  # it goes on: what is left of the tail was not said again
            self._tail = ""
        else:
            self._blanks += 1  # said again and taken away: it is among the tokens, and not in the text
        return text

    def _whole(self, part: Usage) -> Usage:
        """The usage of all parts: the prompt of a later one holds what was said before."""
        said = self._before + (0 if self._spent else part.completion_tokens)
        prompt = max(0, part.prompt_tokens - self._before)
        cached = None if part.cached_tokens is None else min(part.cached_tokens, prompt)
        return Usage(prompt, said, cached)

    def _counts(self, counts: Any) -> Any:
        """What a client reads of the usage of a later part; one that holds no counts is left as it is."""
        if not isinstance(counts, dict):
            return counts
        prompt, completion = answers.count(counts.get("prompt_tokens")), answers.count(counts.get("completion_tokens"))
        whole = self._whole(Usage(prompt or 0, completion or 0))
        counts |= {"prompt_tokens": whole.prompt_tokens, "completion_tokens": whole.completion_tokens}
        details = counts.get("prompt_tokens_details")
        if isinstance(details, dict) and isinstance(cached := details.get("cached_tokens"), int):
            details["cached_tokens"] = min(cached, whole.prompt_tokens)
        return counts | {"total_tokens": whole.prompt_tokens + whole.completion_tokens}


def _obstacle(call: Call) -> str:
    """Why an answer to the call could not go on elsewhere; empty if it could."""
    fields = call.body.fields
    for name, harmless in ONLY_AS.items():
        raw = bytes(fields.get(name, b"null"))
        if raw != b"null" and b"".join(raw.split()) not in harmless:
            return name
    if call.endpoint == "completions":
        return "" if bytes(fields.get("prompt", b"")).startswith(b'"') else "prompt"
    try:
        asked = call.body.get("messages", list[_Asked], [])
    except ValueError:
        return "messages"
    return "" if asked and asked[-1].role != "assistant" else "messages"
