"""What a call asks for, in numbers and parts: read once from its body, for all who limit, route and count it.

Each number is the largest that any engine would take for what stands there, so that no spelling is a way around a
limit: `100`, `1e2`, `100.0`, `"100"`, `" +100"` and `"\\u0031\\u0030\\u0030"` are the same bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Final

import msgspec
from msgspec import Raw, Struct

HUGE: Final = 1 << 52
"""More than any engine has of anything; no number is read as more."""
MOST_DIGITS: Final = 4300
"""A number that is longer is not computed: as much as this no reader of JSON takes."""
FIRST: Final = 16
"""Messages that are looked at: by its beginning a conversation is known, and the rest is only passed over."""
MOST_PARTS: Final = 8192
"""Objects in messages; in more than these media are not told from text."""

BOUNDS: Final = ("max_tokens", "max_completion_tokens", "n_predict")
"""Fields that bound an answer. Whichever of them a target honours, the largest is enough."""
CHOICES: Final = ("n", "n_cmpl")
NO_PROMPT: Final = ("logit_bias", "allowed_token_ids", "prompt_embeds", "metadata")
"""Fields that may be large and that no model reads as text."""

_SYSTEM = ("system", "developer")


class _Message(Struct, gc=False):
    role: str | None = None
    content: Raw = Raw()


_First = msgspec.defstruct(
    "_First", [(f"at_{index}", _Message | None, None) for index in range(FIRST)], array_like=True, gc=False
)


class _Part(Struct, gc=False):
    """A part of a message. Those that are not text have what they show or play in one of these fields."""

    type: str | None = None
    image_url: Raw = Raw()
    input_audio: Raw = Raw()
    audio_url: Raw = Raw()
    video_url: Raw = Raw()
    image_embeds: Raw = Raw()
    audio_embeds: Raw = Raw()
    prompt_embeds: Raw = Raw()
    image: Raw = Raw()
    video: Raw = Raw()
    audio: Raw = Raw()
    file: Raw = Raw()
    input_image: Raw = Raw()


class _Parts(Struct, gc=False):
    content: list[_Part | str] | str | None = None


_shown = attrgetter(*_Part.__struct_fields__[1:])
_first = msgspec.json.Decoder(_First)
_in_turn = attrgetter(*_First.__struct_fields__)
_parts = msgspec.json.Decoder(list[_Parts])
_values = msgspec.json.Decoder(list[Raw])


class Conversation(Struct, frozen=True):
    """A conversation so far, as far as calls that share its beginning have it in common."""

    shared: tuple[bytes, ...] | None = None
    """Tools, and the contents of the system messages before the first question, as JSON: what other conversations may
    share. None: it is no conversation that can be read."""
    question: bytes = b""
    """The content of the first message of the user after them, as JSON."""
    follow_up: bool = False
    """An assistant's message comes after them: an earlier call of the conversation was answered."""


NO_CONVERSATION: Final = Conversation()


class Asked(Struct, frozen=True):
    """What a call asks for. What cannot be read is the target's to refuse, and counts as if it were not there."""

    prompts: int = 1
    """Prompts or inputs in the call, each of which is answered."""
    choices: int = 1
    """Answers to each prompt that the client gets (`n`)."""
    candidates: int = 1
    """Answers that are made for each prompt: `n` or `best_of`, whichever is more."""
    output: int = 0
    """Tokens that one answer has at most; 0: it is not bounded."""
    text: int = 0
    """Bytes that may be prompt: the body without media, token ids and what no model reads."""
    token_ids: int = 0
    """Tokens of prompts that come as token ids."""
    media: int = 0
    """Images, recordings and the like, within the body or behind links."""
    conversation: Conversation | None = None
    """None: it was not looked at, for not every call's is needed."""

    @property
    def answers(self) -> int:
        """How many answers will be made."""
        return self.prompts * self.candidates


