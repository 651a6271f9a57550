"""Which target a call tries next: along its route, along those that stand in for it, and again where it can wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from backends.api import Call
from gateway.config.checks import MOST_TARGETS
from gateway.core.errors import ContextTooLong, GatewayError, NoTarget, QueueFull, QueueTimeout
from gateway.core.types import KeyRecord, Spent
from gateway.routing.attempt import NO_OUTCOME, Attempt, Outcome
from gateway.routing.policies.api import Prompt
from gateway.routing.queue.queue import Waiter
from gateway.routing.route import Route
from gateway.routing.route_attempts import NOTHING_ASKED, RouteAttempts
from gateway.targets.target import Target

MOST_IN_ALL: Final = 10
"""The same for a call that can be held: at most so many times, too, it is sent to a target that is not there."""
_PASSED_BY: Final = (NoTarget, ContextTooLong, QueueFull, QueueTimeout)
"""What a route says that cannot take a call: another may."""

NOTHING_SPENT: Final = Spent()

Headers = Sequence[tuple[bytes, bytes]]


class Attempts:
    """The attempts of one call, each at another target. `close` gives back what they hold, whatever happened."""

    __slots__ = (
        "_call",
        "_chain",
        "_clock",
        "_current",
        "_full",
        "_headers",
        "_held_seconds",
        "_held_until",
        "_key",
        "_last",
        "_lost",
        "_made",
        "_most",
        "_own_refusal",
        "_read",
        "_refusal",
        "_resumes",
        "_route",
        "_strict",
        "_tried",
        "_turns",
        "_unserved",
        "_worked",
    )

    def __init__(
        self,
        chain: Sequence[Route],
        call: Call,
        key: KeyRecord,
        read: Callable[[Route], Prompt],
        headers: Headers,
        clock: Callable[[], float],
    ) -> None:
        """`chain` is the call's route and those that stand in for it; `read` gives the call's prompt as a route sees
        it; `headers` go to the client with each answer; `clock` is monotonic, in seconds."""
        self._chain, self._route, self._call, self._key = chain, chain[0], call, key
        self._read, self._headers, self._clock = read, headers, clock
        self._current: RouteAttempts | None = None
        self._last: Attempt | None = None
        """The attempt that is under way."""
        self._lost: list[Target] = []
        """Targets whose connection has ended in this round: they may be gone."""
        self._made = 0
        """Attempts so far."""
        self._worked: dict[str, dict[int, int]] = {}
        """Of these, those whose target was sent the call, by route and tier."""
        self._unserved = True
        """All have come to nothing, and no target works on any."""
        self._resumes = False
        """The client has a part of the answer: what follows goes on with it, on the same route."""
        self._held_until: float | None = None
        """When it is held no longer, by the clock; None: it never was."""
        self._held_seconds = 0.0
        self._begin()

    async def next(self, outcome: Outcome = NO_OUTCOME) -> Attempt | None:
        """The next attempt, after the last one had this outcome. None: there is no other left to try.

        Waits while all targets are full, and on a route that holds calls, while none is there. Raises `QueueFull`,
        `QueueTimeout`, `ContextTooLong`, and `NoTarget` if there is no target to try at all.
        """
        if self._last is not None:
            if self._current is not None and not outcome.unreached:
                tiers, tier = self._worked.setdefault(self._current.route.name, {}), self._last.target.tier
                tiers[tier] = tiers.get(tier, 0) + 1
            if outcome.lost:
                self._lost.append(self._last.target)
            self._last = None
            self._unserved = self._unserved and (outcome.lost or outcome.away) and not outcome.resumes
            self._resumes = self._resumes or outcome.resumes
        while True:
            refusal: NoTarget | None = None
            try:
                self._last = await self._along_the_chain(outcome)
            except NoTarget as error:
                refusal = error
            if self._last is not None:
                return self._last
            if self._route.hold is None or not await self._waited(refused=refusal is not None):
                if refusal is not None:
                    raise refusal
                return None
            self._begin()

    def close(self, spent: Spent) -> None:
        """The call is over; if that was while its target worked on it, it took `spent`."""
        current, self._current = self._current, None
        if current is not None:
            current.close(spent if self._last is not None or self._resumes else NOTHING_SPENT)

    def _begin(self) -> None:
        """A round along the chain. Targets that never had the call do not count from one round to the next."""
        worked = [times for tiers in self._worked.values() for times in tiers.values()]
        self._most, self._tried = MOST_TARGETS - sum(worked), 0
        # Nobody waits for one route, or tries what seems to be down there, while another can take the call. After
        # that the call waits for the first that is only full, and if none is, takes what there is.
        alone = len(self._chain) == 1
        self._turns = deque([(self._route, True, True)] if alone else [(each, False, False) for each in self._chain])
        self._strict = not alone
        self._refusal: GatewayError | None = None
        self._own_refusal: GatewayError | None = None
        self._full: Route | None = None

    async def _along_the_chain(self, outcome: Outcome) -> Attempt | None:
        while True:
            current = self._current
            if current is None:
                if not self._turns or self._tried >= self._most:
                    break
                route, wait, lenient = self._turns.popleft()
                outcome = NO_OUTCOME
            else:
                route, wait = current.route, current.waits
            try:
                if current is None:
                    current = self._current = RouteAttempts(
                        route,
                        self._call,
                        self._read(route),
                        self._key,
                        self._most - self._tried,
                        asked=dict(self._worked.get(route.name, NOTHING_ASKED)),
                        wait=wait,
                        lenient=lenient,
                    )
                attempt = current.at_once() or await current.next(outcome)
                if attempt is not None:
                    return self._introduced(attempt, route)
            except _PASSED_BY as error:
                self._note(error, route, wait)
            if self._resumes:  # another route has other models; half an answer is charged when the call is over
                return None
            self._leave()
        if not self._tried and self._refusal is not None:
            raise self._refusal
        return None

    def _introduced(self, attempt: Attempt, route: Route) -> Attempt:
        """The attempt, with what its answer tells the client of the way the call has taken."""
        self._tried += 1
        self._made += 1
        if route is not self._route:
            attempt.stand_in(route.name, self._own_refusal)
        attempt.number, attempt.more_headers = self._made, self._headers
        if self._held_seconds:
            attempt.more_headers = [*self._headers, (b"x-trunkline-held", b"%.3f" % self._held_seconds)]
        return attempt

    def _note(self, error: GatewayError, route: Route, wait: bool) -> None:
        """Remember why a route did not take the call."""
        error.headers = {**error.headers, **{name.decode(): value.decode() for name, value in self._headers}}
        if self._own_refusal is None and route is self._route:
            self._own_refusal = error
        if self._refusal is None or wait or isinstance(self._refusal, ContextTooLong):
            self._refusal = error  # that it fits nowhere is said only if it does not fit anywhere
        if self._full is None and isinstance(error, QueueFull | QueueTimeout):
            self._full = route

    def _leave(self) -> None:
        """The route has no other target for the call: what was charged for it came to nothing."""
        if self._current is not None:
            self._current.close(NOTHING_SPENT)
            self._current = None
        if not self._turns and not self._tried and self._strict:
            self._strict = False
            self._turns.extend(
                [(self._full, True, False)] if self._full is not None else [(each, False, True) for each in self._chain]
            )

    async def _waited(self, *, refused: bool) -> bool:
        """Whether the call can be tried again, after it was held if that could help; `refused`: there was no target."""
        if not self._unserved or self._made >= MOST_IN_ALL:
            return False
        # Who has died may listen a moment longer, for nobody: before they get the call again a probe must have found
        # them, else it would be lost once more.
        for target in self._lost:
            target.miss()
        self._lost.clear()
        prompt, began = self._read(self._route), self._clock()
        waits = self._waits_for(prompt)
        if waits is None or (refused and not waits):
            return False
        if waits:
            assert self._route.hold is not None
            self._held_until = began + self._route.hold if self._held_until is None else self._held_until
            waiter = Waiter(self._key.priority, self._key.tenant, prompt.tokens, len(self._call.body.raw))
            await self._route.held.wait(waiter, lambda: self._is_up(prompt), self._held_until - began)
            self._held_seconds += self._clock() - began
        return True

    def _is_up(self, prompt: Prompt) -> bool:
        waits = self._waits_for(prompt)
        if waits is None:  # an order, or another table
            raise NoTarget(f"No target of {self._route.name!r} can take the call now.", retry_after=1)
        return not waits

    def _waits_for(self, prompt: Prompt) -> bool | None:
        """As a chooser's, of the whole chain, but for the tiers that have been asked as often as they may be."""
        each = [route.waits_for(prompt, self._spent(route)) for route in self._chain]
        return None if all(waits is None for waits in each) else False not in each

    def _spent(self, route: Route) -> list[int]:
        worked = self._worked.get(route.name, NOTHING_ASKED)
        return [tier for tier, times in worked.items() if times >= route.attempts]
