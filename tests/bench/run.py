"""One run of the bench: the gateways that can be had, measured in turn, round after round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ParamSpec

from calls import Wrong
from figures import LOCAL, OWN, RELAY, Figures
from gateways import Bed, Gateway
from measure import LOADS, Load, Measure
from open_loop import Broken
from processes import NotReady
from wrk import LoadFailed

GROWTH, GROWTH_PASSES = (1, 8, 64, 256), 2
MEMORY_SECONDS = 60.0
TTFT_CALLS = 150
SMALL = ("whole", "stream")
NEEDED = ("nginx", RELAY, OWN, LOCAL)
"""Their absence is a fault, that of other peers is not."""
FAULTS = (NotReady, Wrong, LoadFailed, Broken, OSError, ImportError)
Given = ParamSpec("Given")


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often is measured, and what."""

    rounds: int
    seconds: float
    streams: int
    loads: tuple[Load, ...]
    gateways: tuple[str, ...] | None
    """None: all that can be had."""
    everything: bool
    """Time to the first token, streams held, growth, memory, parts and frames too."""


FULL = Plan(3, 3.0, 400, LOADS, None, everything=True)
QUICK = Plan(3, 1.5, 200, tuple(load for load in LOADS if load.name != "2m"), (RELAY, OWN), everything=False)


class Run:
    """Starts gateways, measures them, and goes on without what fails; `faults` and `left_out` say what that was."""

    def __init__(self, bed: Bed, plan: Plan) -> None:
        self._bed, self._plan = bed, plan
        self.figures = Figures()
        self.faults: list[str] = []
        self.left_out: list[str] = []
        self._measure = Measure(bed, self.figures, plan.seconds)
        self._gateways: list[Gateway] = []

    def all(self) -> None:
        """Measure everything of the plan."""
        self._start()
        for number in range(1, self._plan.rounds + 1):
            self._measure.note(f"round {number} of {self._plan.rounds}")
            self._round()
        if self._plan.everything:
            self._once()

    def _start(self) -> None:
        bed = self._bed
        starts: dict[str, Callable[[], Gateway]] = {
            "nginx": bed.nginx,
            RELAY: bed.relay,
            "vllm-router": bed.vllm_router,
            "sglang-router": bed.sglang_router,
            "litellm": bed.litellm,
            OWN: bed.trunkline,
            LOCAL: bed.local,
        }
        for name, start in starts.items():
            if self._plan.gateways is not None and name not in self._plan.gateways:
                continue
            self._measure.note(f"{name}: starting")
            try:
                gateway = start()
                self._measure.check(gateway)
            except (NotReady, Wrong) as error:
                (self.faults if name in NEEDED else self.left_out).append(f"{name}: {error}")
                self._measure.note(f"{name} is left out: {error}")
                continue
            self._gateways.append(gateway)
            self._measure.idle(gateway)

    def _round(self) -> None:
        """Every load in turn, each on every gateway; paced streams after the small calls, before large bodies."""
        fast = [gateway for gateway in self._gateways if gateway.name != "litellm"]
        for load in (load for load in self._plan.loads if load.name in SMALL):
            for gateway in self._gateways:
                self._try(gateway, self._measure.load, gateway, load)
        for gateway in fast:
            self._try(gateway, self._measure.paced, gateway, self._plan.streams)
        for load in (load for load in self._plan.loads if load.name not in SMALL):
            for gateway in fast:
                self._try(gateway, self._measure.load, gateway, load)
        if not self._plan.everything:
            return
        for gateway in self._gateways:
            self._try(gateway, self._measure.first_token, gateway, TTFT_CALLS)
            if gateway.free:
                self._try(gateway, self._measure.load, replace(gateway, secret=gateway.free), LOADS[0], "unlimited")

    def _once(self) -> None:
        """What needs no rounds: streams held, memory, growth, parts."""
        for gateway in self._gateways:
            if gateway.name != "litellm":
                self._try(gateway, self._measure.most_streams, gateway)
        ours = next((gateway for gateway in self._gateways if gateway.name == OWN), None)
        if ours is not None:
            self._try(ours, self._measure.grown, ours, LOADS[0], MEMORY_SECONDS)
        for gateway in self._gateways:
            gateway.server.stop()
        if ours is not None:
            for number in range(GROWTH_PASSES):
                for position, count in enumerate(GROWTH):
                    self._try(ours, self._grown_table, f"grown-{number}-{count}", 1 + position, count)
            self._try(ours, self._parts, ours)

    def _grown_table(self, name: str, database: int, count: int) -> None:
        """Whole answers before so many targets, on a gateway of its own."""
        gateway = self._bed.trunkline(name, database=database, targets=count)
        self._measure.load(replace(gateway, name=OWN), LOADS[0], f"targets_{count}")
        gateway.server.stop()

    def _parts(self, ours: Gateway) -> None:
        import parts  # of our own modules, which may have moved: the rest is to be had all the same

        parts.measure(self._bed, ours, self.figures, self._plan.rounds, self._measure.note)

    def _try(
        self, gateway: Gateway, measure: Callable[Given, None], *given: Given.args, **options: Given.kwargs
    ) -> None:
        try:
            measure(*given, **options)
        except FAULTS as error:
            self.faults.append(f"{gateway.name}: {error}")
            self._measure.note(f"{gateway.name}: not measured: {error}")
