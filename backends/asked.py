"""What a call asks for, in numbers and parts: read once from its body, for all who limit, route and count it.

Each number is the largest that any engine would take for what stands there, so that no spelling is a way around a
limit: `100`, `1e2`, `100.0`, `"100"`, `" +100"` and `"\\u0031\\u0030\\u0030"` are the same bound.
"""

from __future__ import annotations

import re
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

BYTES_OF_TOKEN: Final = 4
"""Roughly, where the lengths of prompts are compared."""

BOUNDS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
"""Fields that bound an answer. Whichever of them a target honours, the largest is enough."""
CHOICES: Final = ("n", "n_cmpl")
NO_PROMPT: Final = ("logit_bias", "allowed_token_ids", "prompt_embeds", "metadata")
"""Fields that may be large and that no model reads as text."""
PROMPTS: Final = {
    "completions": "prompt",
    "embeddings": "input",
    "rerank": "documents",
    "score": "text_2",
    "decisions": "questions",
}
"""Where the prompts stand of which one call may have several, each of which is answered."""
NESTED: Final = {"generate": "parameters", "generate/root": "parameters"}
"""Where the bounds of an answer stand, if not at the top."""
SYSTEM: Final = {"chat/completions": "", "messages": "system", "responses": "instructions"}
"""Endpoints for conversations, and where the system prompt stands if not in a message."""
MESSAGES: Final = {"responses": "input"}
"""Where a conversation stands, if not in `messages`."""

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
    source: Raw = Raw()
    file_data: Raw = Raw()
    content: Raw = Raw()


class _Parts(Struct, gc=False):
    content: list[_Part | str] | str | None = None


_shown = attrgetter(*_Part.__struct_fields__[1:-1])
_first = msgspec.json.Decoder(_First)
_in_turn = attrgetter(*_First.__struct_fields__)
_parts = msgspec.json.Decoder(list[_Parts])
_values = msgspec.json.Decoder(list[Raw])
_named = msgspec.json.Decoder(dict[str, Raw])
_DIGIT = re.compile(rb"[0-9]")


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
    longest: float = 1.0
    """The part of its tokens that its longest prompt has; 0: nobody knows."""
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
    if endpoint in NESTED:
        short = {**short, **_parameters(short.get(NESTED[endpoint]))}
    choices, output = 1, 0
    for name in CHOICES:
        if name in short:
            choices = max(choices, number(short[name]))
    for name in BOUNDS:
        if name in short:
            text = bytes(short[name])
            output = max(output, int(text) if text.isdigit() and len(text) < 16 else _odd_number(text))
    candidates = max(choices, number(short["best_of"])) if "best_of" in short else choices
    prompts, token_ids, media, longest = 1, 0, 0, 1.0
    prompt = length - sum(map(len, filter(None, map(fields.get, NO_PROMPT))))
    if endpoint in PROMPTS:
        name = PROMPTS[endpoint]
        prompts, token_ids, taken, longest = _prompts(name, fields, short, size)
        prompt -= taken
        if "prompt_embeds" in fields and (media := _embedded(short["prompt_embeds"])):
            prompts, longest = media + (prompts if bytes(fields.get(name, b"null")) != b"null" else 0), 0.0
    name = MESSAGES.get(endpoint, "messages")
    if endpoint != "completions" and name in fields:
        messages = bytes(short[name])
        if messages.find(b"[", 1) >= 0:
            shown, taken = _media(messages, size)
            media, prompt = media + shown, prompt - taken
    return Asked(prompts, choices, candidates, output, prompt, token_ids, media, longest)


