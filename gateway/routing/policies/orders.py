"""Orders of a tier's places by rendezvous hashing, kept for the groups of calls that come again and again."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from gateway.routing.rendezvous import Rendezvous

KEPT_ORDERS, KEPT_PLACES = 1024, 32768
"""Orders that are kept, and places in all of them together."""
FEW: Final = 16
"""Up to so many places all are gone through at once."""
DENSE: Final = 4
"""Where more than one place in so many is marked, to go through all is quicker than to sort those."""


class Order:
    """All places, nearest first."""

    __slots__ = ("_ranks", "places")

    def __init__(self, places: Sequence[int]) -> None:
        self.places = array("H", places)
        self._ranks = array("H", bytes(2 * len(places)))
        for rank, place in enumerate(places):
            self._ranks[place] = rank

    def among(self, marks: bytes | bytearray) -> Iterable[int]:
        """The places that are marked, nearest first."""
        if len(marks) <= FEW:
            return [place for place in self.places if marks[place]] if marks else ()
        if DENSE * marks.count(1) > len(marks):
            return (place for place in self.places if marks[place])
        return sorted(marked(marks, 0, len(marks)), key=self._ranks.__getitem__)


class Orders:
    """A bounded table of orders, by key."""

    def __init__(self, rendezvous: Rendezvous, count: int) -> None:
        self._rendezvous, self._count = rendezvous, count
        self._orders: dict[int, Order] = {}
        self._most = min(KEPT_ORDERS, max(1, KEPT_PLACES // max(1, count)))

    def of(self, key: int, weights: Sequence[float] | None) -> Order:
        """The key's order. `weights` are those of the last call, unless `clear` was called."""
        order = self._orders.get(key)
        if order is None:
            order = self._orders[key] = Order(self._rendezvous.order(key, range(self._count), weights))
            if len(self._orders) > self._most:
                del self._orders[next(iter(self._orders))]
        return order

    def clear(self) -> None:
        """The weights are others now."""
        self._orders.clear()


def marked(marks: bytes | bytearray, start: int, end: int) -> Iterator[int]:
    """The places from `start` to before `end` that are marked with 1, in rising order."""
    place = marks.find(1, start, end)
    while place >= 0:
        yield place
        place = marks.find(1, place + 1, end)


def marks_of(places: Iterable[int], count: int) -> bytes:
    """A mark for each of `count` places: 1 for these places, else 0."""
    marks = bytearray(count)
    for place in places:
        marks[place] = 1
    return bytes(marks)
