"""How many tokens a call will take, before anybody has counted them: from its bytes, and from what calls took before.

Bytes per token are learned per route as an exponentially weighted mean of what targets reported, starting at four. The
answer's length, where the call does not bound it, is the learned 90th percentile of its key on its route, by the
stochastic approximation of a quantile (Robbins and Monro): a step of 0.9 up for an answer above it, of 0.1 down for one
below.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from msgspec import Struct

from backends.api import Call
from backends.asked import HUGE

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
"""Tokens assumed of an image or a recording: neither its base64 text nor a link says anything about them."""
MAX_KEYS: Final = 10_000
MOST_BYTES_PER_TOKEN: Final = 8
"""No text has more of them for long: what a prompt takes at the very least is told by this, whatever was learned."""


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
        asked = call.asked
        ratio = self._bytes_per_token.get(route, BYTES_PER_TOKEN)
        return max(1, int(asked.text / ratio) + asked.token_ids) + asked.media * MEDIA_TOKENS

    def estimate(self, call: Call, key_id: str, route: str) -> Estimate:
        """What to reserve for a call of this key on this route."""
        asked = call.asked
        ratio = self._bytes_per_token.get(route, BYTES_PER_TOKEN)
        prompt = max(1, int(asked.text / ratio) + asked.token_ids) + asked.media * MEDIA_TOKENS
        least = asked.text // MOST_BYTES_PER_TOKEN + asked.token_ids
        if call.endpoint == "embeddings":
            return Estimate(prompt, 0, (least, 0))
        answers = asked.prompts * asked.candidates
        bound = min(HUGE, asked.output * answers)
        expected = self._outputs.get((key_id, route)) or self._outputs.get(("", route), FIRST_OUTPUT)
        return Estimate(prompt, bound or min(HUGE, int(expected * answers)), (least, bound))

    def learn(self, call: Call, key_id: str, route: str, input: int, output: float) -> None:
        """A target has counted the tokens of an answered call."""
        asked = call.asked
        size = asked.text
        if input > 0 and size >= LEAST_PROMPT and not asked.media and not asked.token_ids:
            known = self._bytes_per_token.get(route, BYTES_PER_TOKEN)
            ratio = min(16.0, max(0.5, size / input))
            self._bytes_per_token[route] = known + WEIGHT * (ratio - known)
        if call.endpoint == "embeddings":
            return
        output = output / (asked.prompts * asked.candidates)
        outputs = self._outputs
        for key in ((key_id, route), ("", route)):
            known = outputs.pop(key, 0.0)
            if not known:
                known = max(output, outputs.get(("", route), 1.0))
            else:
                scale = STEP * max(1.0, known, output)
                known += scale * (QUANTILE if output > known else QUANTILE - 1)
            outputs[key] = max(1.0, known)
        while len(outputs) > MAX_KEYS:
            outputs.popitem(last=False)
