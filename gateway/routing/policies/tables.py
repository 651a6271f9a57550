"""The two fixed-size tables of the routing rule: what hashing cannot know of where prompts are cached.

Both age by the token clocks of targets and need no timer. They begin small and grow to a bound: less than a megabyte
for a tier of a route.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Final

GROUPS: Final = 4096
EXCEPTIONS: Final = 16384
FIRST: Final = 256
"""Slots to begin with. All sizes are powers of two."""
WAYS: Final = 4
STAMPS: Final = 49152
"""Stamps of all groups together: tiers of more than 12 targets remember fewer groups."""
NEVER: Final = -(1 << 62)
GONE: Final = 0xFFFF
"""A target that is no longer in the table."""
SHARE_HALF_LIFE: Final = 512
"""Grouped calls."""
PRIOR: Final = 128
"""Grouped calls of unknown groups that are taken to have come before the first: one call is no popularity."""
_GROWTH = 2 ** (1 / SHARE_HALF_LIFE)
_TOO_LARGE = 1e100


class Buckets:
    """Keys of 64 bits in buckets of four; at its largest, a new key takes the place of its bucket's oldest.

    The table doubles when a bucket is full by being put behind itself: each key is then in its right bucket and in one
    where nobody looks for it, and where it is overwritten in time. Columns that belong to the slots double alike.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.entries = entries = min(most, FIRST)
        """Slots."""
        self._keys = array("Q", bytes(8 * entries))  # 0 is no key
        self._touched = array("Q", bytes(8 * entries))
        self._touches = 0

    def copy(self) -> Buckets:
        """The same keys in the same slots."""
        made = Buckets(self._most)
        made.entries, made._touches = self.entries, self._touches
        made._keys, made._touched = self._keys[:], self._touched[:]
        return made

    def find(self, key: int) -> int:
        """The key's slot; -1 if it has none."""
        first = key * WAYS % self.entries
        bucket = self._keys[first : first + WAYS]
        return first + bucket.index(key) if key in bucket else -1

    def claim(self, key: int) -> tuple[int, bool]:
        """The key's slot, touched, and whether it is new there: what the slot's columns hold is another's then."""
        slot = self.find(key)
        new = slot < 0
        if new:
            slot = self._oldest(key)
            while self._keys[slot] and self.entries * 2 <= self._most:
                self._keys, self._touched = self._keys * 2, self._touched * 2
                self.entries *= 2
                slot = self._oldest(key)
            self._keys[slot] = key
        self._touches += 1
        self._touched[slot] = self._touches
        return slot, new

    def copies(self) -> list[int]:
        """The slots with keys that nobody looks for there."""
        entries = self.entries
        return [slot for slot, key in enumerate(self._keys) if key * WAYS % entries != slot - slot % WAYS]

    def _oldest(self, key: int) -> int:
        """The slot in the key's bucket that is free, or holds what nobody looks for, or was not touched for longest."""
        first = key * WAYS % self.entries
        for slot in range(first, first + WAYS):
            if self._keys[slot] * WAYS % self.entries != first:
                self._keys[slot] = 0
                return slot
        return min(range(first, first + WAYS), key=self._touched.__getitem__)


