"""Counts the frames of our own code that are entered while something runs: a hook on the interpreter, no sampling."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGES = ("gateway", "backends")
INLINED_LATER = frozenset(("<listcomp>", "<dictcomp>", "<setcomp>"))
"""Newer interpreters run these without a frame: counts would depend on the version."""


class Function(NamedTuple):
    """A function of ours."""

    module: str
    name: str


class FrameCount:
    """Frames by function, in the order in which the functions were first entered.

    A coroutine or generator counts each time it is resumed: that is what an interpreter pays for. `foreign` are frames
    of other Python code, the standard library's and that of packages.
    """

    def __init__(self) -> None:
        self.entered: Counter[Function] = Counter()
        self.depths: dict[Function, int] = {}
        self.foreign = 0
        self._known: dict[CodeType, Function | None] = {}
        self._depth = 0

    @classmethod
    def fewest(cls, counts: Sequence[FrameCount]) -> FrameCount:
        """What all of these entered: each function as often as in the count that entered it least."""
        found = cls()
        for function in counts[0].entered:
            if least := min(count.entered[function] for count in counts):
                found.entered[function], found.depths[function] = least, counts[0].depths[function]
        found.foreign = min(count.foreign for count in counts)
        return found

    @property
    def frames(self) -> int:
        """Frames of ours."""
        return self.entered.total()

    @property
    def functions(self) -> int:
        """Different functions of ours."""
        return len(self.entered)

    @property
    def modules(self) -> int:
        """Different modules of ours."""
        return len({function.module for function in self.entered})

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what this thread enters meanwhile."""
        sys.setprofile(self._hook)
        try:
            yield
        finally:
            sys.setprofile(None)

    def _hook(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "return"):
            return
        code = frame.f_code
        try:
            function = self._known[code]
        except KeyError:
            function = self._known[code] = _function(code)
        if event == "return":
            self._depth = max(0, self._depth - (function is not None))
        elif function is None:
            self.foreign += code.co_name not in INLINED_LATER
        else:
            self.entered[function] += 1
            self.depths.setdefault(function, self._depth)
            self._depth += 1


def _function(code: CodeType) -> Function | None:
    """The function of ours that this is the code of."""
    if code.co_name in INLINED_LATER:
        return None
    file = Path(code.co_filename)
    if not file.is_relative_to(ROOT) or (inside := file.relative_to(ROOT)).parts[0] not in PACKAGES:
        return None
    return Function(".".join(inside.with_suffix("").parts).removesuffix(".__init__"), code.co_qualname)
