"""The record of one call: opened when it arrives, closed however it ends, written once."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec

from backends.api import Call, Usage
from gateway.core.clock import Clock
from gateway.core.errors import ClientGone, GatewayError, Internal, UpstreamError, ended_by
from gateway.core.types import Entry, KeyRecord, Spent
from gateway.metering.aborts import Abort, Client, Phase
from gateway.metering.metrics import Metrics

log = logging.getLogger("trunkline.meter")

_encoder = msgspec.json.Encoder()


BYTES_PER_TOKEN = 4.0
"""Of an answer that nobody counted."""
WAITED_SECONDS = 0.001
"""Less is not waiting, but choosing."""
MOST_TOKENS = 1 << 32
"""That a target is believed to have read or written for one call."""


class Choice(Protocol):
    """How a target was picked, in words of closed vocabularies."""

    @property
    def policy(self) -> str:
        """By what."""

    @property
    def reason(self) -> str:
        """For what."""

    @property
    def fallback(self) -> str:
        """Why a worse tier, or another route, was chosen; empty: it was not."""

    @property
    def waited(self) -> float:
        """Seconds in the queue."""


class Pricing(Protocol):
    """What tokens cost."""

    def cost(self, input: int, cached: int, output: int) -> int:
        """Micro-units of money; `cached` is a part of `input`."""


class Meter:
    """Opens records and turns closed ones into metrics, log lines and entries of the ledger."""

    def __init__(
        self,
        metrics: Metrics,
        clock: Clock,
        write: Callable[[bytes], None],
        *,
        enter: Callable[[Entry], None] = lambda _: None,
        learn: Callable[[Call, str, str, int, int], None] = lambda *_: None,
    ) -> None:
        self.metrics, self._clock, self._write = metrics, clock, write
        self._enter, self.learn = enter, learn
        self._children: dict[tuple[Any, ...], Any] = {}

    def observe(self, call_id: str, endpoint: str, client: Client | None = None) -> Record:
        """A record of the call of this client; without one, it is never known when a client left."""
        return Record(self, self._clock, call_id, endpoint, client)

    def child(self, metric: Any, *labels: str) -> Any:
        """The metric with these labels, looked up in prometheus_client only once."""
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child

    def close(self, record: Record, ended: float) -> None:
        metrics, child = self.metrics, self.child
        total = ended - record.started
        error_type = "" if record.error is None else record.error.error_type
        child(metrics.requests, record.endpoint, record.route, record.outcome, error_type).inc()
        child(metrics.duration, record.endpoint, record.route).observe(total)
        own = max(0.0, total - record.upstream_seconds - record.client_seconds - record.queue_seconds)
        child(metrics.overhead, record.route).observe(own)
        spent = record.spend()
        if record.usage_source:
            child(metrics.tokens, record.route, "in").inc(spent.input)
            child(metrics.tokens, record.route, "out").inc(spent.output)
            child(metrics.usage_source, record.route, record.usage_source).inc()
            if record.usage_source == "upstream":
                child(metrics.prompt_tokens, record.route, record.target).inc(spent.input)
                child(metrics.cached_tokens, record.route, record.target).inc(spent.cached)
            if spent.cost:
                child(metrics.cost, record.route).inc(spent.cost)
        if record.unresumed:
            child(metrics.resumes, record.route, "failed").inc()
        if record.abort is not None:
            child(metrics.aborts, record.route, record.abort.phase).inc()
            metrics.abort_seconds.observe(record.abort.seconds)
        if record.admitted_at:
            self._enter(record.entry())
        self._write(_encoder.encode(record.line(total, own, self._clock.now())))


class Record:
    """One call's way through the gateway. A context manager: leaving it closes it with the outcome it was left with."""

    def __init__(self, meter: Meter, clock: Clock, call_id: str, endpoint: str, client: Client | None) -> None:
        self._meter, self._clock, self._client = meter, clock, client
        self.call_id, self.endpoint = call_id, endpoint
        self.started = clock.monotonic()
        self.route, self.target, self.model = "other", "", ""
        self.key_id = self.tenant = ""
        self.stream = False
        self.attempts: list[dict[str, str]] = []
        self.upstream_seconds = self.client_seconds = self.queue_seconds = 0.0
        self.fallback = ""
        self.ttft: float | None = None
        self.chunks = self._counted = 0
        self.usage: Usage | None = None
        self.usage_source = ""
        self.admitted_at = 0.0
        self._call: Call | None = None
        self._price: Pricing | None = None
        self._prompt: Callable[[], int] = lambda: 0
        self._size, self._headed = 0, False
        self._left_in: Phase | None = None
        """Where the attempt at hand was when its client left."""
        self.wasted_tokens = 0
        """Of answers that came to nothing."""
        self.abort: Abort | None = None
        self._resuming, self._obstacle = False, ""
        self.resumed = 0
        """How often its stream went on at another target."""
        self._spent: Spent | None = None
        self.error: GatewayError | None = None
        self.outcome = "answered"
        self._last = self._sent_at = self._asked_at = self.started
        self._waits_for = ""

    def __enter__(self) -> Self:
        self._meter.metrics.in_flight.inc()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._meter.metrics.in_flight.dec()
        if error is not None:
            self._fail(error)
        if self._waits_for == "queue":
            self._wait_over("")
        ended = self._clock.monotonic()
        if self.outcome == "gone":
            self.abort = self._aborted(ended)
        if self._resuming and self.error is not None:  # what broke off was to go on, and did not
            self._waste(gone=self.outcome == "gone")
        self._meter.close(self, ended)

    def authenticated(self, key: KeyRecord) -> None:
        """From here on we wait for the client's body."""
        self.key_id, self.tenant = key.id, key.tenant
        self._wait_over("client")

    def received_body(self, call: Call) -> None:
        self.stream, self._call = call.stream, call
        self._wait_over("")

    def routed(self, route: str, price: Pricing | None = None) -> None:
        self.route, self._price = route, price

    def admitted(self, at: float, prompt: Callable[[], int]) -> None:
        """The call may go on, and waits for a target; `at` is when, in seconds since the epoch.

        `prompt` estimates its prompt's tokens.
        """
        self.admitted_at, self._prompt = at, prompt
        self._wait_over("queue")

    def attempt(self, target: str, choice: Choice) -> None:
        """The call goes to `target`; `choice` tells why there."""
        self.target = target
        metrics, child = self._meter.metrics, self._meter.child
        child(metrics.decisions, self.route, choice.policy, choice.reason).inc()
        if choice.fallback:
            self.fallback = choice.fallback
            child(metrics.fallbacks, self.route, choice.fallback).inc()
        if choice.waited > WAITED_SECONDS:
            child(metrics.queue_wait, self.route).observe(choice.waited)
        self.usage, self._headed = None, False
        now = self._wait_over("upstream")
        if not self._resuming:
            self._counted = self._size = 0  # what another target said before it failed
            self._asked_at = now  # of an answer in parts it is when its first one was asked for
        self.attempts.append({"target": target, "outcome": "ok", "reason": choice.reason})

    @property
    def unresumed(self) -> bool:
        """Its stream was to go on at another target, and none did; a client that left does not count."""
        return self._resuming and self.outcome != "gone"

    def headed(self) -> None:
        """The target at hand has answered with the headers of a good answer."""
        self._headed = True

    def failed(self, error: GatewayError) -> None:
        """The attempt at hand failed."""
        if isinstance(error, ClientGone):
            self._left_in = self._phase()
        self.attempts[-1]["outcome"] = error.error_type
        if isinstance(error, UpstreamError):
            log.warning("call %s: target %s: %s: %s", self.call_id, self.target, error.error_type, error.message)

    def broke_off(self, obstacle: str) -> bool:
        """The stream broke off; whether it goes on at another target, if no `obstacle`, in a word, prevents it."""
        self._resuming, self._obstacle = not obstacle, obstacle
        if obstacle:
            self._meter.child(self._meter.metrics.resumes, self.route, "refused").inc()
        return not obstacle

    def attempted(self) -> None:
        """The attempt at hand is over."""
        metrics, outcome = self._meter.metrics, self.attempts[-1]["outcome"]
        self._wait_over("" if outcome == "ok" else "queue")  # perhaps for another target
        self._meter.child(metrics.attempts, self.route, self.target, outcome).inc()
        if outcome != "ok" and not self._resuming:
            self._waste(gone=self._left_in is not None)

    def received(self, size: int, tokens: int, usage: Usage | None) -> None:
        """A chunk of so many bytes has come from the target; until it is sent, we wait for the client."""
        self._wait_over("client")
        self._counted += tokens
        self._size += size
        if usage is not None:
            self.usage = usage

    def spend(self) -> Spent:
        """What the call took. Fixed when it is first asked for: what is charged is what is written."""
        if self._spent is None:
            input, cached, output, self.usage_source = self._counts()
            cost = 0 if self._price is None else self._price.cost(input, cached, output)
            self._spent = Spent(input, cached, output, cost)
            whole = self.attempts and self.attempts[-1]["outcome"] == "ok"  # half an answer says nothing of its length
            if whole and self.usage_source == "upstream" and self._call is not None:
                self._meter.learn(self._call, self.key_id, self.route, input, output)
        return self._spent

    def _counts(self) -> tuple[int, int, int, str]:
        """Prompt, cached and completion tokens, and where they come from: "" if no target has worked for the call."""
        if self.usage is not None:
            told = self.usage
            input, output = (
                max(0, min(number, MOST_TOKENS)) for number in (told.prompt_tokens, told.completion_tokens)
            )
            return input, max(0, min(told.cached_tokens or 0, input)), output, "upstream"
        if self._counted:
            return self._prompt(), 0, self._counted, "counted"
        if self._size and not self.stream:
            embeds = self.endpoint == "embeddings"
            return self._prompt(), 0, 0 if embeds else max(1, int(self._size / BYTES_PER_TOKEN)), "estimated"
        if self._left_in:
            return self._prompt(), 0, 0, "estimated"  # the target has read the prompt, or was about to
        return 0, 0, 0, ""

    def entry(self) -> Entry:
        """The call as the ledger keeps it."""
        spent = self.spend()
        return Entry(
            call_id=self.call_id,
            time=self.admitted_at,
            key_id=self.key_id,
            tenant=self.tenant,
            route=self.route,
            target=self.target,
            endpoint=self.endpoint,
            outcome=self.outcome,
            input=spent.input,
            cached=spent.cached,
            output=spent.output,
            cost_micros=spent.cost,
            source=self.usage_source,
        )

    def sent(self) -> None:
        """A chunk has gone to the client; until the next one comes, the target is what we wait for."""
        now = self._wait_over("upstream")
        metrics = self._meter.metrics
        if self.ttft is None:
            self.ttft = now - self.started
            if self.stream:
                self._meter.child(metrics.ttft, self.route, self.target).observe(self.ttft)
        elif self._resuming:  # the silence before it was another target's
            self._resuming = False
            self.resumed += 1
            self._meter.child(metrics.resumes, self.route, "resumed").inc()
        elif self.stream:
            self._meter.child(metrics.itl, self.route, self.target).observe(now - self._sent_at)
        self._sent_at = now
        self.chunks += 1

    def seen(self) -> tuple[int, int | None, float | None, float]:
        """What the target made of an answered call: status, completion tokens, seconds to the first and to the end."""
        now = self._clock.monotonic()
        first = None if self.ttft is None else self.started + self.ttft - self._asked_at
        return 200, self.spend().output or None, first, now - self._asked_at

    def _wait_over(self, then: str) -> float:
        """Book the time since the last change on whom we waited for; `then` is whom we wait for now."""
        now = self._clock.monotonic()
        if self._waits_for == "upstream":
            self.upstream_seconds += now - self._last
        elif self._waits_for == "client":
            self.client_seconds += now - self._last
        elif self._waits_for == "queue" and now - self._last > WAITED_SECONDS:
            self.queue_seconds += now - self._last
        self._last, self._waits_for = now, then
        return now

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            error = ended_by(error)
        elif not isinstance(error, GatewayError):
            # Where it happened and its type, but not its text: that may hold what a client typed.
            frames = "".join(traceback.format_tb(error.__traceback__))
            log.error("call %s: a bug of ours: %s\n%s", self.call_id, type(error).__qualname__, frames)
            error = Internal()
        self.error = error
        self.outcome = "broke" if self.ttft is not None and error.outcome == "failed" else error.outcome

    def _phase(self) -> Phase:
        """Where the attempt at hand is."""
        if not self.stream:
            return "whole"
        if self._counted or self._resuming:
            return "stream"
        return "first_token" if self._headed else "headers"

    def _waste(self, *, gone: bool) -> None:
        """What has come so far came to nothing: its client is `gone`, or it broke off."""
        made = self._counted if self.usage is None else max(0, min(self.usage.completion_tokens, MOST_TOKENS))
        if made:
            self.wasted_tokens += made
            cause = "client_gone" if gone else "attempt_failed"
            self._meter.child(self._meter.metrics.wasted, self.route, cause).inc(made)

    def _aborted(self, ended: float) -> Abort | None:
        """How the client left; None if it is there, and it was us who were told to stop."""
        if self._client is None or self._client.gone_at is None:
            return None
        phase: Phase = self._left_in or ("body" if self._call is None else "queue")
        return Abort(phase, max(0.0, ended - self._client.gone_at))

    def line(self, total: float, own: float, now: float) -> dict[str, Any]:
        """The log line. It holds ids, names of ours and numbers: nothing that a client typed."""
        line: dict[str, Any] = {
            "time": round(now, 3),
            "event": "call",
            "request_id": self.call_id,
            "key_id": self.key_id,
            "tenant": self.tenant,
            "endpoint": self.endpoint,
            "route": self.route,
            "target": self.target,
            "stream": self.stream,
            "outcome": self.outcome,
            "status": 200 if self.error is None else self.error.status,
            "error_type": None if self.error is None else self.error.error_type,
            "attempts": self.attempts,
            "duration_s": round(total, 6),
            "overhead_s": round(own, 6),
            "queue_s": round(self.queue_seconds, 6),
            "ttft_s": None if self.ttft is None else round(self.ttft, 6),
            "chunks": self.chunks,
        }
        if self.fallback:
            line["fallback"] = self.fallback
        if self.resumed:
            line["resumed"] = self.resumed
        if self._obstacle:
            line["not_resumed"] = self._obstacle
        if self.abort is not None:
            line["abort"] = {"phase": self.abort.phase, "seconds": round(self.abort.seconds, 6)}
        if self.wasted_tokens:
            line["wasted_tokens"] = self.wasted_tokens
        spent = self.spend()
        line["cost_micros"] = spent.cost
        if self.usage_source:
            line["usage"] = {
                "prompt_tokens": spent.input,
                "completion_tokens": spent.output,
                "cached_tokens": spent.cached,
                "source": self.usage_source,
            }
        return line
