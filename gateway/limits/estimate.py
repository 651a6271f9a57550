"""How many tokens a call will take, before anybody has counted them: from its bytes, and from what calls took before.

Both are learned for each key on each route. Bytes per token are an exponentially weighted mean of what targets
reported, starting at four. The answer's length, where the call does not bound it, is the 90th percentile, by the
stochastic approximation of a quantile (Robbins and Monro): a step of 0.9 up for an answer above it, of 0.1 down for one
below.

A key that is new to a route begins with what the route's other keys have taught, within bounds: nobody's calls make
those of others reserve wildly more, or less.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from msgspec import Struct

from backends.api import Call
from backends.asked import HUGE
from backends.endpoints import SILENT, UNCOUNTED

BYTES_PER_TOKEN: Final = 4.0
WEIGHT: Final = 0.05
"""Of one call in the mean of bytes per token."""
LEAST_PROMPT: Final = 64
"""Bytes; the envelope of a shorter call would say more about JSON than about the model."""
FIRST_OUTPUT: Final = 256.0
"""Tokens assumed of an answer as long as nothing is known."""
QUANTILE: Final = 0.9
STEP: Final = 0.1
OTHERS_RATIO: Final = 2.0, 6.0
OTHERS_OUTPUT: Final = FIRST_OUTPUT / 4, FIRST_OUTPUT * 4
"""Within these bounds a new key is taken to be like the others."""
OWN_MOST: Final = float(HUGE)
OWN_RATIO: Final = 1.0, 8.0
"""What a key can teach of its own text; more is no text, and would let it reserve next to nothing for what is."""
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


NOTHING: Final = Estimate(0, 0, (0, 0))


class Estimator:
    """Learns from every answer; one gateway's knowledge, lost with it."""

    def __init__(self) -> None:
        self._ratios: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._outputs: OrderedDict[tuple[str, str], float] = OrderedDict()

    def estimate(self, call: Call, key_id: str, route: str) -> Estimate:
        """What to reserve for a call of this key on this route."""
        if call.endpoint in UNCOUNTED:
            return NOTHING
        asked = call.asked
        ratio = self._ratios.get((key_id, route)) or self._ratios.get(("", route), BYTES_PER_TOKEN)
        prompt = max(1, int(asked.text / ratio) + asked.token_ids) + asked.media * MEDIA_TOKENS
        least = asked.text // MOST_BYTES_PER_TOKEN + asked.token_ids
        if call.endpoint in SILENT:
            return Estimate(prompt, 0, (least, 0))
        answers = asked.prompts * asked.candidates
        bound = min(HUGE, asked.output * answers)
        expected = self._outputs.get((key_id, route))
        if expected is None:
            least_of_others, most_of_others = OTHERS_OUTPUT
            expected = min(most_of_others, max(least_of_others, self._outputs.get(("", route), FIRST_OUTPUT)))
        return Estimate(prompt, bound or min(HUGE, int(expected * answers)), (least, bound))

    def learn(self, call: Call, key_id: str, route: str, input: int, output: float) -> None:
        """A target has counted the tokens of an answered call."""
        asked = call.asked
        size = asked.text
        if input > 0 and size >= LEAST_PROMPT and not asked.media and not asked.token_ids:
            ratios = self._ratios
            for key, (least, most) in (((key_id, route), OWN_RATIO), (("", route), OTHERS_RATIO)):
                known = ratios.pop(key, 0.0) or ratios.get(("", route), BYTES_PER_TOKEN)
                ratios[key] = known + WEIGHT * (min(most, max(least, size / input)) - known)
            while len(ratios) > MAX_KEYS:
                ratios.popitem(last=False)
        if call.endpoint in SILENT:
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
            outputs[key] = min(OWN_MOST if key[0] else OTHERS_OUTPUT[1], max(1.0, known))
        while len(outputs) > MAX_KEYS:
            outputs.popitem(last=False)
