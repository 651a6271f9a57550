"""The record of a call: how it ends, whose time it was, and that nothing a client typed is in it."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from harness.clock import FixedClock

from backends.api import Call, Usage
from backends.body import Body
from gateway.core.errors import (
    GatewayError,
    NoTarget,
    RateLimited,
    Rejected,
    Unauthenticated,
    UpstreamFailed,
    UpstreamTimeout,
)
from gateway.core.types import KeyRecord, Secret
from gateway.meter import Meter, Metrics, Record, exposition

CANARY = "canary-7f3a"
KEY = KeyRecord(id="KEYID", name=CANARY, created=1, secrets=(Secret(digest=CANARY),), tenant="acme")


class Bench:
    def __init__(self) -> None:
        self.clock, self.metrics, self.written = FixedClock(), Metrics(), list[bytes]()
        self.meter = Meter(self.metrics, self.clock, self.written.append)

    @property
    def line(self) -> dict[str, Any]:
        (line,) = self.written
        decoded: dict[str, Any] = json.loads(line)
        return decoded

    def observe(self) -> Record:
        return self.meter.observe("tl-1", "chat/completions")

    def value(self, metric: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"trunkline_{metric}", labels) or 0.0


@pytest.fixture
def bench() -> Bench:
    return Bench()


def call(*, stream: bool = True) -> Call:
    raw = json.dumps({"model": CANARY, "messages": [{"content": CANARY}], "user": CANARY}).encode()
    return Call("tl-1", "chat/completions", CANARY, Body(raw), CANARY, stream, False)


def stream(bench: Bench, record: Record, chunks: int = 3) -> None:
    record.attempt("target-a")
    for number in range(chunks):
        bench.clock.advance(1.0)
        record.received(1, Usage(5, 3, 2) if number == chunks - 1 else None)
        bench.clock.advance(0.5)
        record.sent()
    record.attempted()


def test_an_answered_stream(bench: Bench) -> None:
    with bench.observe() as record:
        record.authenticated(KEY)
        record.received_body(call())
        record.routed("route-a")
        bench.clock.advance(0.25)
        stream(bench, record)
    line = bench.line
    assert line | {"time": 0} == {
        "time": 0,
        "event": "call",
        "request_id": "tl-1",
        "key_id": "KEYID",
        "tenant": "acme",
        "endpoint": "chat/completions",
        "route": "route-a",
        "target": "target-a",
        "stream": True,
        "outcome": "answered",
        "status": 200,
        "error_type": None,
        "attempts": [{"target": "target-a", "outcome": "ok"}],
        "duration_s": 4.75,
        "overhead_s": 0.25,
        "ttft_s": 1.75,
        "chunks": 3,
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "cached_tokens": 2, "source": "upstream"},
    }
    at = {"route": "route-a", "target": "target-a"}
    assert bench.value("time_to_first_token_seconds_sum", **at) == 1.75
    assert bench.value("inter_token_latency_seconds_count", **at) == 2
    assert bench.value("inter_token_latency_seconds_sum", **at) == 3.0
    assert bench.value("tokens_total", route="route-a", direction="in") == 5
    assert bench.value("tokens_total", route="route-a", direction="out") == 3
    assert bench.value("upstream_attempts_total", **at, outcome="ok") == 1
    assert bench.value("in_flight") == 0


def test_usage_that_nobody_told_is_counted(bench: Bench) -> None:
    with bench.observe() as record:
        record.received_body(call())
        record.routed("r")
        record.attempt("t")
        for _ in range(4):
            record.received(1, None)
            record.sent()
        record.attempted()
    assert bench.line["usage"] == {
        "prompt_tokens": 0,
        "completion_tokens": 4,
        "cached_tokens": None,
        "source": "counted",
    }


@pytest.mark.parametrize(
    ("error", "sent", "outcome", "error_type", "status"),
    [
        (Unauthenticated(), 0, "refused", "caller_unauthenticated", 401),
        (RateLimited("x", dimension="rpm", retry_after=1), 0, "shed", "policy_rate_limited", 429),
        (Rejected(422, CANARY), 0, "refused", "caller_rejected_upstream", 422),
        (NoTarget(CANARY), 0, "failed", "gateway_no_target", 503),
        (UpstreamTimeout(CANARY), 0, "failed", "upstream_timeout", 504),
        (UpstreamFailed(CANARY), 2, "broke", "upstream_failed", 502),
        (asyncio.CancelledError(), 0, "gone", "caller_gone", 499),
        (asyncio.CancelledError(), 2, "gone", "caller_gone", 499),
        (ZeroDivisionError(CANARY), 0, "failed", "gateway_other", 500),
        (ZeroDivisionError(CANARY), 1, "broke", "gateway_other", 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_every_ending_is_recorded(
    bench: Bench, error: BaseException, sent: int, outcome: str, error_type: str, status: int
) -> None:
    with pytest.raises(type(error)), bench.observe() as record:
        record.received_body(call())
        record.routed("route-a")
        record.attempt("target-a")
        for _ in range(sent):
            record.received(1, None)
            record.sent()
        record.attempted()
        raise error
    line = bench.line
    assert (line["outcome"], line["error_type"], line["status"]) == (outcome, error_type, status)
    counted = {"endpoint": "chat/completions", "route": "route-a", "outcome": outcome, "error_type": error_type}
    assert bench.value("requests_total", **counted) == 1
    assert bench.value("in_flight") == 0


def test_attempts_are_listed_with_what_became_of_them(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.CRITICAL), bench.observe() as record:
        record.received_body(call())
        record.routed("r")
        for target, error in (("a", UpstreamTimeout("x")), ("b", UpstreamFailed("y")), ("c", None)):
            record.attempt(target)
            if error is not None:
                record.failed(error)
            record.attempted()
    assert bench.line["attempts"] == [
        {"target": "a", "outcome": "upstream_timeout"},
        {"target": "b", "outcome": "upstream_failed"},
        {"target": "c", "outcome": "ok"},
    ]
    assert bench.value("upstream_attempts_total", route="r", target="a", outcome="upstream_timeout") == 1


def test_time_is_booked_on_whom_it_was_spent(bench: Bench) -> None:
    """The overhead is neither the target's time nor the client's, even when the call fails between them."""
    with pytest.raises(UpstreamTimeout), bench.observe() as record:
        record.received_body(call())
        record.routed("r")
        bench.clock.advance(0.125)
        record.attempt("a")
        bench.clock.advance(60)
        record.failed(UpstreamTimeout(""))
        record.attempted()
        bench.clock.advance(0.125)
        record.attempt("b")
        bench.clock.advance(30)
        record.attempted()
        raise UpstreamTimeout("")
    assert bench.line["overhead_s"] == 0.25
    assert bench.line["duration_s"] == 90.25


@pytest.mark.parametrize(
    "error", [None, Unauthenticated(), UpstreamFailed(CANARY), Rejected(400, CANARY), KeyError(CANARY)]
)
def test_nothing_that_a_client_typed_is_in_line_or_metrics(
    bench: Bench, error: Exception | None, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        with bench.observe() as record:
            record.authenticated(KEY)
            record.received_body(call())
            record.routed("route-a")
            record.attempt("target-a")
            record.received(1, Usage(1, 1))
            record.sent()
            if isinstance(error, GatewayError):
                record.failed(error)
            record.attempted()
            if error is not None:
                raise error
    except (GatewayError, KeyError):
        pass
    assert CANARY not in json.dumps(bench.line)
    assert CANARY.encode() not in exposition(bench.metrics)


def test_a_model_that_is_unknown_is_other(bench: Bench) -> None:
    with pytest.raises(Unauthenticated), bench.observe():
        raise Unauthenticated
    assert bench.line["route"] == "other"


def test_an_answer_that_is_no_stream_has_no_gaps(bench: Bench) -> None:
    with bench.observe() as record:
        record.received_body(call(stream=False))
        record.routed("r")
        record.attempt("t")
        record.received(0, Usage(1, 2))
        record.sent()
        record.attempted()
    assert bench.value("time_to_first_token_seconds_count", route="r", target="t") == 0
    assert bench.value("inter_token_latency_seconds_count", route="r", target="t") == 0
    assert bench.value("tokens_total", route="r", direction="out") == 2


def test_calls_in_flight_are_counted(bench: Bench) -> None:
    with bench.observe(), bench.observe():
        assert bench.value("in_flight") == 2
    assert bench.value("in_flight") == 0


def test_metrics_with_the_same_labels_are_looked_up_once(bench: Bench) -> None:
    one = bench.meter.child(bench.metrics.denials, "rpm")
    assert bench.meter.child(bench.metrics.denials, "rpm") is one
    assert bench.meter.child(bench.metrics.denials, "concurrency") is not one
