"""A call that waits for a target with room, and its place in the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from msgspec import Struct

from gateway.core.types import Rank

T = TypeVar("T")


class Waiter(Struct):
    """What the queue knows of a call. One object for a call's whole life: it is charged and corrected by it."""

    priority: Rank
    tenant: str
    tokens: int
    """Of the prompt, estimated: charged to the tenant when the call is placed."""
    size: int
    """Bytes that it holds while it waits."""
    deadline: float | None = None
    """The queue's own: until when it may wait, by the queue's clock."""
    charged: int = 0
    """The queue's own: what its tenant was charged for it so far."""


class Place(Generic[T]):
    """A waiter's place in the queue."""

    __slots__ = ("attempt", "future", "soonest", "timer", "waiter")

    def __init__(self, waiter: Waiter, attempt: Callable[[], T | None], soonest: Callable[[], float | None]) -> None:
        self.waiter, self.attempt, self.soonest = waiter, attempt, soonest
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.timer: asyncio.TimerHandle

    def refuse(self, error: Exception) -> None:
        """End the waiting, unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)
