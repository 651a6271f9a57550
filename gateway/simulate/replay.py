"""The simulation itself: calls come, are routed by real routes and answered by timed engines, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

from backends.api import Usage
from gateway.core.errors import QueueFull, QueueTimeout
from gateway.core.types import Spent
from gateway.faults.engine import TimedEngine, Work
from gateway.routing.attempt import NO_OUTCOME, Attempt
from gateway.simulate.calls import Call
from gateway.simulate.gateways import SimulatedGateway

PATIENCE_SECONDS = 60.0
"""How long after the end answers are waited for; those that have not begun count with the time they had."""


class Replay:
    """One policy's run over one workload; afterwards its public fields say how it went."""

    def __init__(
        self,
        calls: Sequence[Call],
        engines: Sequence[TimedEngine],
        weights: Sequence[float],
        gateways: Sequence[SimulatedGateway],
        share_seconds: float,
        end: float,
        skip: float,
        watch: Callable[[int], None] | None = None,
    ) -> None:
        """`share_seconds` is the time between exchanges, 0 for none. Calls that come before `skip` are not measured,
        those after `end` are dropped. `watch` is told now and then how many have come."""
        self.ttft: list[tuple[float, float]] = []
        """When each measured call came, and the seconds to its first token."""
        self.tokens = [0] * len(engines)
        """Prompt tokens of measured calls at each engine."""
        self.cached: list[tuple[float, int, int]] = []
        """Of each measured call when it came, its prompt tokens, and those of them that were cached."""
        self.busiest = self.busy = 0.0
        """Sums, over measured calls, of the calls that the busiest engine had for its weight, and of the mean."""
        self.reasons: Counter[str] = Counter()
        self.queued = self.refused = self.unfinished = 0
        """Measured calls that waited in a gateway's queue, that were refused there, and that had no first token."""
        self.arrived = 0
        self._calls, self._engines, self._weights, self._gateways = calls, engines, weights, gateways
        self._share, self._end, self._skip, self._watch = share_seconds, end, skip, watch
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Run to the end."""
        if self._share and len(self._gateways) > 1:
            talk = [asyncio.create_task(each.exchanges(self._share)) for each in self._gateways]
        else:
            talk = []
        for call in sorted(self._calls, key=lambda call: call.after):
            if call.after > self._end:
                break
            await asyncio.sleep(call.after - self._loop.time())
            self._comes(call)
        await asyncio.sleep(max(0.0, self._end - self._loop.time()))
        last = self._loop.time() + PATIENCE_SECONDS
        while self._tasks and (left := last - self._loop.time()) > 0:
            await asyncio.wait(self._tasks, timeout=left)
        for task in (*talk, *self._tasks):
            task.cancel()
        await asyncio.gather(*talk, *self._tasks, return_exceptions=True)
        for engine in self._engines:
            engine.close()

    def _comes(self, call: Call) -> None:
        if self._loop.time() > self._end:
            return
        self.arrived += 1
        if self._watch is not None and self.arrived % 500 == 0:
            self._watch(self.arrived)
        task = self._loop.create_task(self._serve(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, call: Call) -> None:
        came, measured = self._loop.time(), self._loop.time() >= self._skip
        gateway = self._gateways[int(call.draw * len(self._gateways))]
        spent, begun = Spent(), False
        attempts = gateway.attempts(call.prompt)
        try:
            attempt = await attempts.next(NO_OUTCOME)
            assert attempt is not None
            spent = Spent(call.prompt.tokens, 0, call.answer)
            try:
                work, first, last = self._work(call, attempt)
                if measured:
                    self._placed(attempt)
                try:
                    await first
                    begun = True
                    attempt.first_token()
                    if measured:
                        self.ttft.append((came, self._loop.time() - came))
                        self.cached.append((came, work.tokens, work.cached or 0))
                    await last
                finally:
                    if not work.ended:
                        self._engines[attempt.score.index].abort(work)
                attempt.answered(Usage(work.tokens, work.answer, work.cached))
            finally:
                attempt.end()
        except (QueueFull, QueueTimeout):
            self.refused += measured
        except asyncio.CancelledError:
            if measured and not begun:
                self.unfinished += 1
                self.ttft.append((came, self._loop.time() - came))
            raise
        finally:
            attempts.close(spent)
        for following in call.next:
            self._loop.call_later(following.after, self._comes, following)

    def _work(self, call: Call, attempt: Attempt) -> tuple[Work, asyncio.Future[None], asyncio.Future[None]]:
        first, last = self._loop.create_future(), self._loop.create_future()

        def heard(work: Work) -> None:
            for future, come in ((first, True), (last, work.ended)):
                if come and not future.done():
                    future.set_result(None)

        work = Work(call.segments, call.answer, heard)
        self._engines[attempt.score.index].add(work)
        return work, first, last

    def _placed(self, attempt: Attempt) -> None:
        place = attempt.score.index
        self.reasons[attempt.score.reason] += 1
        self.queued += attempt.waited > 0
        self.tokens[place] += attempt.prompt_tokens
        loads = [len(engine.waiting) + engine.running for engine in self._engines]
        self.busiest += max(load / weight for load, weight in zip(loads, self._weights, strict=True))
        self.busy += sum(loads) / sum(self._weights)
