"""Turns records of calls into metrics, log lines and entries of the ledger."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container
from functools import partial
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType
from prometheus_client import Histogram

from backends.api import Call
from gateway.core.clock import Clock
from gateway.core.types import Entry, Spent
from gateway.metering.aborts import Client
from gateway.metering.counting import Learned
from gateway.metering.metrics import Metrics
from gateway.metering.record import CLIENT, QUEUE, TARGET, WAITED_SECONDS, CallRecord, Choice

log = logging.getLogger("trunkline.metering")

_encoder = msgspec.json.Encoder()


class Meter:
    """Opens records; each tells it when its call has ended, and what cannot wait until then."""

    def __init__(
        self,
        metrics: Metrics,
        clock: Clock,
        write: Callable[[bytes], None],
        *,
        enter: Callable[[Entry], None] = lambda _: None,
        learn: Callable[[Call, str, str, int, int], None] = lambda *_: None,
        learned: Learned | None = None,
    ) -> None:
        """`write` takes a log line, `enter` an entry of the ledger, `learn` what a target counted for a call: the key's
        id, the route, prompt and completion tokens. `learned` is what was learned of targets before."""
        self.metrics, self._clock, self._write = metrics, clock, write
        self._enter, self._learn = enter, learn
        self.learned = learned or Learned()
        self._children: dict[tuple[Any, ...], Any] = {}
        self._times: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
        self._streams: dict[tuple[str, str], tuple[list[float], list[float]]] = {}
        self._answered: dict[tuple[str, ...], _Answered] = {}
        self._running = self._shown = 0
        metrics.pending.before(self._add)

    def open(self, call_id: str, endpoint: str, client: Client | None = None) -> CallRecord:
        """A record of the call of this client; without one, it is never known when a client left."""
        self._running += 1
        return CallRecord(self, self._clock, call_id, endpoint, client)

    def refused(self, call_id: str, endpoint: str, error: Exception) -> None:
        """A call has ended before it began."""
        self.open(call_id, endpoint).close(error)

    def child(self, metric: Any, *labels: str) -> Any:
        """The metric with these labels, looked up in prometheus_client only once."""
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def depart(self, targets: Container[str]) -> None:
        """Show nothing more of targets that have gone for good: they would add up where targets come and go."""
        self.metrics.pending.flush()
        caches: tuple[dict[Any, Any], ...] = self._children, self._streams, self._answered
        for kept in caches:
            for key in [key for key in kept if any(part in targets for part in key)]:
                gone = kept.pop(key)
                if isinstance(gone, Histogram):
                    self.metrics.pending.forget(gone)
        self.metrics.depart(targets)

    def first_token(self, record: CallRecord) -> None:
        """The first piece of a stream was sent."""
        assert record.ttft is not None
        self._stream_times(record)[0].append(record.ttft)

    def between_tokens(self, record: CallRecord) -> None:
        """Observe the gaps between pieces of a stream that the record has gathered."""
        self._stream_times(record)[1].extend(record.gaps)
        record.gaps.clear()

    def resume(self, record: CallRecord, outcome: str) -> None:
        """A broken stream went on at another target, or did not."""
        self.child(self.metrics.resumes, record.route, outcome).inc()

    def wasted(self, record: CallRecord, cause: str, tokens: int) -> None:
        """A target has made tokens for nothing."""
        self.child(self.metrics.wasted, record.route, cause).inc(tokens)

    def usage_refused(self, record: CallRecord) -> None:
        """A target has told more tokens than the call can have had."""
        told, route, target = record.usage, record.route, record.target
        assert told is not None
        self.child(self.metrics.usage_refused, route, target).inc()
        counts = told.prompt_tokens, told.completion_tokens
        log.warning("call %s: target %s: impossible token counts: %d and %d", record.call_id, target, *counts)

    def ended(self, record: CallRecord, ended: float) -> None:
        """The call is over, at this moment of the monotonic clock."""
        self._running -= 1
        seconds, total, attempts = record.seconds, ended - record.started, record.attempts
        own = max(0.0, total - seconds[TARGET] - seconds[CLIENT] - seconds[QUEUE])
        key = record.endpoint, record.route
        times = self._times.get(key) or self._new_times(key)
        times[0].append(total)
        times[1].append(own)
        if record.gaps:
            self.between_tokens(record)
        spent = record.spent or record.final_usage()
        if record.error is None and len(attempts) == 1 and record.usage_source == "upstream" and record.repair is None:
            # The way of nearly all calls: one attempt, answered, with the target's own usage.
            choice = attempts[0].choice
            labels = (*key, attempts[0].target, choice.policy, choice.reason)
            sums = self._answered.get(labels)
            if sums is None:
                sums = self._answered[labels] = _Answered(self, *labels)
            sums.calls += 1
            sums.input += spent.input
            sums.cached += spent.cached
            sums.output += spent.output
            sums.cost += spent.cost
            if record.call is not None:
                self._learn(record.call, record.key_id, record.route, spent.input, spent.output)
                self.learned.learn(record, spent, seconds[TARGET])
        else:
            self._count(record, spent)
        for attempt in attempts:
            choice = attempt.choice
            if choice.fallback or choice.waited > WAITED_SECONDS:
                self._count_detour(record.route, choice)
        if record.resuming and record.outcome != "gone":
            self.resume(record, "failed")
        if record.abort is not None:
            self.child(self.metrics.aborts, record.route, record.abort.phase).inc()
            self.metrics.abort_seconds.observe(record.abort.seconds)
        if record.admitted_at:
            self._enter(_entry(record, spent))
        self._write(_encoder.encode(_line(record, spent, total, own, self._clock.now())))

    def _stream_times(self, record: CallRecord) -> tuple[list[float], list[float]]:
        """Where times to the first token, and those between tokens, go."""
        key = record.route, record.target
        times = self._streams.get(key)
        if times is None:
            metrics, values = self.metrics, self.metrics.pending.values
            times = values(self.child(metrics.ttft, *key)), values(self.child(metrics.itl, *key))
            self._streams[key] = times
        return times

    def _new_times(self, key: tuple[str, str]) -> tuple[list[float], list[float]]:
        """Where the durations of calls, and the gateway's own parts of them, go."""
        metrics, values = self.metrics, self.metrics.pending.values
        times = values(self.child(metrics.duration, *key)), values(self.child(metrics.overhead, key[1]))
        self._times[key] = times
        return times

    def _add(self) -> None:
        """Bring to metrics what was only added up."""
        self.metrics.in_flight.inc(self._running - self._shown)
        self._shown = self._running
        for sums in self._answered.values():
            if sums.calls:
                sums.add()

    def _count_detour(self, route: str, choice: Choice) -> None:
        """A target that was not the first choice, or that had to be waited for."""
        if choice.fallback:
            self.child(self.metrics.fallbacks, route, choice.fallback).inc()
        if choice.waited > WAITED_SECONDS:
            self.child(self.metrics.queue_wait, route).observe(choice.waited)

    def _count(self, record: CallRecord, spent: Spent) -> None:
        """Any other call."""
        metrics, child, route = self.metrics, self.child, record.route
        if record.repair is not None:
            child(metrics.repairs, route, record.repair).inc()
        error_type = "" if record.error is None else record.error.error_type
        child(metrics.requests, record.endpoint, route, record.outcome, error_type).inc()
        for attempt in record.attempts:
            child(metrics.attempts, route, attempt.target, attempt.outcome).inc()
            child(metrics.decisions, route, attempt.choice.policy, attempt.choice.reason).inc()
        if not record.usage_source:
            return
        child(metrics.tokens, route, "in").inc(spent.input)
        child(metrics.tokens, route, "out").inc(spent.output)
        child(metrics.usage_source, route, record.usage_source).inc()
        if spent.cost:
            child(metrics.cost, route).inc(spent.cost)
        if record.usage_source == "upstream":
            child(metrics.prompt_tokens, route, record.target).inc(spent.input)
            child(metrics.cached_tokens, route, record.target).inc(spent.cached)
            # Half an answer says nothing of its length.
            if record.call is not None and record.attempts[-1].outcome == "ok" and record.repair in (None, "failed"):
                self._learn(record.call, record.key_id, route, spent.input, spent.output)


