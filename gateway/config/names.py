"""Which route a model name means: exact names first, then the glob that says most."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain


def matches(glob: str, name: str) -> bool:
    """Whether `glob` covers `name`; `*` stands for any text, also none, and nothing else is special."""
    first, *rest = glob.split("*")
    if not rest:
        return glob == name
    if not name.startswith(first):
        return False
    at = len(first)
    for part in rest[:-1]:
        found = name.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return len(name) - at >= len(rest[-1]) and name.endswith(rest[-1])


def specificity(glob: str) -> int:
    """How much of a name the glob fixes, in characters."""
    return len(glob) - glob.count("*")


def overlap(one: str, other: str) -> bool:
    """Whether some name matches both globs."""
    # meets[j]: the part of `one` seen so far and other[:j] have a name in common. A star may take any character,
    # so it keeps what it has reached on its own side (from the row above) and on the other (from the left).
    meets = [True]
    for char in other:
        meets.append(meets[-1] and char == "*")
    for mine in one:
        above, meets = meets, [meets[0] and mine == "*"]
        for j, theirs in enumerate(other):
            if mine == "*" or theirs == "*":
                meets.append(above[j + 1] or meets[j])
            else:
                meets.append(above[j] and mine == theirs)
    return meets[-1]


class Globs:
    """Globs and their owners. A new one is compared with those that it could meet, not with each of thousands."""

    def __init__(self) -> None:
        self._shorter: defaultdict[tuple[int, str], list[tuple[str, str]]] = defaultdict(list)
        self._longer: defaultdict[tuple[int, str], list[tuple[str, str]]] = defaultdict(list)

    def add(self, glob: str, owner: str) -> None:
        fixed, start = specificity(glob), glob[: glob.index("*")]
        self._shorter[fixed, start].append((glob, owner))
        for end in range(len(start)):
            self._longer[fixed, start[:end]].append((glob, owner))

    def rivals(self, glob: str) -> Iterator[tuple[str, str]]:
        """The globs that say as much as `glob` and match names that it matches, with their owners."""
        fixed, start, tail = specificity(glob), glob[: glob.index("*")], glob[glob.rindex("*") + 1 :]
        shorter = [self._shorter.get((fixed, start[:end]), ()) for end in range(len(start) + 1)]
        for other, owner in chain(*shorter, self._longer.get((fixed, start), ())):
            ending = other[other.rindex("*") + 1 :]
            if (ending.endswith(tail) or tail.endswith(ending)) and overlap(other, glob):
                yield other, owner


class NameIndex:
    """Model names and aliases of a table, each leading to a route's name."""

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.exact: dict[str, str] = {}
        globs: list[tuple[str, str]] = []
        for name, route in pairs:
            if "*" in name:
                globs.append((name, route))
            else:
                self.exact.setdefault(name, route)
        self.globs = sorted(globs, key=lambda pair: -specificity(pair[0]))

    def find(self, name: str) -> str | None:
        """The route for `name`; None if there is none."""
        if (route := self.exact.get(name)) is not None:
            return route
        return next((route for glob, route in self.globs if matches(glob, name)), None)
