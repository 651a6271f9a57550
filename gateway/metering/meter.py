"""Turns records of calls into metrics, log lines and entries of the ledger."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from prometheus_client import Histogram

from backends.api import Call
from gateway.core.clock import Clock
from gateway.core.types import Entry, Spent
from gateway.metering.aborts import Client
from gateway.metering.metrics import Metrics
from gateway.metering.record import CLIENT, QUEUE, TARGET, WAITED_SECONDS, AttemptRecord, CallRecord

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
    ) -> None:
        """`write` takes a log line, `enter` an entry of the ledger, `learn` what a target counted for a call: the key's
        id, the route, prompt and completion tokens."""
        self.metrics, self._clock, self._write = metrics, clock, write
        self._enter, self._learn = enter, learn
        self._children: dict[tuple[Any, ...], Any] = {}
        self._always: dict[tuple[str, str], tuple[Any, Any]] = {}
        self._answered: dict[tuple[str, ...], _Answered] = {}

    def open(self, call_id: str, endpoint: str, client: Client | None = None) -> CallRecord:
        """A record of the call of this client; without one, it is never known when a client left."""
        self.metrics.in_flight.inc()
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

    def first_token(self, record: CallRecord) -> None:
        """The first piece of a stream was sent."""
        self.child(self.metrics.ttft, record.route, record.target).observe(record.ttft)

    def between_tokens(self, record: CallRecord) -> None:
        """Observe the gaps between pieces of a stream that the record has gathered."""
        observe_all(self.child(self.metrics.itl, record.route, record.target), record.gaps)
        record.gaps.clear()

    def resume(self, record: CallRecord, outcome: str) -> None:
        """A broken stream went on at another target, or did not."""
        self.child(self.metrics.resumes, record.route, outcome).inc()

    def wasted(self, record: CallRecord, cause: str, tokens: int) -> None:
        """A target has made tokens for nothing."""
        self.child(self.metrics.wasted, record.route, cause).inc(tokens)

    def ended(self, record: CallRecord, ended: float) -> None:
        """The call is over, at this moment of the monotonic clock."""
        metrics, child, route = self.metrics, self.child, record.route
        metrics.in_flight.dec()
        seconds, total = record.seconds, ended - record.started
        own = max(0.0, total - seconds[TARGET] - seconds[CLIENT] - seconds[QUEUE])
        key = record.endpoint, route
        always = self._always.get(key)
        if always is None:
            always = self._always[key] = child(metrics.duration, *key), child(metrics.overhead, route)
        always[0].observe(total)
        always[1].observe(own)
        if record.gaps:
            self.between_tokens(record)
        spent = record.final_usage()
        attempts = record.attempts
        if record.error is None and len(attempts) == 1 and record.usage_source == "upstream":
            self._count_answered(record, attempts[0], spent)
        else:
            self._count(record, spent)
        for attempt in attempts:
            choice = attempt.choice
            if choice.fallback:
                child(metrics.fallbacks, route, choice.fallback).inc()
            if choice.waited > WAITED_SECONDS:
                child(metrics.queue_wait, route).observe(choice.waited)
        if record.resuming and record.outcome != "gone":
            self.resume(record, "failed")
        if record.abort is not None:
            child(metrics.aborts, route, record.abort.phase).inc()
            metrics.abort_seconds.observe(record.abort.seconds)
        if record.admitted_at:
            self._enter(_entry(record, spent))
        self._write(_encoder.encode(_line(record, spent, total, own, self._clock.now())))

    def _count_answered(self, record: CallRecord, attempt: AttemptRecord, spent: Spent) -> None:
        """The way of nearly all calls: one attempt, answered, with the target's own usage. Its counters are found by
        one look-up, not by nine."""
        choice = attempt.choice
        key = record.endpoint, record.route, attempt.target, choice.policy, choice.reason
        counters = self._answered.get(key)
        if counters is None:
            counters = self._answered[key] = self._answered_counters(record, attempt)
        for counter in counters.one:
            counter.inc()
        for counter in counters.input:
            counter.inc(spent.input)
        counters.output.inc(spent.output)
        counters.cached.inc(spent.cached)
        if spent.cost:
            self.child(self.metrics.cost, record.route).inc(spent.cost)
        if record.call is not None:
            self._learn(record.call, record.key_id, record.route, spent.input, spent.output)

    def _answered_counters(self, record: CallRecord, attempt: AttemptRecord) -> _Answered:
        metrics, child, route, target = self.metrics, self.child, record.route, attempt.target
        return _Answered(
            one=(
                child(metrics.requests, record.endpoint, route, "answered", ""),
                child(metrics.attempts, route, target, "ok"),
                child(metrics.decisions, route, attempt.choice.policy, attempt.choice.reason),
                child(metrics.usage_source, route, "upstream"),
            ),
            input=(child(metrics.tokens, route, "in"), child(metrics.prompt_tokens, route, target)),
            output=child(metrics.tokens, route, "out"),
            cached=child(metrics.cached_tokens, route, target),
        )

    def _count(self, record: CallRecord, spent: Spent) -> None:
        """Any other call."""
        metrics, child, route = self.metrics, self.child, record.route
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
            if record.call is not None and record.attempts[-1].outcome == "ok":
                self._learn(record.call, record.key_id, route, spent.input, spent.output)


class _Answered(Struct, frozen=True):
    """Counters of calls that were answered at once: those that count one, and those that count tokens."""

    one: tuple[Any, ...]
    input: tuple[Any, ...]
    output: Any
    cached: Any


def observe_all(histogram: Histogram, values: Sequence[float]) -> None:
    """As `observe` of each value, for the price of a few.

    Uses private parts of prometheus_client: a test fails when they change.
    """
    bounds, buckets = histogram._upper_bounds, histogram._buckets
    counts = [0] * len(bounds)
    for value in values:
        counts[bisect_left(bounds, value)] += 1
    for bucket, count in zip(buckets, counts, strict=True):
        if count:
            bucket.inc(count)
    histogram._sum.inc(sum(values))


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
    )


def _line(record: CallRecord, spent: Spent, total: float, own: float, now: float) -> dict[str, Any]:
    """The log line. It holds ids, names of ours and numbers: nothing that a client typed."""
    error, attempts = record.error, record.attempts
    line: dict[str, Any] = {
        "time": round(now, 3),
        "event": "call",
        "request_id": record.call_id,
        "key_id": record.key_id,
        "tenant": record.tenant,
        "endpoint": record.endpoint,
        "route": record.route,
        "target": record.target,
        "stream": record.stream,
        "outcome": record.outcome,
        "status": 200 if error is None else error.status,
        "error_type": None if error is None else error.error_type,
        "attempts": [{"target": a.target, "outcome": a.outcome, "reason": a.choice.reason} for a in attempts],
        "duration_s": round(total, 6),
        "overhead_s": round(own, 6),
        "queue_s": round(record.seconds[QUEUE], 6),
        "ttft_s": None if record.ttft is None else round(record.ttft, 6),
        "chunks": record.chunks,
    }
    for attempt in attempts:
        if attempt.choice.fallback:
            line["fallback"] = attempt.choice.fallback
    if record.resumed:
        line["resumed"] = record.resumed
    if record.obstacle:
        line["not_resumed"] = record.obstacle
    if record.abort is not None:
        line["abort"] = {"phase": record.abort.phase, "seconds": round(record.abort.seconds, 6)}
    if record.wasted_tokens:
        line["wasted_tokens"] = record.wasted_tokens
    line["cost_micros"] = spent.cost
    if record.usage_source:
        line["usage"] = {
            "prompt_tokens": spent.input,
            "completion_tokens": spent.output,
            "cached_tokens": spent.cached,
            "source": record.usage_source,
        }
    return line