class _Answered:
    """Calls of one kind that were answered at once, and their tokens, added up."""

    __slots__ = ("_cached", "_cost", "_input", "_one", "_output", "cached", "calls", "cost", "input", "output")

    def __init__(self, meter: Meter, endpoint: str, route: str, target: str, policy: str, reason: str) -> None:
        metrics, child = meter.metrics, meter.child
        self._one = (
            child(metrics.requests, endpoint, route, "answered", ""),
            child(metrics.attempts, route, target, "ok"),
            child(metrics.decisions, route, policy, reason),
            child(metrics.usage_source, route, "upstream"),
        )
        self._input = child(metrics.tokens, route, "in"), child(metrics.prompt_tokens, route, target)
        self._output = child(metrics.tokens, route, "out")
        self._cached = child(metrics.cached_tokens, route, target)
        self._cost = partial(child, metrics.cost, route)
        self.calls = self.input = self.cached = self.output = self.cost = 0

    def add(self) -> None:
        """Add them to their counters, and begin anew."""
        for counter in self._one:
            counter.inc(self.calls)
        for counter in self._input:
            counter.inc(self.input)
        self._output.inc(self.output)
        self._cached.inc(self.cached)
        if self.cost:  # routes without prices show none
            self._cost().inc(self.cost)
        self.calls = self.input = self.cached = self.output = self.cost = 0


