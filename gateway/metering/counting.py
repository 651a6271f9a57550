"""How many tokens a call took: as its target says, or as what came of its answer and how long it took tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.asked import HUGE
from backends.endpoints import SILENT

if TYPE_CHECKING:
    from gateway.core.types import Spent
    from gateway.metering.record import CallRecord

BYTES_PER_TOKEN: Final = 4.0
"""Of an answer of a target of which nothing is known."""
LEAST_BYTES, MOST_BYTES = 2.0, 8.0
"""Bounds of what is learned of a target: nobody's answers make those of others much cheaper."""
TOKENS_PER_SECOND: Final = 30.0
"""Of one answer of a target of which nothing is known."""
SLOWEST, FASTEST = 1.0, 1000.0
WEIGHT: Final = 0.05
"""Of one answer in what is learned."""
TEMPLATE: Final = 8192
"""Tokens that a target may add to each prompt: its chat template, a system prompt of its own."""
MOST_OF_MEDIA: Final = 200_000
"""Tokens of an image, a recording, a film."""
BEYOND: Final = 64
"""Tokens that an answer may have beyond its bound: engines that guess several tokens ahead stop a little late."""
LONGEST: Final = 1 << 20
"""Tokens of an answer that is not bounded."""


class Learned:
    """What the answers of each target were like: a token's bytes of text, and the tokens of one answer a second."""

    def __init__(self) -> None:
        self._bytes: dict[str, float] = {}
        self._speeds: dict[str, float] = {}

    def learn(self, record: CallRecord, spent: Spent, seconds: float) -> None:
        """A target has counted a whole answer, for which it was waited for so many seconds."""
        target, output = record.target, spent.output
        if output <= 0 or record.call is None:
            return
        if record.text:
            known = self._bytes.get(target, BYTES_PER_TOKEN)
            seen = min(MOST_BYTES, max(LEAST_BYTES, record.text / output))
            self._bytes[target] = known + WEIGHT * (seen - known)
        if seconds > 0:
            seen = min(FASTEST, max(SLOWEST, output / record.call.asked.answers / seconds))
            known = self._speeds.get(target, seen)
            self._speeds[target] = known + WEIGHT * (seen - known)

    def made(self, record: CallRecord) -> int:
        """Tokens of what has come of a stream: what its target counted, else its events, or those of its text if that
        is more, as several may stand in one event."""
        if record.usage is not None:
            return max(0, min(record.usage.completion_tokens, _believable(record)[1]))
        events, text = record.events, int(record.text / self._bytes.get(record.target, BYTES_PER_TOKEN))
        return events if text <= events else max(events, min(text, _bound(record)))

    def made_unseen(self, record: CallRecord) -> int:
        """Tokens that a target has made of a whole answer until its client left."""
        if record.call is None or record.endpoint in SILENT:
            return 0
        speed = self._speeds.get(record.target, TOKENS_PER_SECOND) * record.call.asked.answers
        return min(int(record.left_after * speed), _bound(record))


def count(record: CallRecord, learned: Learned) -> tuple[int, int, int, str]:
    """Prompt, cached and completion tokens, and where they come from: "" if no target has worked for the call."""
    usage, prompt = record.usage, record.prompt
    if usage is not None:
        most_input, most_output = _believable(record)
        input, output = max(0, min(usage.prompt_tokens, most_input)), max(0, min(usage.completion_tokens, most_output))
        capped = usage.prompt_tokens > most_input or usage.completion_tokens > most_output
        return input, max(0, min(usage.cached_tokens or 0, input)), output, "capped" if capped else "upstream"
    if record.events:
        return prompt, 0, learned.made(record), "counted"
    if record.size and not record.stream:
        silent = record.endpoint in SILENT
        return prompt, 0, 0 if silent else max(1, int(record.size / BYTES_PER_TOKEN)), "estimated"
    if record.left_in:  # the target has read the prompt, or was about to
        return prompt, 0, learned.made_unseen(record) if record.left_in == "whole" else 0, "estimated"
    return 0, 0, 0, ""


def _believable(record: CallRecord) -> tuple[int, int]:
    """The most tokens of prompts and answers that a target can have seen and made of such a call.

    No text has more tokens than bytes.
    """
    if record.call is None:
        return 0, 0
    asked = record.call.asked
    prompts = asked.text + asked.token_ids + asked.media * MOST_OF_MEDIA + asked.prompts * TEMPLATE
    if record.endpoint in SILENT:
        return prompts, 0
    return prompts, min(HUGE, asked.output + BEYOND if asked.output else LONGEST) * asked.answers


def _bound(record: CallRecord) -> int:
    """Tokens that its answers may have together."""
    asked = None if record.call is None else record.call.asked
    return asked.output * asked.answers if asked is not None and asked.output else HUGE