def conversation(endpoint: str, fields: Mapping[str, Raw]) -> Conversation:
    """The conversation that a call of this endpoint goes on with, from its body's top-level fields."""
    name = MESSAGES.get(endpoint, "messages")
    if endpoint not in SYSTEM or name not in fields:
        return NO_CONVERSATION
    try:
        first: tuple[_Message | None, ...] = _in_turn(_first.decode(fields[name]))
    except (msgspec.DecodeError, RecursionError):
        return NO_CONVERSATION  # the target will say what is wrong with it
    tools = fields.get("tools") or fields.get("functions")
    shared, question, follow_up, opening = [b"" if tools is None else bytes(tools)], None, False, True
    if (system := SYSTEM[endpoint]) and system in fields:
        shared.append(bytes(fields[system]))
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


def _prompts(
    name: str, fields: Mapping[str, Raw], short: Mapping[str, Raw], size: Callable[[Raw], int]
) -> tuple[int, int, int, float]:
    """How many prompts the field of this name holds, how many token ids they are, the bytes that these take, and the
    longest prompt's part of all of them."""
    if name not in fields or bytes(memoryview(short[name])[:1]) != b"[":
        return 1, 0, 0, 1.0
    values, length = bytes(short[name]), len(fields[name])
    if values.count(b"[") == 1 and b'"' not in values and b"{" not in values:
        token_ids = values.count(b",") + 1 if _DIGIT.search(values) else 0
        return 1, token_ids, length if token_ids else 0, 1.0
    rows, texts, numbers = list[Raw](), list[Raw](), 0
    for part in _values.decode(values):
        first = bytes(memoryview(part)[:1])
        if first == b"[":
            rows.append(part)
        elif first in (b'"', b"{"):
            texts.append(part)
        else:
            numbers += 1
    if texts and numbers and not rows:
        return 1, numbers, 0, 1.0  # a prompt of both, as llama.cpp alone takes it
    ids = [bytes(row).count(b",") + 1 for row in rows]
    plain = [row for row in rows if b'"' not in bytes(row)]
    taken = sum(map(size, plain)) if texts or len(plain) < len(rows) else length
    weights = [*ids, *(size(text) // BYTES_OF_TOKEN for text in texts)]
    # Of the rows of a large body only the ends are known.
    longest = max(weights) / max(1, sum(weights)) if short is fields or not rows else 1 / len(weights)
    return len(weights) + numbers, sum(ids) + numbers, taken, longest


def _parameters(raw: Raw | None) -> dict[str, Raw]:
    """TGI's bounds of an answer, by the names that they have elsewhere."""
    if raw is None or bytes(memoryview(raw)[:1]) != b"{":
        return {}
    try:
        given = _named.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return {}
    names = (("max_new_tokens", "max_tokens"), ("best_of", "best_of"))
    return {name: given[theirs] for theirs, name in names if theirs in given and bytes(given[theirs]) != b"null"}


def _embedded(raw: Raw) -> int:
    """How many prompts come as embeddings, in base64."""
    first = bytes(memoryview(raw)[:1])
    return bytes(raw).count(b'"') // 2 if first == b"[" else int(first == b'"')


def _media_size(part: Raw, size: Callable[[Raw], int]) -> int:
    """How many bytes of a part's field are what it shows or plays."""
    if bytes(memoryview(part)[:1]) != b"{":
        return size(part) if _is_media(part) else 0
    try:
        return sum(size(value) for value in _named.decode(part).values() if _is_media(value))
    except msgspec.DecodeError:
        return 0  # a key that is no text


def _is_media(raw: Raw) -> bool:
    """Whether a value looks like base64, a link or a row of numbers. A text has blanks, line ends or other letters."""
    value = bytes(raw)
    first = value[:1]
    if first == b"[":
        return b'"' not in value
    return first == b'"' and b" " not in value and value.isascii() and value.count(b"\\") == value.count(b"\\/")


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
            if type(part) is not _Part or part.type == "text":
                continue
            if any(shown := _shown(part)):
                media, taken = media + 1, taken + sum(_media_size(each, size) for each in shown if each)
            elif bytes(memoryview(part.content)[:1]) == b"[" and part.type == "tool_result":
                within = _media(b'[{"content":%b}]' % bytes(part.content), size)
                media, taken = media + within[0], taken + within[1]
    return media, taken
