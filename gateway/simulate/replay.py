"""The simulation itself: events in the order of time, from the first call to the end of the last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import Any, Final

from gateway.routes.load import Share
from gateway.routes.policies.api import Score
from gateway.simulate.calls import Call
from gateway.simulate.oracle import Truth
from gateway.simulate.replica import Replica
from gateway.simulate.side import Side

SECONDS_PER_TOKEN: Final = 0.02
"""How fast answers are written."""
WARM_UP: Final = 0.25
"""Of the time; calls that come earlier fill caches and are not measured."""

Event = tuple[float, int, Callable[[float, Any], None], Any]


class Placed:
    """A call under way."""

    __slots__ = ("cached", "call", "replica", "score", "share", "side")

    def __init__(self, call: Call, side: Side, replica: Replica, score: Score, share: Share, cached: int) -> None:
        self.call, self.side, self.replica = call, side, replica
        self.score, self.share, self.cached = score, share, cached


class Replay:
    """One policy's run over one workload; afterwards its public fields say how it went."""

    def __init__(
        self,
        calls: Sequence[Call],
        replicas: Sequence[Replica],
        sides: Sequence[Side],
        share_seconds: float,
        end: float,
        truth: Truth,
    ) -> None:
        """`share_seconds` is the time between exchanges, 0 for none; calls that come after `end` are dropped."""
        self.ttft: list[float] = []
        """Seconds to the first token of each measured call."""
        self.prompt_tokens = self.cached_tokens = 0
        """Of measured calls."""
        self.busiest = self.busy = 0.0
        """Sums, over measured calls, of the calls that the busiest target had for its weight, and of the mean."""
        self.arrived = 0
        self._replicas, self._sides, self._share, self._end, self._truth = replicas, sides, share_seconds, end, truth
        self._measured_from = end * WARM_UP
        self._weight = sum(replica.weight for replica in replicas)
        self._heap: list[Event] = [(call.after, number, self._arrives, call) for number, call in enumerate(calls)]
        self._events = len(self._heap)
        if share_seconds and len(sides) > 1:
            for number, side in enumerate(sides):
                phase = share_seconds * (number + 1) / len(sides)
                self._heap.append((phase, self._events + number, self._exchanges, side))
            self._events += len(sides)
        heapify(self._heap)

    def run(self, watch: Callable[[int], None] | None = None, each: int = 500) -> None:
        """Run to the end; `watch` is told the number of calls that have arrived, after every `each`."""
        heap, told = self._heap, 0
        while heap:
            now, _, happens, subject = heappop(heap)
            happens(now, subject)
            if watch is not None and self.arrived >= told + each:
                told = self.arrived
                watch(told)

    def _at(self, time: float, happens: Callable[[float, Any], None], subject: Any) -> None:
        self._events += 1  # orders events of the same time
        heappush(self._heap, (time, self._events, happens, subject))

    def _arrives(self, now: float, call: Call) -> None:
        if now > self._end:
            return
        self.arrived += 1
        self._truth.segments = call.segments
        side = self._sides[int(call.draw * len(self._sides))]
        prompt = call.prompt
        score, share = side.place(prompt, now)
        replica = self._replicas[score.index]
        first, cached = replica.take(call.segments, prompt.tokens, now)
        placed = Placed(call, side, replica, score, share, cached)
        self._at(first, self._reads, placed)
        if now >= self._measured_from:
            self._measure(first - now, replica, prompt.tokens, cached)

    def _measure(self, ttft: float, replica: Replica, tokens: int, cached: int) -> None:
        self.ttft.append(ttft)
        self.prompt_tokens += tokens
        self.cached_tokens += cached
        replica.tokens += tokens
        self.busiest += max([each.running / each.weight for each in self._replicas])
        self.busy += sum([each.running for each in self._replicas]) / self._weight

    def _reads(self, now: float, placed: Placed) -> None:
        placed.share.first_token()
        self._at(now + placed.call.answer * SECONDS_PER_TOKEN, self._ends, placed)

    def _ends(self, now: float, placed: Placed) -> None:
        call = placed.call
        placed.side.end(call.prompt, placed.score, placed.share, placed.cached)
        placed.replica.running -= 1
        for following in call.next:
            self._at(now + following.after, self._arrives, following)

    def _exchanges(self, now: float, side: Side) -> None:
        side.exchange(self._sides, now)
        if now < self._end:  # later no call is placed
            self._at(now + self._share, self._exchanges, side)
