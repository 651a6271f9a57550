"""How many tokens a call will take, before anybody has counted them: from its bytes, and from what calls took before.

Bytes per token are learned per route as an exponentially weighted mean of what targets reported, starting at four. The
answer's length, where the call does not bound it, is the learned 90th percentile of its key on its route, by the
stochastic approximation of a quantile (Robbins and Monro): a step of 0.9 up for an answer above it, of 0.1 down for one
below.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Final

from msgspec import Struct

from backends.api import Call

BYTES_PER_TOKEN: Final = 4.0
WEIGHT: Final = 0.05
"""Of one call in the mean of bytes per token."""
LEAST_PROMPT: Final = 64
"""Bytes; the envelope of a shorter call would say more about JSON than about the model."""
FIRST_OUTPUT: Final = 256.0
"""Tokens assumed of an answer as long as nothing is known."""
QUANTILE: Final = 0.9
STEP: Final = 0.1
MEDIA_TOKENS: Final = 1000
"""Tokens assumed of an image or a recording within the body: its base64 text says nothing about them."""
MAX_KEYS: Final = 10_000
HUGE: Final = 1 << 52

MOST_BYTES_PER_TOKEN: Final = 8
"""No text has more of them for long: what a prompt takes at the very least is told by this, whatever was learned."""

_MEDIA = re.compile(rb'"data(?::|"\s*:\s*")(?:[^"\\]|\\.){256,}+"')


class Estimate(Struct, frozen=True):
    """Tokens reserved for a call."""

    input: int
    output: int
    least: tuple[int, int]
    """Input and output at the very least: of its text, and of what it asks for."""


class Estimator:
    """Learns from every answer; one gateway's knowledge, lost with it."""

    def __init__(self) -> None:
        self._bytes_per_token: dict[str, float] = {}
        self._outputs: OrderedDict[tuple[str, str], float] = OrderedDict()

    def input(self, call: Call, route: str) -> int:
        """Prompt tokens of `call`."""
        return self._input(*_size(call), route)

    def _input(self, text: int, media: int, route: str) -> int:
        return max(1, int(text / self._bytes_per_token.get(route, BYTES_PER_TOKEN))) + media * MEDIA_TOKENS

    def estimate(self, call: Call, key_id: str, route: str) -> Estimate:
        """What to reserve for a call of this key on this route."""
        text, media = _size(call)
        prompt, least = self._input(text, media, route), text // MOST_BYTES_PER_TOKEN
        if call.endpoint == "embeddings":
            return Estimate(prompt, 0, (least, 0))
        # Whichever of the two the target honours, the larger one is enough.
        asked = max(_number(call, "max_tokens"), _number(call, "max_completion_tokens")) * _choices(call)
        expected = self._outputs.get((key_id, route), self._outputs.get(("", route), FIRST_OUTPUT))
        return Estimate(prompt, asked or int(expected * _choices(call)), (least, asked))

    def learn(self, call: Call, key_id: str, route: str, input: int, output: int) -> None:
        """A target has counted the tokens of an answered call."""
        size, media = _size(call)
        if input > 0 and size >= LEAST_PROMPT and not media:
            known = self._bytes_per_token.get(route, BYTES_PER_TOKEN)
            ratio = min(16.0, max(0.5, size / input))
            self._bytes_per_token[route] = known + WEIGHT * (ratio - known)
        if call.endpoint != "embeddings":
            for key in ((key_id, route), ("", route)):
                self._learn_output(key, output / _choices(call))

    def _learn_output(self, key: tuple[str, str], output: float) -> None:
        known = self._outputs.pop(key, None)
        if known is None:
            known = max(output, self._outputs.get(("", key[1]), 1.0))
        else:
            scale = STEP * max(1.0, known, output)
            known += scale * (QUANTILE if output > known else QUANTILE - 1)
        self._outputs[key] = max(1.0, known)
        if len(self._outputs) > MAX_KEYS:
            self._outputs.popitem(last=False)


def _size(call: Call) -> tuple[int, int]:
    """Bytes of text in the body, and how many images and recordings it holds."""
    raw = call.body.raw
    size, media = len(raw), 0
    if size > 512:
        for found in _MEDIA.finditer(raw):
            size -= found.end() - found.start()
            media += 1
    return size, media


def _choices(call: Call) -> int:
    return max(1, _number(call, "n"), _number(call, "best_of"))


def _number(call: Call, name: str) -> int:
    """A whole number as engines read it, `100`, `1e2` and `"100"` alike; 0 for what is none: theirs to refuse."""
    raw = call.body.fields.get(name)
    if raw is None:
        return 0
    text = bytes(raw).strip(b'"')
    try:
        number = float(text) if text[:1].isdigit() else 0.0
    except ValueError:
        return 0
    if number >= HUGE:
        return HUGE
    return int(number) if number >= 1 and number % 1 == 0 else 0
