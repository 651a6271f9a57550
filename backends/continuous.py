"""Usage in every event of a stream, as `continuous_usage_stats` asks for it: summed, and hidden from clients again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from backends import answers, sse
from backends.body import Malformed

if TYPE_CHECKING:
    from backends.api import Call, Usage

WISH = "continuous_usage_stats"
_MEMBER = re.compile(rb',[ ]?"usage":[ ]?\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}')


def is_wanted(call: Call) -> bool:
    """The client itself has asked for usage in every event; without the usage event the wish is void."""
    if not call.include_usage:
        return False
    try:
        return call.body.get("stream_options", dict[str, msgspec.Raw], {}).get(WISH) == msgspec.Raw(b"true")
    except Malformed:
        return False


def without_usage(event: bytes) -> bytes:
    """The event without what it tells of usage, every other byte as it was."""
    if event.count(b'"usage"') == 1:  # its quotes are not escaped: it stands in no text
        rest, found = _MEMBER.subn(b"", event)
        if found:
            return rest
    told = answers.members(sse.data(event))
    told.pop("usage", None)
    members = b",".join([msgspec.json.encode(name) + b":" + value for name, value in told.items()])
    return b"data: {" + members + b"}\n\n"


class Tally:
    """What all choices of a stream have taken so far, where each event tells what its own choice has."""

    __slots__ = ("_choices", "_prompts", "_read", "made")

    def __init__(self) -> None:
        self._choices: dict[int, int] = {}
        self._prompts: dict[int, int] = {}
        self._read = self.made = 0

    def add(self, call: Call, choice: int, usage: Usage) -> tuple[int, int]:
        """Prompt and completion tokens of all, now that this is known of a choice.

        Prompts of which nothing was told yet are taken to be like the others.
        """
        if not 0 <= choice < call.choices:  # a number of the target's own making
            return self.read(call), self.made
        prompt = choice // call.asked.choices
        self._read += usage.prompt_tokens - self._prompts.get(prompt, 0)
        self.made += usage.completion_tokens - self._choices.get(choice, 0)
        self._prompts[prompt], self._choices[choice] = usage.prompt_tokens, usage.completion_tokens
        return self.read(call), self.made

    def read(self, call: Call) -> int:
        """Tokens of the call's prompts."""
        return self._read * call.asked.prompts // max(1, len(self._prompts))
