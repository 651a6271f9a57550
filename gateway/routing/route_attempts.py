"""One call on one route: one attempt after the other, within the retry budget, waiting while all targets are busy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from backends.api import Call
from gateway.core.errors import NoTarget
from gateway.core.types import KeyRecord, Spent
from gateway.routing.attempt import Attempt, Outcome
from gateway.routing.policies.api import Prompt
from gateway.routing.queue.queue import Waiter
from gateway.routing.route import Route
from gateway.routing.selection import Chooser
from gateway.targets.target import Target

MOST_OF_A_TIER: Final = 3
"""Targets of a tier that go on with one answer, the one that began it included."""
NOTHING_ASKED: Final[Mapping[int, int]] = {}
SLOT_LEFT_SECONDS: Final = 0.075
"""How long a freed slot is left to other gateways, which look each 0.05 s."""
SLOT_TAKEN_SECONDS: Final = 0.05
"""How long a target is taken for full whose last slot another gateway had."""


class RouteAttempts:
    """`next` gives one attempt after the other, `close` gives back what they hold of the route."""

    __slots__ = (
        "_again",
        "_asked",
        "_begun",
        "_call",
        "_lenient",
        "_most",
        "_most_of_a_tier",
        "_prompt",
        "_seconds",
        "_tried",
        "_waiter",
        "route",
        "waits",
    )

    def __init__(
        self,
        route: Route,
        call: Call,
        prompt: Prompt,
        key: KeyRecord,
        most: int,
        *,
        asked: Mapping[int, int] = NOTHING_ASKED,
        wait: bool = True,
        lenient: bool = True,
    ) -> None:
        """At most `most` attempts, and in each tier no more than the route allows; so many had `asked` before, by tier.

        Without `wait` the call does not wait while all targets are full; if `lenient`, and there is nothing better, it
        also goes to a target that seems to be down. Raises `ContextTooLong`.
        """
        self.route, self.waits, self._call, self._lenient = route, wait, call, lenient
        self._prompt = route.chooser.fitted(prompt)
        self._waiter = Waiter(key.priority, key.tenant, prompt.tokens, len(call.body.raw))
        self._seconds = route.wait if wait else 0.0
        self._most, self._asked = most, asked
        self._most_of_a_tier = route.attempts
        self._tried: list[Target] = []
        self._again = False
        """The attempt at hand is a retry in the sense of the budget: the target before may still work on the call."""
        self._begun: Target | None = None
        """The target that began an answer with which others are to go on."""
        route.retries.in_flight += 1

    def at_once(self) -> Attempt | None:
        """The first attempt, if it takes no waiting: the short way of `next`, and that of nearly all calls.

        Raises `NoTarget`.
        """
        route = self.route
        if self._tried or route.queue.waiting or route.counts_slots or not route.is_latest:
            return None
        attempt = self._choose()
        if attempt is not None:
            route.queue.placed(self._waiter, route.clock())
            try:
                attempt.begin()
            except BaseException:
                attempt.end()
                raise
            self._tried.append(attempt.target)
        return attempt

    async def next(self, outcome: Outcome) -> Attempt | None:
        """The next attempt, after the last one had this outcome; None: there is no other target left to try.

        An attempt after one that `resumes` is at a target of the same tier that can go on with its answer. Raises
        `QueueFull`, `QueueTimeout` (at once without `wait`), and `NoTarget`.
        """
        moves = True  # it is nobody's double: its first attempt, or the target it was at does nothing more for it
        if self._tried:
            self._end_retry()
            if outcome.resumes and self._begun is None:
                self._begun, self._lenient, self._seconds = self._tried[-1], True, self.route.wait
            moves, self._waiter.deadline = outcome.lost or self._begun is not None, None
            if len(self._tried) >= self._most:
                return None
            if self._begun is not None and self._times(self._begun.tier) >= MOST_OF_A_TIER:
                return None
            self._again = not moves and self.route.retries.allows()
            self.route.retries.retrying += self._again
            self._most_of_a_tier = self.route.attempts if moves or self._again else 1
        attempt = await self._place(self._seconds if moves else None)
        if attempt is not None:
            if self._again and all(target.tier != attempt.target.tier for target in self._tried):
                self._end_retry()  # another tier is there for what fails in this one
            self._tried.append(attempt.target)
        return attempt

    def close(self, spent: Spent) -> None:
        """No attempt follows; the call took `spent` here, which its tenant is charged for in the queue's order."""
        if self._again:
            self._end_retry()
        self.route.retries.in_flight -= 1
        self.route.queue.spent(self._waiter, spent.input, spent.output)

    def _end_retry(self) -> None:
        self.route.retries.retrying -= self._again
        self._again = False

    async def _place(self, seconds: float | None) -> Attempt | None:
        """The next attempt, when there is room for it within so many seconds; None: there is none.

        Without `seconds` it does not wait at all: the target has had its turn, and so have those that wait.
        """
        route, waiter, again = self.route, self._waiter, bool(self._tried)
        if again and not self._can_retry(seconds):
            return None
        came = route.clock()
        while True:
            attempt = await route.queue.place(
                waiter, self._choose, Attempt.end, seconds or 0.0, again=again, soonest=self._soonest
            )
            try:
                if attempt.target.max_inflight is None or await self._has_slot(attempt):
                    attempt.waited = route.clock() - came
                    attempt.begin()
                    return attempt
            except BaseException:
                attempt.end()
                raise
            attempt.target.rest(SLOT_TAKEN_SECONDS, "full")  # before others are told that there is room
            attempt.end()
            if seconds is None:
                return None
            again = True

    def _can_retry(self, seconds: float | None) -> bool:
        """Whether there is another target to try: with room now, or with `seconds` one that may have it then."""
        chooser = self.route.latest.chooser
        chosen = chooser.choose(self._prompt, self._barred(chooser))
        return bool(chosen.usable) or (bool(seconds) and chosen.tier is not None)

    def _choose(self) -> Attempt | None:
        """An attempt now; None: all that could take the call are full. Raises `NoTarget`."""
        route, prompt, tried = self.route, self._prompt, self._tried
        if not route.is_latest:
            route = route.latest
        chooser = route.chooser
        barred = self._barred(chooser) if tried or self._asked else ()
        chosen = chooser.choose(prompt, barred, lenient=self._lenient)
        tier = chosen.tier
        if tier is None:
            raise NoTarget(f"No target of {route.name!r} can take the call now.", retry_after=1)
        if not chosen.usable:
            route.look_again()
            return None
        attempt = Attempt(tier, tier.pick(prompt, chosen.usable, route.clock()), prompt)
        if tier is not chooser.tiers[0]:
            attempt.fallback = chooser.passed_over(prompt, tier, tried)
        return attempt

    def _soonest(self) -> float | None:
        chooser = self.route.latest.chooser
        return chooser.soonest(self._prompt, self._barred(chooser))

    def _barred(self, chooser: Chooser) -> Sequence[Target]:
        """As the chooser's."""
        tiers = {target.tier for target in self._tried} | self._asked.keys()
        spent = [tier for tier in tiers if self._times(tier) >= self._most_of_a_tier]
        return chooser.barred(self._tried, spent, self._begun)

    def _times(self, tier: int) -> int:
        """How many targets of a tier have been asked."""
        return self._asked.get(tier, 0) + sum(target.tier == tier for target in self._tried)

    async def _has_slot(self, attempt: Attempt) -> bool:
        """Whether the target has a slot left, counted for all gateways."""
        slot = await self.route.slots.take(attempt.target, f"{self._call.id}.{len(self._tried)}")
        if slot is not None:
            attempt.holds(slot, self._leave_slot)
        return slot is not None

    def _leave_slot(self, target: Target) -> None:
        """Our last slot of the target comes free: others, who wait without any, are to have a chance to take it.

        Who frees a slot is the first to know. The reserve that gossip sets keeps the balance above that.
        """
        if self.route.others_waiting and target.inflight.own == 1:
            target.rest(SLOT_LEFT_SECONDS, "full")
