"""Which route a model name means: exact names first, then the glob that says most."""

from __future__ import annotations

from collections.abc import Iterable


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
