"""Questions on documents: some are asked about often, for a while, and the traffic of a day goes by in minutes."""

from __future__ import annotations

from itertools import accumulate
from math import pi, sin
from random import Random
from typing import Final

from gateway.simulate.calls import Call, key
from gateway.simulate.patterns import PAUSE, arrivals, following, opening

DOCUMENTS: Final = 1500
SIZES: Final = (8.3, 0.6)
"""Of the logarithm of their tokens: mean and deviation; half have more than 4 k."""
POPULARITY: Final = 1.1
"""Of ranks: the nth is asked about 1 / n**1.1 times as often as the first."""
DRIFT: Final = 0.5
"""Ranks that all documents lose in a second; what falls off the end comes back as the news of the day."""
TIDE: Final = 0.6
"""Calls a second rise and fall by this part of their mean."""
MORE: Final = 0.4
"""How likely a question is followed by another one on the same document."""
QUESTION: Final = (40, 400)


def documents(rng: Random, rate: float, seconds: float) -> list[Call]:
    """Retrieval: the document is part of the system prompt. Popular documents fall out of fashion while new ones come,
    and traffic swings between 0.4 and 1.6 times its mean, twice in the whole time."""
    library = [(key(rng), int(min(24_000, rng.lognormvariate(*SIZES)))) for _ in range(DOCUMENTS)]
    shares = list(accumulate(1 / rank**POPULARITY for rank in range(1, DOCUMENTS + 1)))
    ranks = range(DOCUMENTS)
    first = []
    peak = rate * (1 - MORE) * (1 + TIDE)
    for time in arrivals(rng, peak, seconds):
        if rng.random() * (1 + TIDE) > 1 + TIDE * sin(4 * pi * time / seconds):
            continue
        rank = rng.choices(ranks, cum_weights=shares)[0]
        call = opening(rng, time, library[int(rank - DRIFT * time) % DOCUMENTS], rng.randint(*QUESTION))
        first.append(call)
        while rng.random() < MORE:
            later = following(rng, call, rng.expovariate(1 / PAUSE), rng.randint(*QUESTION))
            call.next = (later,)
            call = later
    return first