def _entry(record: CallRecord, spent: Spent) -> Entry:
    """The call as the ledger keeps it."""
    return Entry(
        call_id=record.call_id,
        time=record.admitted_at,
        key_id=record.key_id,
        tenant=record.tenant,
        route=record.route,
        target=record.target,
        endpoint=record.endpoint,
        outcome=record.outcome,
        input=spent.input,
        cached=spent.cached,
        output=spent.output,
        cost_micros=spent.cost,
        source=record.usage_source,
        user=record.user,
    )


class _Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    source: str


class _Line(Struct, frozen=True):
    """The log line. It holds ids, names of ours and numbers, and nothing that a client typed but its request's id, and
    its user where its key's word for that is taken."""

    time: float
    event: Literal["call"]
    request_id: str
    key_id: str
    tenant: str
    endpoint: str
    route: str
    target: str
    stream: bool
    outcome: str
    status: int
    error_type: str | None
    attempts: list[dict[str, str]]
    duration_s: float
    overhead_s: float
    queue_s: float
    ttft_s: float | None
    chunks: int
    cost_micros: int
    usage: _Usage | UnsetType = UNSET
    fallback: str | UnsetType = UNSET
    repair: str | UnsetType = UNSET
    resumed: int | UnsetType = UNSET
    not_resumed: str | UnsetType = UNSET
    abort: dict[str, str | float] | UnsetType = UNSET
    wasted_tokens: int | UnsetType = UNSET
    client_request_id: str | UnsetType = UNSET
    cache: str | UnsetType = UNSET
    user: str | UnsetType = UNSET


def _line(record: CallRecord, spent: Spent, total: float, own: float, now: float) -> _Line:
    error, attempts, abort = record.error, record.attempts, record.abort
    fallback: str | UnsetType = UNSET
    for attempt in attempts:
        fallback = attempt.choice.fallback or fallback
    return _Line(
        int(now * 1e3) / 1e3,
        "call",
        record.call_id,
        record.key_id,
        record.tenant,
        record.endpoint,
        record.route,
        record.target,
        record.stream,
        record.outcome,
        200 if error is None else error.status,
        None if error is None else error.error_type,
        [{"target": each.target, "outcome": each.outcome, "reason": each.choice.reason} for each in attempts],
        int(total * 1e6 + 0.5) / 1e6,  # `round` of them would cost as much as all the rest
        int(own * 1e6 + 0.5) / 1e6,
        int(record.seconds[QUEUE] * 1e6 + 0.5) / 1e6,
        None if record.ttft is None else int(record.ttft * 1e6 + 0.5) / 1e6,
        record.chunks,
        spent.cost,
        _Usage(spent.input, spent.output, spent.cached, record.usage_source) if record.usage_source else UNSET,
        fallback,
        record.repair or UNSET,
        record.resumed or UNSET,
        record.obstacle or UNSET,
        UNSET if abort is None else {"phase": abort.phase, "seconds": round(abort.seconds, 6)},
        record.wasted_tokens or UNSET,
        UNSET if record.client is None else record.client.own_id or UNSET,
        record.cache or UNSET,
        record.user or UNSET,
    )
