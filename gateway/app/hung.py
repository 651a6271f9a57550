"""Finds engines that hang, and takes their calls away from them."""

from __future__ import annotations

import asyncio
import logging

from backends.api import Gauges
from gateway.core.clock import Clock
from gateway.metering import Metrics
from gateway.routing import Route
from gateway.routing.filters import BUSY, refusal
from gateway.routing.policies.api import Prompt
from gateway.targets import Target
from gateway.upstream import Forwarder

log = logging.getLogger("trunkline.app")

_ANY_CALL = Prompt(tokens=1)


class HungEngines:
    """Judges targets after each look at their engines.

    A target that hangs is ejected unless it is the last of its route: its calls fail, and are asked for elsewhere or
    end as after a lost connection. It is back when its engine makes progress; as after other ejections one call tries
    it from time to time.
    """

    def __init__(self, forwarder: Forwarder, metrics: Metrics, clock: Clock) -> None:
        self._forwarder, self._metrics, self._clock = forwarder, metrics, clock

    def look(self, target: Target, gauges: Gauges | None, route: Route) -> None:
        """A look is over, in which the engine told `gauges`."""
        waiting, heard_at = self._forwarder.waited_for(target.address)
        before = target.progress.hung
        if target.progress.look(gauges, waiting, heard_at, asyncio.get_running_loop().time()):
            self._hangs(target, route, found=not before)
        elif before and not target.progress.hung:
            log.warning("target %s makes progress again", target.name)
            target.works()
            route.freed()
        self._metrics.target_hung.labels(target.name).set(target.progress.hung)

    def _hangs(self, target: Target, route: Route, *, found: bool) -> None:
        now = self._clock.monotonic()
        last = not any(
            not other.progress.hung and refusal(_ANY_CALL, other, now) in (None, *BUSY) for other in route.targets
        )
        calls = 0
        if not last:
            target.hangs()
            calls = self._forwarder.give_up(target.address)
        if found or calls:
            what = "as the last of its route it is not ejected" if last else f"{calls} calls are taken away from it"
            log.warning("target %s hangs: its engine makes no progress; %s", target.name, what)