class Groups:
    """Where each group of calls was sent, by the target's token clock then, and its share of all grouped calls."""

    def __init__(self, targets: int) -> None:
        self._targets = targets
        self._most = GROUPS
        while self._most * targets > STAMPS and self._most > WAYS:
            self._most //= 2
        self._buckets: Buckets | None = None
        self._counts: array[float] = array("d")
        self._tokens: array[int] = array("q")
        self._last: array[int] = array("H")
        self._stamps: array[int] = array("q")
        self._sent = bytearray()
        self._one, self._sum = 1.0, 0.0  # a later call counts more, instead of all earlier ones less

    def find(self, group: int) -> int:
        """The group's slot; -1 if it is not known."""
        return -1 if self._buckets is None else self._buckets.find(group)

    def share(self, slot: int) -> float:
        """The group's part of the grouped calls of late."""
        return self._counts[slot] / (self._sum + PRIOR * self._one)

    def calls(self, slot: int) -> float:
        """The group's calls of late."""
        return self._counts[slot] / self._one

    def stamps(self, slot: int) -> Sequence[int]:
        """For each target its clock when the group was last sent there, or NEVER."""
        return self._stamps[slot * self._targets : (slot + 1) * self._targets]

    def known(self, slot: int) -> tuple[Sequence[int], bytearray, float, float]:
        """Its stamps, for each target 1 if it was ever sent there, its share and calls: what each call asks for."""
        start, end, count = slot * self._targets, (slot + 1) * self._targets, self._counts[slot]
        part = count / (self._sum + PRIOR * self._one)
        return self._stamps[start:end], self._sent[start:end], part, count / self._one

    def residents(self, since: Sequence[int]) -> list[int]:
        """For each target the prefix tokens of all groups whose last call went there, at `since`, by its clock, or
        later."""
        found, stamps, targets = [0] * self._targets, self._stamps, self._targets
        for slot, (tokens, last) in enumerate(zip(self._tokens, self._last, strict=True)):
            if tokens and last != GONE and stamps[slot * targets + last] >= since[last]:
                found[last] += tokens
        return found

    def sent(self, group: int, target: int, clock: int, tokens: int) -> tuple[bool, int]:
        """A call of the group, whose prefix has so many tokens, went to `target`, whose clock is `clock` now; whether
        the group was known, and the stamp before."""
        slot, new = self._claim(group)
        self._tokens[slot], self._last[slot] = tokens, target
        self._counts[slot] += self._one
        self._sum += self._one
        self._one *= _GROWTH
        if self._one > _TOO_LARGE:
            self._counts = array("d", [count / self._one for count in self._counts])
            self._one, self._sum = 1.0, self._sum / self._one
        at = slot * self._targets + target
        before, self._stamps[at], self._sent[at] = self._stamps[at], clock, 1
        return not new, before

    def heard(self, group: int, target: int, clock: int, tokens: int) -> None:
        """Another gateway has sent the group to `target`."""
        slot, _ = self._claim(group)
        self._tokens[slot], self._last[slot] = tokens, target
        at = slot * self._targets + target
        self._stamps[at], self._sent[at] = clock, 1

    def inherit(self, other: Groups, places: Sequence[tuple[int, int]]) -> None:
        """Take over what is known of targets that are in both lists, given as (place there, place here).

        Where fewer groups can be remembered than were, all are forgotten.
        """
        if other._buckets is None or other._buckets.entries > self._most:
            return
        self._buckets, self._counts, self._tokens = other._buckets.copy(), other._counts[:], other._tokens[:]
        moved = dict(places)
        self._last = array("H", [moved.get(target, GONE) for target in other._last])
        self._one, self._sum = other._one, other._sum
        self._stamps = array("q", [NEVER]) * (self._buckets.entries * self._targets)
        self._sent = bytearray(self._buckets.entries * self._targets)
        for before, place in places:
            self._stamps[place :: self._targets] = other._stamps[before :: other._targets]
            self._sent[place :: self._targets] = other._sent[before :: other._targets]

    def _claim(self, group: int) -> tuple[int, bool]:
        if self._buckets is None:
            self._buckets = Buckets(self._most)
            self._counts = array("d", bytes(8 * self._buckets.entries))
            self._tokens = array("q", bytes(8 * self._buckets.entries))
            self._last = array("H", bytes(2 * self._buckets.entries))
            self._stamps = array("q", [NEVER]) * (self._buckets.entries * self._targets)
            self._sent = bytearray(self._buckets.entries * self._targets)
        slot, new = self._buckets.claim(group)
        if len(self._counts) < self._buckets.entries:
            while len(self._counts) < self._buckets.entries:
                self._counts, self._tokens, self._stamps = self._counts * 2, self._tokens * 2, self._stamps * 2
                self._last, self._sent = self._last * 2, self._sent * 2
            for copy in self._buckets.copies():
                self._tokens[copy] = 0  # it is counted where it is found
        if new:
            self._counts[slot] = 0.0
            self._stamps[slot * self._targets : (slot + 1) * self._targets] = array("q", [NEVER]) * self._targets
            self._sent[slot * self._targets : (slot + 1) * self._targets] = bytes(self._targets)
        return slot, new


class Exceptions:
    """The conversations whose last call did not go home: where it went, its length, the target's clock then."""

    def __init__(self) -> None:
        self._buckets: Buckets | None = None
        self._targets: array[int] = array("H")
        self._tokens: array[int] = array("q")
        self._stamps: array[int] = array("q")

    def get(self, conversation: int) -> tuple[int, int, int] | None:
        """Target, tokens, stamp; None if there is none."""
        slot = -1 if self._buckets is None else self._buckets.find(conversation)
        if slot < 0 or self._targets[slot] == GONE:
            return None
        return self._targets[slot], self._tokens[slot], self._stamps[slot]

    def put(self, conversation: int, target: int, tokens: int, clock: int) -> None:
        """The conversation's last call went to `target`."""
        if self._buckets is None:
            self._buckets = Buckets(EXCEPTIONS)
            self._targets = array("H", bytes(2 * self._buckets.entries))
            self._tokens = array("q", bytes(8 * self._buckets.entries))
            self._stamps = array("q", bytes(8 * self._buckets.entries))
        slot, _ = self._buckets.claim(conversation)
        while len(self._targets) < self._buckets.entries:
            self._targets, self._tokens, self._stamps = self._targets * 2, self._tokens * 2, self._stamps * 2
        self._targets[slot], self._tokens[slot], self._stamps[slot] = target, tokens, clock

    def inherit(self, other: Exceptions, places: Sequence[tuple[int, int]]) -> None:
        """Take over what is known of targets that are in both lists, given as (place there, place here)."""
        if other._buckets is None:
            return
        self._buckets, self._tokens, self._stamps = other._buckets.copy(), other._tokens[:], other._stamps[:]
        moved = dict(places)
        self._targets = array("H", [moved.get(target, GONE) for target in other._targets])
