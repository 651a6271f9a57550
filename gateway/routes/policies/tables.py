"""The two fixed-size tables of the routing rule: what hashing cannot know of where prompts are cached.

Both age by the token clocks of targets and need no timer. Their memory is taken when they are first used and never
grows: less than a megabyte for a tier of a route.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Final

GROUPS: Final = 4096
EXCEPTIONS: Final = 16384
WAYS: Final = 4
STAMPS: Final = 49152
"""Stamps of all groups together: tiers of more than 12 targets remember fewer groups."""
NEVER: Final = -(1 << 62)
SHARE_HALF_LIFE: Final = 512
"""Grouped calls."""
_GROWTH = 2 ** (1 / SHARE_HALF_LIFE)
_TOO_LARGE = 1e100


class Buckets:
    """Keys of 64 bits in buckets of four: a new key takes the place of the bucket's oldest."""

    def __init__(self, entries: int) -> None:
        self._keys = array("Q", bytes(8 * entries))  # 0 is no key
        self._touched = array("Q", bytes(8 * entries))
        self._buckets = entries // WAYS
        self._touches = 0

    def find(self, key: int) -> int:
        """The key's slot; -1 if it has none."""
        first = key % self._buckets * WAYS
        bucket = self._keys[first : first + WAYS]
        return first + bucket.index(key) if key in bucket else -1

    def claim(self, key: int) -> tuple[int, bool]:
        """The key's slot, touched, and whether it is new there: what the slot's columns hold is another's then."""
        slot = self.find(key)
        new = slot < 0
        if new:
            first = key % self._buckets * WAYS
            slot = min(range(first, first + WAYS), key=self._touched.__getitem__)
            self._keys[slot] = key
        self._touches += 1
        self._touched[slot] = self._touches
        return slot, new

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Keys and their slots, the longest untouched first."""
        taken = [(key, slot) for slot, key in enumerate(self._keys) if key]
        return iter(sorted(taken, key=lambda entry: self._touched[entry[1]]))


class Groups:
    """Where each group of calls was sent, by the target's token clock then, and its share of all grouped calls."""

    def __init__(self, targets: int) -> None:
        self._targets = targets
        self._entries = max(WAYS, min(GROUPS, STAMPS // max(1, targets)) // WAYS * WAYS)
        self._buckets: Buckets | None = None
        self._counts: array[float] = array("d")
        self._stamps: array[int] = array("q")
        self._one, self._sum = 1.0, 0.0  # a later call counts more, instead of all earlier ones less

    def find(self, group: int) -> int:
        """The group's slot; -1 if it is not known."""
        return -1 if self._buckets is None else self._buckets.find(group)

    def share(self, slot: int) -> float:
        """The group's part of the grouped calls of late."""
        return self._counts[slot] / self._sum if self._sum else 0.0

    def stamps(self, slot: int) -> Sequence[int]:
        """For each target its clock when the group was last sent there, or NEVER."""
        return self._stamps[slot * self._targets : (slot + 1) * self._targets].tolist()

    def sent(self, group: int, target: int, clock: int) -> tuple[bool, int]:
        """A call of the group went to `target`, whose clock is `clock` now; whether it was known, the stamp before."""
        slot, new = self._claim(group)
        self._counts[slot] += self._one
        self._sum += self._one
        self._one *= _GROWTH
        if self._one > _TOO_LARGE:
            self._counts = array("d", [count / self._one for count in self._counts])
            self._one, self._sum = 1.0, self._sum / self._one
        at = slot * self._targets + target
        before, self._stamps[at] = self._stamps[at], clock
        return not new, before

    def heard(self, group: int, target: int, clock: int) -> None:
        """Another gateway has sent the group to `target`."""
        slot, _ = self._claim(group)
        self._stamps[slot * self._targets + target] = clock

    def inherit(self, other: Groups, places: Sequence[tuple[int, int]]) -> None:
        """Take over what is known of targets that are in both lists, given as (place there, place here)."""
        self._one, self._sum = other._one, other._sum
        for group, there in other._buckets or ():
            slot, _ = self._claim(group)
            self._counts[slot] = other._counts[there]
            stamps = other.stamps(there)
            for before, place in places:
                self._stamps[slot * self._targets + place] = stamps[before]

    def _claim(self, group: int) -> tuple[int, bool]:
        if self._buckets is None:
            self._buckets = Buckets(self._entries)
            self._counts = array("d", bytes(8 * self._entries))
            self._stamps = array("q", [NEVER]) * (self._entries * self._targets)
        slot, new = self._buckets.claim(group)
        if new:
            self._counts[slot] = 0.0
            self._stamps[slot * self._targets : (slot + 1) * self._targets] = array("q", [NEVER]) * self._targets
        return slot, new


class Exceptions:
    """The conversations whose last call did not go home: where it went, its length, the target's clock then."""

    def __init__(self) -> None:
        self._buckets: Buckets | None = None
        self._targets: array[int] = array("H")
        self._tokens: array[int] = array("q")
        self._stamps: array[int] = array("q")

    def __contains__(self, conversation: int) -> bool:
        return self._buckets is not None and self._buckets.find(conversation) >= 0

    def get(self, conversation: int) -> tuple[int, int, int] | None:
        """Target, tokens, stamp; None if there is none."""
        slot = -1 if self._buckets is None else self._buckets.find(conversation)
        return None if slot < 0 else (self._targets[slot], self._tokens[slot], self._stamps[slot])

    def put(self, conversation: int, target: int, tokens: int, clock: int) -> None:
        """The conversation's last call went to `target`."""
        if self._buckets is None:
            self._buckets = Buckets(EXCEPTIONS)
            self._targets = array("H", bytes(2 * EXCEPTIONS))
            self._tokens = array("q", bytes(8 * EXCEPTIONS))
            self._stamps = array("q", bytes(8 * EXCEPTIONS))
        slot, _ = self._buckets.claim(conversation)
        self._targets[slot], self._tokens[slot], self._stamps[slot] = target, tokens, clock

    def inherit(self, other: Exceptions, places: Sequence[tuple[int, int]]) -> None:
        """Take over what is known of targets that are in both lists, given as (place there, place here)."""
        moved = dict(places)
        for conversation, slot in other._buckets or ():
            if (place := moved.get(other._targets[slot])) is not None:
                self.put(conversation, place, other._tokens[slot], other._stamps[slot])
