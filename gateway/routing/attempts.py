"""One call's way along a route and those that stand in for it, and its waiting where calls are held."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Final

from backends.api import Call
from gateway.core.errors import ContextTooLong, NoTarget, QueueFull, QueueTimeout
from gateway.core.types import KeyRecord, Spent
from gateway.routing.attempt import Placement
from gateway.routing.policies.api import Prompt
from gateway.routing.queue.queue import Waiter
from gateway.routing.route import Route

MOST_ATTEMPTS: Final = 3
"""Targets tried for one call, those of a fallback route included."""
MOST_IN_ALL: Final = 10
"""The same for a call that can be held: at most so many times, too, it is sent to a target that is not there."""


class Way:
    """Where one call has been, and what it has not tried. `chain` is its route and those that stand in for it."""

    def __init__(
        self,
        chain: Sequence[Route],
        call: Call,
        key: KeyRecord,
        read: Callable[[Route], Prompt],
        spent: Callable[[], Spent],
        told: Sequence[tuple[bytes, bytes]],
        clock: Callable[[], float],
    ) -> None:
        """`read` gives the call's prompt as a route sees it; `told` are headers for its client; `clock` is monotonic,
        in seconds."""
        self._chain, self._route, self._call, self._key = chain, chain[0], call, key
        self._read, self._spent, self._told, self._clock = read, spent, list(told), clock
        self._made = 0
        """Placements so far."""
        self._worked = 0
        """Of these, those whose target was sent the call."""
        self._lost = True
        """All have come to nothing, and no target works on any."""
        self._until: float | None = None
        """When it is held no longer, by the clock; None: it never was."""
        self._held_for = 0.0

    def placements(self) -> AsyncGenerator[Placement, None]:
        """Placements to try in turn, as `Routes.placements` says."""
        return self._once() if self._route.hold is None else self._patiently(self._route.hold)

    async def _once(self, tries: int = MOST_ATTEMPTS, most: int = MOST_ATTEMPTS) -> AsyncGenerator[Placement, None]:
        """At most `most` placements, `tries` until an answer has begun, each at another target."""
        # Nobody waits for one route, or tries what seems to be down there, while another can take the call. After
        # that the call waits for the first that is only full, and if none is, takes what there is.
        alone = len(self._chain) == 1
        turns = deque((each, alone, alone) for each in self._chain)
        tried, refused, full, ours, resumes = 0, None, None, None, False
        while turns and tried < tries and not resumes:  # another route has other models
            each, wait, lenient = turns.popleft()
            try:
                attempts = each.placements(
                    self._call,
                    self._read(each),
                    self._key,
                    self._spent,
                    most - tried,
                    tries=tries - tried,
                    wait=wait,
                    lenient=lenient,
                )
                async with aclosing(attempts) as placements:
                    async for placement in placements:
                        tried += 1
                        self._made += 1
                        if each is not self._route:
                            placement.stand_in(each.name, ours)
                        placement.tell(self._made, *self._told, *self._waited())
                        yield placement
                        resumes = resumes or placement.resumes
            except (NoTarget, ContextTooLong, QueueFull, QueueTimeout) as error:
                error.headers = {**error.headers, **{name.decode(): value.decode() for name, value in self._told}}
                ours = error if ours is None and each is self._route else ours
                if refused is None or wait or isinstance(refused, ContextTooLong):
                    refused = error  # that it fits nowhere is said only if it does not fit anywhere
                if full is None and isinstance(error, QueueFull | QueueTimeout):
                    full = each
            if not turns and not tried and not wait and not lenient:
                turns.extend(
                    [(full, True, False)] if full is not None else [(each, False, True) for each in self._chain]
                )
        if not tried and refused is not None:
            raise refused

    async def _patiently(self, hold: float) -> AsyncGenerator[Placement, None]:
        """As `_once`; while no target is there, the call is held for so many seconds in all, and tried again."""
        tries, most, refused = MOST_ATTEMPTS, MOST_ATTEMPTS, None
        while True:
            try:
                async with aclosing(self._once(tries, most)) as placements:
                    async for placement in placements:
                        yield placement
                        self._worked += not placement.unreached
                        self._lost = self._lost and (placement.lost or placement.away) and not placement.resumes
                refused = None
            except NoTarget as error:
                refused = error
            if not await self._could_wait(hold, refused is not None):
                break
            tries = min(MOST_ATTEMPTS, self._route.attempts) - self._worked
            most = MOST_ATTEMPTS - self._worked
        if refused is not None:
            raise refused

    async def _could_wait(self, hold: float, refused: bool) -> bool:
        """Whether the call can be tried again, after it was held if that could help; `refused`: there was no target."""
        if not self._lost or self._made >= MOST_IN_ALL or self._worked >= min(MOST_ATTEMPTS, self._route.attempts):
            return False
        prompt, began = self._read(self._route), self._clock()
        waits = self._waits_for(prompt)
        if waits is None or (refused and not waits):
            return False
        if waits:
            self._until = began + hold if self._until is None else self._until
            waiter = Waiter(self._key.priority, self._key.tenant, prompt.tokens, len(self._call.body.raw))
            await self._route.held.wait(waiter, lambda: self._is_up(prompt), self._until - began)
            self._held_for += self._clock() - began
        return True

    def _waited(self) -> list[tuple[bytes, bytes]]:
        return [(b"x-trunkline-held", b"%.3f" % self._held_for)] if self._held_for else []

    def _is_up(self, prompt: Prompt) -> bool:
        waits = self._waits_for(prompt)
        if waits is None:  # an order, or another table
            raise NoTarget(f"No target of {self._route.name!r} can take the call now.", retry_after=1)
        return not waits

    def _waits_for(self, prompt: Prompt) -> bool | None:
        """As a chooser's, of the whole chain."""
        each = [route.waits_for(prompt) for route in self._chain]
        return None if all(waits is None for waits in each) else False not in each
