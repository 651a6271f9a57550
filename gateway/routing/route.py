"""A model name's way to a target: tiers, retries within their budget, and the queue while all are full."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial

from backends.api import Call
from gateway.config.limits import Price
from gateway.core.errors import NoTarget
from gateway.core.types import KeyRecord, Spent
from gateway.routing.attempt import Placement
from gateway.routing.max_inflight import Slots
from gateway.routing.policies.api import Prompt
from gateway.routing.queue.cold import Hold
from gateway.routing.queue.queue import Queue, Waiter
from gateway.routing.retry_budget import RetryBudget
from gateway.routing.selection import Chooser
from gateway.routing.tier import Tier
from gateway.targets.load import Load
from gateway.targets.target import Target

log = logging.getLogger("trunkline.routes")

LOOK_SECONDS = 0.05
"""How often a queue looks for room that nobody told of: in other gateways, or because a rest is over."""
WAY_SECONDS = 0.075
"""How long a freed slot is left to other gateways, which look each 0.05 s."""
TAKEN_SECONDS = 0.05
"""How long a target is taken for full whose last slot another gateway had."""


class Route:
    """One route of the table."""

    def __init__(
        self,
        name: str,
        tiers: Sequence[Tier],
        attempts: int,
        queue: Queue[Placement],
        wait: float,
        slots: Slots,
        clock: Callable[[], float],
        *,
        held: Hold,
        bounds: tuple[int, int],
        price: Price | None = None,
        fallback_route: str | None = None,
        resumes: bool = False,
        hold: float | None = None,
    ) -> None:
        """A call waits in `queue`, with `bounds` of calls and bytes, for at most `wait` seconds by `clock`, and in
        `held`, with the same bounds, for at most `hold` seconds."""
        self.name, self.attempts, self.price, self.fallback_route = name, attempts, price, fallback_route
        self.resumes = resumes
        """A stream whose target dies goes on at another."""
        self.queue, self._bounds, self._wait = queue, bounds, wait
        self.held, self.hold = held, hold
        """Calls that wait for targets that are not there; for how long, None: they do not."""
        self.chooser = Chooser(name, tiers, clock)
        self.others_waiting = 0
        """Calls in other gateways' queues for this route, as they last told."""
        self._slots, self.clock = slots, clock
        self._budget = RetryBudget()
        self._heir: Route | None = None
        self._closed = False
        self._looking: asyncio.TimerHandle | None = None

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """The best first."""
        return self.chooser.tiers

    @property
    def targets(self) -> list[Target]:
        """The targets of all tiers, the best first."""
        return self.chooser.targets

    @property
    def waiting(self) -> int:
        """Calls in its queue."""
        return self.queue.waiting

    @property
    def keyed(self) -> bool:
        """There is a choice for which a prompt's keys matter."""
        return any(tier.keyed for tier in self.tiers)

    def measure(self) -> None:
        """Look at the targets' contexts anew."""
        self.chooser.measure()

    def inherit(self, before: Route) -> None:
        """Take over what the route of the table before has learned; a policy that cannot begins anew."""
        for tier, predecessor in zip(self.tiers, before.tiers, strict=False):
            try:
                tier.inherit(predecessor)
            except Exception:  # a policy is anybody's code, and the table is in force already
                log.exception("route %s: what its policy had learned is lost", self.name)
        self.queue.revise(*self._bounds)
        self.held.revise(*self._bounds)

    def open(self) -> None:
        """The route is used from now on."""
        for target in self.targets:
            target.load.freed.append(self.freed)
            target.load.changed.append(target.changed)

    def close(self, heir: Route | None = None) -> None:
        """The route is not used any more. Calls in flight go on; those that wait in the queue go the heir's way."""
        self._heir, self._closed = heir, True
        for target in self.targets:
            if self.freed in target.load.freed:
                target.load.freed.remove(self.freed)
                target.load.changed.remove(target.changed)

    def waits_for(self, prompt: Prompt) -> bool | None:
        """As the chooser's, of the newest table; a route that is not there any more waits for nothing."""
        latest = self._latest
        return None if latest._closed else latest.chooser.waits_for(prompt)

    def freed(self, load: Load | None = None) -> None:
        """There may be room: at targets with this load, or anywhere."""
        if self.queue.waiting and (load is None or self.chooser.has_room(load)):
            self.queue.freed()

    async def placements(
        self,
        call: Call,
        prompt: Prompt,
        key: KeyRecord,
        spent: Callable[[], Spent],
        most: int,
        *,
        tries: int | None = None,
        wait: bool = True,
        lenient: bool = True,
    ) -> AsyncGenerator[Placement, None]:
        """Placements to try in turn, at most `most` of them, each only when the one before has failed; until
        an answer has begun at most `tries`, and never more than the route's `attempts`.

        Each is at another target; if `lenient` and there is nothing better, also at one that seems to be down. After
        one that `resumes` all are of its tier, at targets that can go on with its answer, and waiting is allowed.
        `spent` is asked when the call is over. Raises `QueueFull`, `QueueTimeout` (at once without `wait`),
        `ContextTooLong`, and `NoTarget` if there is not even a first one; ends when there is no other left to try.
        """
        prompt = self.chooser.fitted(prompt)
        waiter = Waiter(key.priority, key.tenant, prompt.tokens, len(call.body.raw))
        seconds, tried = self._wait if wait else 0.0, list[Target]()
        moves = True  # it is nobody's double: its first attempt, or the target it was at does nothing more for it
        begun: Target | None = None
        settled = False
        try:
            with self._budget.call():
                first = min(most if tries is None else tries, self.attempts)
                while len(tried) < (first if begun is None else most) and (moves or self._budget.allows()):
                    with self._budget.attempt(again=not moves):
                        attempt = partial(self._attempt, prompt, tried, lenient, begun)
                        placement = await self._place(
                            call, prompt, waiter, tried, attempt, seconds if moves else None, begun
                        )
                        if placement is None:
                            return
                        tried.append(placement.target)
                        try:
                            yield placement
                        except GeneratorExit:  # the call is over; else there is another attempt
                            settled = self._settle(waiter, spent())
                            raise
                        finally:
                            placement.end()
                        if placement.resumes and begun is None:
                            begun, lenient, seconds = placement.target, True, self._wait
                        moves, waiter.deadline = placement.lost or begun is not None, None
        finally:
            if not settled:  # what was charged came to nothing, or to half an answer
                self._settle(waiter, Spent() if begun is None else spent())

    def _settle(self, waiter: Waiter, used: Spent) -> bool:
        self.queue.spent(waiter, used.input, used.output)
        return True

    async def _place(
        self,
        call: Call,
        prompt: Prompt,
        waiter: Waiter,
        tried: Sequence[Target],
        attempt: Callable[[], Placement | None],
        seconds: float | None,
        begun: Target | None,
    ) -> Placement | None:
        """The next placement, when there is room for it within so many seconds; None: there is none.

        Without `seconds` it does not wait at all: the target has had its turn, and so have those that wait.
        """
        chooser = self._latest.chooser
        barred = chooser.barred(tried, begun)
        if tried and not self._can_retry(prompt, barred, seconds):
            return None
        again, came = bool(tried), self.clock()
        while True:
            soonest = partial(chooser.soonest, prompt, barred)
            placement = await self.queue.place(
                waiter, attempt, Placement.end, seconds or 0.0, again=again, soonest=soonest
            )
            try:
                if await self._has_slot(placement, f"{call.id}.{len(tried)}"):
                    placement.waited = self.clock() - came
                    placement.begin()
                    return placement
            except BaseException:
                placement.end()
                raise
            placement.target.rest(TAKEN_SECONDS, "full")  # before others are told that there is room
            placement.end()
            if seconds is None:
                return None
            again = True

    def _can_retry(self, prompt: Prompt, barred: Sequence[Target], seconds: float | None) -> bool:
        """Whether there is another target to try: with room now, or with `seconds` one that may have it then."""
        chosen = self._latest.chooser.choose(prompt, barred)
        return bool(chosen.usable) or (bool(seconds) and chosen.tier is not None)

    async def _has_slot(self, placement: Placement, name: str) -> bool:
        """Whether the target has a slot left, where its slots are counted."""
        if placement.target.max_inflight is None:
            return True
        slot = await self._slots.take(placement.target, name)
        if slot is not None:
            placement.holds(slot, self._make_way)
        return slot is not None

    def _make_way(self, target: Target) -> None:
        """Our last slot of the target comes free: others, who wait without any, are to have a chance to take it.

        Who frees a slot is the first to know. The reserve that the exchange sets keeps the balance above that.
        """
        if self.others_waiting and target.inflight.own == 1:
            target.rest(WAY_SECONDS, "full")

    def _attempt(
        self, prompt: Prompt, tried: Sequence[Target], lenient: bool, begun: Target | None
    ) -> Placement | None:
        """A placement now; None: all that could take the call are full. Raises `NoTarget`."""
        if self._heir is not None:
            return self._heir._attempt(prompt, tried, lenient, begun)
        chosen = self.chooser.choose(prompt, self.chooser.barred(tried, begun), lenient=lenient)
        if chosen.tier is None:
            raise NoTarget(f"No target of {self.name!r} can take the call now.", retry_after=1)
        if not chosen.usable:
            self._look_again()
            return None
        placement = Placement(chosen.tier, chosen.tier.pick(prompt, chosen.usable, self.clock()), prompt)
        placement.fallback = self.chooser.passed_over(prompt, chosen.tier, tried)
        return placement

    @property
    def _latest(self) -> Route:
        """The route of this name in the newest table."""
        return self if self._heir is None else self._heir._latest

    def _look_again(self) -> None:
        """As long as calls wait, look for room now and then."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = None
        if self._heir is not None:
            self._latest._look_again()
        elif self.queue.waiting:
            self.queue.freed()
            self._look_again()
