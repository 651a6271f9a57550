"""Rendezvous hashing: which target is home for a key, the same in every gateway, with nothing to remember.

Each target draws a number from the key and its own name, and the highest is first (Thaler and Ravishankar, 1998). When
a target comes or goes only its own keys move. With weights the draw is -weight / ln(u) for the uniform number u in
(0, 1) (Schindelhauer and Schomaker, 2005).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from math import log

_LANE = 0xFFFFFFFF
_STEP = 1 / (1 << 32)


class Rendezvous:
    """The orders of a fixed list of names.

    All names are hashed at once, each in a lane of 64 bits of one large integer whose upper half catches the products:
    a loop in Python over the names would take ten times as long.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._size = 8 * len(names)
        self._ones = int.from_bytes(b"\x01\0\0\0\0\0\0\0" * len(names), "little")
        self._mask = self._ones * _LANE
        seeds = (blake2b(name.encode(), digest_size=4).digest() + b"\0\0\0\0" for name in names)
        self._seeds = int.from_bytes(b"".join(seeds), "little")

    def draws(self, key: int, weights: Sequence[float] | None = None) -> Sequence[float]:
        """What each name draws for a key of 64 bits; the highest is its home. Equal weights need not be given.

        The hash is the finalizer of MurmurHash3 (Appleby, 2011), a bijection that mixes well, in every lane.
        """
        mask = self._mask
        lanes = self._seeds ^ self._ones * ((key ^ key >> 32) & _LANE)
        lanes ^= lanes >> 16 & mask
        lanes = lanes * 0x85EBCA6B & mask
        lanes ^= lanes >> 13 & mask
        lanes = lanes * 0xC2B2AE35 & mask
        lanes ^= lanes >> 16 & mask
        draws = memoryview(lanes.to_bytes(self._size, "little")).cast("Q").tolist()
        if weights is None:
            return draws
        return [-weight / log((draw + 0.5) * _STEP) for draw, weight in zip(draws, weights, strict=True)]

    def order(self, key: int, places: Iterable[int], weights: Sequence[float] | None = None) -> list[int]:
        """`places` in the list of names, the key's home first. `weights` are those of all names."""
        return sorted(places, key=self.draws(key, weights).__getitem__, reverse=True)
