"""The life of a process: its parts are opened in order, and closed in the reverse of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from inspect import isawaitable
from typing import Any, TypeAlias

Step: TypeAlias = Callable[[], Any]
"""Opens or closes a part; what it returns is awaited where it can be."""
Part: TypeAlias = tuple[Step | None, Step]
"""How a part is opened, where that needs something, and how it is closed."""


class Lifetime:
    """Opens parts, each after those that it uses, and closes what was begun to be opened."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts, self._stack = parts, AsyncExitStack()

    async def open(self) -> None:
        """Open all. If one cannot be opened, it and those before it are closed, and its error is raised."""
        try:
            for start, stop in self._parts:
                self._stack.push_async_callback(_take, stop)
                if start is not None:
                    await _take(start)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close all that is open, the last first, also when closing one of them fails; then that error is raised."""
        await self._stack.aclose()


async def _take(step: Step) -> None:
    result = step()
    if isawaitable(result):
        await result