def read(
    endpoint: str,
    length: int,
    fields: Mapping[str, Raw],
    short: Mapping[str, Raw] | None = None,
    size: Callable[[Raw], int] = len,
) -> Asked:
    """What a body of this length in bytes asks for, from its top-level fields.

    Of a large body `short` are the same fields without what is long in them, and `size` says how many bytes a part of
    one stands for.
    """
    short = fields if short is None else short
    choices, output = 1, 0
    for name in CHOICES:
        if name in short:
            choices = max(choices, number(short[name]))
    for name in BOUNDS:
        if name in short:
            text = bytes(short[name])
            output = max(output, int(text) if text.isdigit() and len(text) < 16 else _odd_number(text))
    candidates = max(choices, number(short["best_of"])) if "best_of" in short else choices
    prompts, token_ids, media, prompt = 1, 0, 0, length
    for name in NO_PROMPT:
        if name in fields:
            prompt -= len(fields[name])
    if endpoint != "chat/completions":
        prompts, token_ids, taken = _prompts("prompt" if endpoint == "completions" else "input", fields, short)
        media, prompt = "prompt_embeds" in fields, prompt - taken
    if endpoint != "completions" and "messages" in fields:
        messages = bytes(short["messages"])
        if messages.find(b"[", 1) >= 0:
            shown, taken = _media(messages, size)
            media, prompt = media + shown, prompt - taken
    return Asked(prompts, choices, candidates, output, prompt, token_ids, media)


def conversation(endpoint: str, fields: Mapping[str, Raw]) -> Conversation:
    """The conversation that a call of this endpoint goes on with, from its body's top-level fields."""
    if endpoint != "chat/completions" or "messages" not in fields:
        return NO_CONVERSATION
    try:
        first: tuple[_Message | None, ...] = _in_turn(_first.decode(fields["messages"]))
    except (msgspec.DecodeError, RecursionError):
        return NO_CONVERSATION  # the target will say what is wrong with it
    tools = fields.get("tools") or fields.get("functions")
    shared, question, follow_up, opening = [b"" if tools is None else bytes(tools)], None, False, True
    for message in first:
        if message is None or (follow_up and question is not None):
            break
        role = message.role
        if opening and role in _SYSTEM:
            shared.append(bytes(message.content))
            continue
        opening = False
        if role == "user" and question is None:
            question = bytes(message.content)
        elif role == "assistant":
            follow_up = True
    return Conversation(tuple(shared), question or b"", follow_up)


def number(raw: Raw) -> int:
    """A whole number, as the largest that any engine takes it for; 0 for what all refuse or read as none."""
    text = bytes(raw)
    return int(text) if text.isdigit() and len(text) < 16 else _odd_number(text)


def _odd_number(written: bytes) -> int:
    text = msgspec.json.decode(written, type=str) if written.startswith(b'"') else written.decode()
    text = text.strip()
    if len(text) > MOST_DIGITS:
        return HUGE if text.lstrip("+")[:1].isdigit() else 0
    try:
        value = float(text)
    except ValueError:
        return 0
    if value >= HUGE:
        return HUGE if any(map(str.isdigit, text)) else 0  # not "infinity"
    return int(value) if value >= 1 else 0


def _prompts(name: str, fields: Mapping[str, Raw], short: Mapping[str, Raw]) -> tuple[int, int, int]:
    """How many prompts the field of this name holds, how many token ids they are, and the bytes that these take."""
    if name not in fields or bytes(memoryview(short[name])[:1]) != b"[":
        return 1, 0, 0
    prompts, token_ids = _listed(bytes(short[name]))
    return prompts, token_ids, len(fields[name]) if token_ids else 0


def _listed(values: bytes) -> tuple[int, int]:
    """How many prompts a list is, and how many token ids they are; 0: they are text."""
    first = values[1:].lstrip()[:1]
    if first == b"[":
        return values.count(b"[") - 1, values.count(b",") + 1
    if first != b'"':
        return 1, 0 if first in (b"]", b"{", b"n", b"t", b"f") else values.count(b",") + 1
    if b"\\" not in values:
        return values.count(b'"') // 2, 0
    return len(_values.decode(values)), 0


def _media(messages: bytes, size: Callable[[Raw], int]) -> tuple[int, int]:
    """How many images, recordings and the like are in the messages, and the bytes that they take there."""
    if messages.count(b"{") > MOST_PARTS:
        return 0, 0
    try:
        read = _parts.decode(messages)
    except (msgspec.DecodeError, RecursionError):
        return 0, 0  # the target will say what is wrong with it
    media = taken = 0
    for message in read:
        if type(message.content) is not list:
            continue
        for part in message.content:
            if type(part) is _Part and part.type != "text" and (shown := sum(map(size, filter(None, _shown(part))))):
                media, taken = media + 1, taken + shown
    return media, taken
