"""How many tokens a call took: as its target says, or as what came of its answer and how long it took tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from backends.asked import HUGE

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
MOST_TOKENS = 1 << 32
"""That a target is believed to have read or written for one call."""


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
        """Tokens of what has come of a stream: its events, or those of its text, if several stand in one event."""
        events, text = record.events, int(record.text / self._bytes.get(record.target, BYTES_PER_TOKEN))
        return events if text <= events else max(events, min(text, _bound(record)))

    def made_unseen(self, record: CallRecord) -> int:
        """Tokens that a target has made of a whole answer until its client left."""
        if record.call is None or record.endpoint == "embeddings":
            return 0
        speed = self._speeds.get(record.target, TOKENS_PER_SECOND) * record.call.asked.answers
        return min(int(record.left_after * speed), _bound(record))


def count(record: CallRecord, learned: Learned) -> tuple[int, int, int, str]:
    """Prompt, cached and completion tokens, and where they come from: "" if no target has worked for the call."""
    usage, prompt = record.usage, record.prompt
    if usage is not None:
        input, output = usage.prompt_tokens, usage.completion_tokens
        input, output = max(0, min(input, MOST_TOKENS)), max(0, min(output, MOST_TOKENS))
        return input, max(0, min(usage.cached_tokens or 0, input)), output, "upstream"
    if record.events:
        return prompt, 0, learned.made(record), "counted"
    if record.size and not record.stream:
        embeds = record.endpoint == "embeddings"
        return prompt, 0, 0 if embeds else max(1, int(record.size / BYTES_PER_TOKEN)), "estimated"
    if record.left_in:  # the target has read the prompt, or was about to
        return prompt, 0, learned.made_unseen(record) if record.left_in == "whole" else 0, "estimated"
    return 0, 0, 0, ""


def _bound(record: CallRecord) -> int:
    """Tokens that its answers may have together."""
    asked = None if record.call is None else record.call.asked
    return asked.output * asked.answers if asked is not None and asked.output else HUGE
