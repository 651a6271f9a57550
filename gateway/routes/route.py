"""A model name's way to a target: tiers, retries within their budget, and the queue while all are full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from msgspec import Struct, structs

from backends.api import Call
from gateway.config.limits import Price
from gateway.core.errors import ContextTooLong, NoTarget
from gateway.core.types import KeyRecord, Spent
from gateway.routes.explain import Candidacy
from gateway.routes.filters import LENIENCES, NOTHING, Filter, refusal
from gateway.routes.load import Load
from gateway.routes.placement import Placement
from gateway.routes.policies.api import Prompt, Score
from gateway.routes.prompt import SURE
from gateway.routes.queue import Queue, Waiter
from gateway.routes.slots import Slots
from gateway.routes.target import UNBOUNDED, Target
from gateway.routes.tier import Outlook, Tier

RETRY_SHARE, RETRY_FLOOR = 0.2, 3
"""Retries in flight may be a fifth of all calls in flight, but three are always allowed."""
LOOK_SECONDS = 0.05
"""How often a queue looks for room that nobody told of: in other gateways, or because a rest is over."""
WAY_SECONDS = 0.075
"""How long a freed slot is left to other gateways, which look each 0.05 s."""
_ANY_CALL = Prompt(tokens=1)
TAKEN_SECONDS = 0.05
"""How long a target is taken for full whose last slot another gateway had."""


class RetryBudget:
    """Keeps retries a small part of the load, so that an outage is not answered with twice the calls."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.retrying = 0

    def allows(self) -> bool:
        return self.retrying < max(RETRY_FLOOR, RETRY_SHARE * self.in_flight)

    @contextmanager
    def call(self) -> Iterator[None]:
        """One call in flight."""
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    @contextmanager
    def retry(self, counts: bool) -> Iterator[None]:
        """One attempt; it is a retry if it `counts`."""
        self.retrying += counts
        try:
            yield
        finally:
            self.retrying -= counts


