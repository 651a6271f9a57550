"""One route of the table: its tiers of targets, its queues, and what it hands on when another table takes over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

from backends.api import Call
from gateway.answers import Terms
from gateway.config import RouteSpec
from gateway.core.body_rules import BodyRules, ruled
from gateway.routing.attempt import Attempt
from gateway.routing.features import SESSION_HEADERS
from gateway.routing.max_inflight import TargetSlots
from gateway.routing.policies.api import Prompt
from gateway.routing.queue.cold import HeldCalls
from gateway.routing.queue.queue import Queue
from gateway.routing.retry_budget import RetryBudget
from gateway.routing.selection import Chooser
from gateway.routing.tier import Tier
from gateway.targets.load import Load

log = logging.getLogger("trunkline.routing")

LOOK_SECONDS = 0.05
"""How often a queue looks for room that nobody told of: in other gateways, or because a rest is over."""


class Route:
    """One route of the table."""

    def __init__(
        self,
        name: str,
        spec: RouteSpec,
        tiers: Sequence[Tier],
        queue: Queue[Attempt],
        held: HeldCalls,
        slots: TargetSlots,
        clock: Callable[[], float],
    ) -> None:
        """What the table says of the route is in `spec`. A call waits in `queue` while all targets are full, and in
        `held` while none is there, by `clock`."""
        self.name, self.attempts = name, spec.retry.attempts
        self.price, self.fallback_route = spec.price, spec.fallback_route
        self.rules, self.denied = spec.rules, frozenset(spec.body.deny)
        """Fields that bodies of its calls must not have."""
        self.changes_bodies = bool(spec.body.set or spec.body.default or spec.system_prompt)
        self.shadow_target = None if spec.shadow is None else spec.shadow.target.name
        self.public_model = spec.public_model
        self.resumes, self.trust_request_id = spec.resume == "text", spec.trust_request_id
        """A stream whose target dies goes on at another."""
        self.repairs = spec.repair == "retry"
        """Whole answers that are not the JSON that was asked for are asked for once more."""
        self.queue, self._bounds, self.wait = queue, (spec.queue.calls, spec.queue.size), spec.queue_wait
        self.passes, self.lists_loras = spec.passes, spec.loras
        """LoRA adapters of its engines are models of their own."""
        self.session_headers = (*SESSION_HEADERS, *(name.lower().encode() for name in spec.session_headers))
        """By which conversations are known, the best first."""
        self.keepalive = spec.keepalive
        self.assists = self.resumes or self.repairs or self.keepalive is not None
        """Its calls may want more than to be passed on."""
        """Seconds between signs of life for calls that wait for their first output; None: there are none."""
        self.answers = Terms.of(name, spec)
        """By what rules its answers are kept; None: they are not."""
        self.held, self.hold = held, spec.hold
        """Calls that wait for targets that are not there; for how long, None: they do not."""
        self.chooser = Chooser(name, tiers, clock)
        self.tiers, self.targets = self.chooser.tiers, self.chooser.targets
        """The best first."""
        self.endpoints = frozenset[str]()
        """What can be asked of its targets, or of those of a route that stands in for it."""
        self.keyed = any(tier.keyed for tier in tiers)
        """There is a choice for which a prompt's keys matter."""
        self.counts_slots = any(target.max_inflight is not None for target in self.targets)
        """Calls there hold slots, which are counted for all gateways."""
        self.others_waiting = 0
        """Calls in other gateways' queues for this route, as they last told."""
        self.slots, self.clock = slots, clock
        self.retries = RetryBudget()
        self._heir: Route | None = None
        self.is_latest = True
        """There is none of its name in a newer table."""
        self._closed = False
        self._looking: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Calls in its queue."""
        return self.queue.waiting

    def ruled(self, call: Call, key: BodyRules | None) -> Call:
        """The call as the rules for bodies make it, the route's and its key's. Raises `BadRequest`."""
        return ruled(call, self.rules, key)

    @property
    def loras(self) -> set[str]:
        """LoRA adapters that can be asked for, as models."""
        if not self.lists_loras:
            return set()
        return {name for target in self.targets for name in target.facts.loras or ()}

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
        self._heir, self._closed, self.is_latest = heir, True, heir is None
        for target in self.targets:
            if self.freed in target.load.freed:
                target.load.freed.remove(self.freed)
                target.load.changed.remove(target.changed)

    def waits_for(self, prompt: Prompt, barred: Collection[int] = ()) -> bool | None:
        """As the chooser's, of the newest table; a route that is not there any more waits for nothing."""
        latest = self.latest
        return None if latest._closed else latest.chooser.waits_for(prompt, barred)

    def freed(self, load: Load | None = None) -> None:
        """There may be room: at targets with this load, or anywhere."""
        if self.queue.waiting and (load is None or self.chooser.has_room(load)):
            self.queue.freed()

    @property
    def latest(self) -> Route:
        """The route of this name in the newest table."""
        route = self
        while route._heir is not None:
            route = route._heir
        return route

    def look_again(self) -> None:
        """As long as calls wait, look for room now and then."""
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = None
        if self._heir is not None:
            self.latest.look_again()
        elif self.queue.waiting:
            self.queue.freed()
            self.look_again()
