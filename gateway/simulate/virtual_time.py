"""An event loop whose time passes only when nothing else can happen: waiting costs nothing and is exact."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

R = TypeVar("R")


class VirtualLoop(asyncio.SelectorEventLoop):
    """For code that waits for timers and for itself, not for sockets. A wait that can never end raises."""

    def __init__(self) -> None:
        super().__init__()
        self._passed = 0.0
        selector: Any = self._selector  # type: ignore[attr-defined]
        select = selector.select

        def jump(timeout: float | None = None) -> Any:
            if timeout is None:
                raise RuntimeError("everything waits, and no timer is set: a wakeup was lost")
            self._passed += timeout
            return select(0)

        selector.select = jump

    def time(self) -> float:
        return self._passed


def run(main: Coroutine[Any, Any, R]) -> R:
    """Run `main` in a loop of its own, which begins at 0 s."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