class _Chosen(Struct, frozen=True):
    """The best tier with room and its usable places; without places all are only busy, without a tier none can."""

    tier: Tier | None = None
    usable: Sequence[int] = ()
    overlooked: tuple[Filter, ...] = NOTHING


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
        bounds: tuple[int, int],
        price: Price | None = None,
        fallback_route: str | None = None,
    ) -> None:
        """A call waits in `queue`, with `bounds` of calls and bytes, for at most `wait` seconds by `clock`."""
        self._bounds = bounds
        self.name, self.tiers, self.attempts, self.price = name, tuple(tiers), attempts, price
        self.fallback_route, self._queue, self._wait = fallback_route, queue, wait
        self._slots, self._clock = slots, clock
        self.others_waiting = 0
        """Calls in other gateways' queues for this route, as they last told."""
        self._heir: Route | None = None
        self._budget = RetryBudget()
        self._looking: asyncio.TimerHandle | None = None
        self._longest = self._longest_prompt = UNBOUNDED
        self.measure()

    def inherit(self, before: Route) -> None:
        """Take over what the route of the table before has learned."""
        for tier, predecessor in zip(self.tiers, before.tiers, strict=False):
            tier.inherit(predecessor)
        self._queue.revise(*self._bounds)

    def open(self) -> None:
        """The route is used from now on."""
        for target in self.targets:
            target.load.freed.append(self.freed)
            target.load.stirred.append(target.stirred)

    def measure(self) -> None:
        """Look at the targets' contexts anew."""
        for tier in self.tiers:
            tier.measure()
        self._longest = max((target.context for target in self.targets), default=UNBOUNDED)
        self._longest_prompt = max((target.prompt_limit for target in self.targets), default=UNBOUNDED)

    @property
    def targets(self) -> list[Target]:
        """The targets of all tiers, the best first."""
        return [target for tier in self.tiers for target in tier.targets]

    @property
    def waiting(self) -> int:
        """Calls in its queue."""
        return self._queue.waiting

    @property
    def queue(self) -> Queue[Placement]:
        """Where its calls wait; the same for the route of this name in every table."""
        return self._queue

    @property
    def keyed(self) -> bool:
        """There is a choice for which a prompt's keys matter."""
        return any(tier.keyed for tier in self.tiers)

    async def placements(
        self,
        call: Call,
        prompt: Prompt,
        key: KeyRecord,
        spent: Callable[[], Spent],
        most: int,
        *,
        wait: bool = True,
        lenient: bool = True,
    ) -> AsyncGenerator[Placement, None]:
        """Placements to try in turn, at most `most` of them, each only when the one before has failed.

        Each is at another target; if `lenient` and there is nothing better, also at one that seems to be down.
        `spent` is asked when the call is over. Raises `QueueFull`, `QueueTimeout` (at once
        without `wait`), `ContextTooLong`, and `NoTarget` if there is not even a first one; ends when there is no other
        left to try.
        """
        prompt = self._fitted(prompt)
        waiter = Waiter(key.priority, key.tenant, prompt.tokens, len(call.body.raw))
        tried: list[Target] = []
        try:
            with self._budget.call():
                while len(tried) < min(most, self.attempts) and (not tried or self._budget.allows()):
                    with self._budget.retry(bool(tried)):
                        placement = await self._place(call, prompt, waiter, tried, self._wait if wait else 0.0, lenient)
                        if placement is None:
                            return
                        tried.append(placement.target)
                        try:
                            yield placement
                        except GeneratorExit:  # the call is over; else there is another attempt
                            used = spent()
                            self._queue.spent(waiter, used.input, used.output)
                            raise
                        finally:
                            placement.end()
        finally:
            self._queue.spent(waiter, 0, 0)  # what was charged, and came to nothing

    def explain(self, prompt: Prompt, *, decided: bool = False, lenient: bool = True) -> list[Candidacy]:
        """What would be picked now, and why; nothing if it is `decided` elsewhere. Changes nothing that matters."""
        now, found = self._clock(), []
        with suppress(ContextTooLong):
            prompt = self._fitted(prompt)
        chosen = self._choose(prompt, (), lenient)
        for number, tier in enumerate(self.tiers):
            outlooks = tier.outlooks(prompt, now, chosen.overlooked if tier is chosen.tier else NOTHING)
            scores = [outlook.score for outlook in outlooks if outlook.score is not None]
            picked = bool(scores) and tier is chosen.tier and not decided
            best = min(scores, key=lambda score: score.cost) if picked else None
            found += [_candidacy(self.name, number, tier, outlook, now, best) for outlook in outlooks]
        return found

    def freed(self, load: Load | None = None) -> None:
        """There may be room: at targets with this load, or anywhere."""
        if not self._queue.waiting:
            return
        now = self._clock()
        if load is None or any(
            refusal(_ANY_CALL, target, now) is None for target in self.targets if target.load is load
        ):
            self._queue.freed()

    def close(self, heir: Route | None = None) -> None:
        """The route is not used any more. Calls in flight go on; those that wait in the queue go the heir's way."""
        self._heir = heir
        for target in self.targets:
            if self.freed in target.load.freed:
                target.load.freed.remove(self.freed)
                target.load.stirred.remove(target.stirred)

    async def _place(
        self, call: Call, prompt: Prompt, waiter: Waiter, tried: Sequence[Target], wait: float, lenient: bool
    ) -> Placement | None:
        """The next placement, when there is room for it; None: there is no target left to try."""
        if tried and not self._choose(prompt, tried, lenient).usable:
            return None  # a retry does not wait: its client has waited already
        again, came = bool(tried), self._clock()
        while True:
            placement = await self._queue.place(
                waiter,
                partial(self._attempt, prompt, tried, lenient),
                Placement.end,
                wait,
                again=again,
                soonest=partial(self._soonest, prompt, tried),
            )
            try:
                if await self._leased(placement, f"{call.id}.{len(tried)}"):
                    placement.waited = self._clock() - came
                    placement.begin()
                    return placement
            except BaseException:
                placement.end()
                raise
            placement.target.rest(TAKEN_SECONDS, "full")  # before others are told that there is room
            placement.end()
            if tried:
                return None
            again = True

    async def _leased(self, placement: Placement, name: str) -> bool:
        """Whether the target has a slot left, where its slots are counted."""
        if placement.target.max_inflight is None:
            return True
        slot = await self._slots.take(placement.target, name)
        if slot is not None:
            placement.leased(slot, self._make_way)
        return slot is not None

    def _make_way(self, target: Target) -> None:
        """A slot of the target comes free: leave it to other gateways if more of its calls are ours than should be.

        Who frees a slot is the first to know; without this a gateway with a queue would keep its slots for ever.
        """
        waiting, inflight = self._queue.waiting, target.inflight
        if self.others_waiting and inflight.own * (waiting + self.others_waiting) > waiting * inflight.all:
            target.rest(WAY_SECONDS, "full")

    def _attempt(self, prompt: Prompt, tried: Sequence[Target], lenient: bool = True) -> Placement | None:
        """A placement now; None: all that could take the call are full. Raises `NoTarget`."""
        if self._heir is not None:
            return self._heir._attempt(prompt, tried, lenient)
        chosen = self._choose(prompt, tried, lenient)
        if chosen.tier is None:
            raise NoTarget(f"No target of {self.name!r} can take the call now.", retry_after=1)
        if not chosen.usable:
            self._look_again()
            return None
        placement = Placement(chosen.tier, chosen.tier.pick(prompt, chosen.usable, self._clock()), prompt)
        if chosen.tier is not self.tiers[0]:
            placement.fallback = self._passed_over(prompt, chosen.tier, tried)
        return placement

    def _choose(self, prompt: Prompt, tried: Sequence[Target], lenient: bool = True) -> _Chosen:
        """The best tier with room."""
        now = self._clock()
        for overlooked in LENIENCES[: (2 if tried else 3) if lenient else 1]:
            for tier in self.tiers:
                if usable := tier.usable(prompt, now, tried, overlooked):
                    return _Chosen(tier, usable, overlooked)
            for tier in self.tiers:
                if tier.busy(prompt, now, tried, overlooked):
                    return _Chosen(tier)
        return _Chosen()

    def _passed_over(self, prompt: Prompt, chosen: Tier, tried: Sequence[Target]) -> str:
        """Why the tiers before `chosen` were not: what most of their targets lack."""
        now = self._clock()
        whys = [
            "failed" if target in tried else refusal(prompt, target, now) or "canary"
            for tier in self.tiers[: self.tiers.index(chosen)]
            for target in tier.targets
        ]
        return max(whys, key=whys.count)

    def _fitted(self, prompt: Prompt) -> Prompt:
        """The prompt; one that seems to fit nowhere, but may, as one for the targets with the largest context.

        Raises `ContextTooLong` for one that cannot, whatever its text is.
        """
        longest, alone = self._longest, self._longest_prompt
        if prompt.context <= longest and prompt.alone <= alone:
            return prompt
        if prompt.least_context <= longest and prompt.alone // SURE <= alone:
            return structs.replace(prompt, context=min(prompt.context, longest), alone=min(prompt.alone, alone))
        raise ContextTooLong(
            f"The prompt would take about {prompt.alone} tokens, with its answer {prompt.context}; "
            f"the largest context that {self.name!r} has is {min(longest, alone)} tokens.",
            param="messages" if prompt.alone > min(longest, alone) else "max_tokens",
        )

    def _soonest(self, prompt: Prompt, tried: Sequence[Target]) -> float | None:
        """Seconds until any target can have room, if that is known: all have asked for a pause."""
        now = self._clock()
        left = []
        for target in self.targets:
            if target in tried or (why := refusal(prompt, target, now)) is None:
                continue
            if why == "full":
                return None
            if why == "resting":
                left.append(target.resting_until - now)
        return min(left, default=None)

    def _look_again(self) -> None:
        """As long as calls wait, look for room now and then."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = None
        if self._queue.waiting:
            self._queue.freed()
            self._look_again()


def _candidacy(route: str, number: int, tier: Tier, outlook: Outlook, now: float, best: Score | None) -> Candidacy:
    target, score = outlook.target, outlook.score
    load = target.load
    return Candidacy(
        route,
        number,
        target.name,
        tier.policy_name,
        outlook.refused,
        None if score is None else round(score.cost, 3),
        0 if score is None else score.cached,
        "" if score is None else score.reason,
        score is not None and score is best,
        target.weight,
        load.running + load.others_running,
        load.waiting + load.others_waiting,
        int(load.pending(now)),
    )
