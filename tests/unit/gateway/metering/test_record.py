"""The record of a call: how it ends, whose time it was, what it took, and that nothing a client typed is in it."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import AbstractContextManager
from typing import Any

import pytest
from harness.clock import FixedClock
from unit.gateway.metering.recording import recorded

from backends.api import Call, Usage
from backends.body import Body
from gateway.config.limits import Price
from gateway.core.errors import (
    ClientGone,
    GatewayError,
    NoTarget,
    RateLimited,
    Rejected,
    Unauthenticated,
    UpstreamFailed,
    UpstreamTimeout,
)
from gateway.core.types import Entry, KeyRecord, Secret, Spent
from gateway.metering import CallRecord, Meter, Metrics, exposition
from gateway.routing.attempt import Choice

CANARY = "canary-7f3a"
CHOICE = Choice("home-cost", "warm")
KEY = KeyRecord(id="KEYID", name=CANARY, created=1, secrets=(Secret(digest=CANARY),), tenant="acme")


class Bench:
    def __init__(self) -> None:
        self.clock, self.metrics, self.written = FixedClock(), Metrics(), list[bytes]()
        self.entered, self.learned = list[Entry](), list[tuple[Any, ...]]()
        self.meter = Meter(
            self.metrics,
            self.clock,
            self.written.append,
            enter=self.entered.append,
            learn=lambda *what: self.learned.append(what[1:]),
        )

    @property
    def line(self) -> dict[str, Any]:
        (line,) = self.written
        decoded: dict[str, Any] = json.loads(line)
        return decoded

    def observe(self) -> AbstractContextManager[CallRecord]:
        return recorded(self.meter)

    def value(self, metric: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"trunkline_{metric}", labels) or 0.0


@pytest.fixture
def bench() -> Bench:
    return Bench()


def call(*, stream: bool = True) -> Call:
    raw = json.dumps({"model": CANARY, "messages": [{"content": CANARY}], "user": CANARY}).encode()
    return Call("tl-1", "chat/completions", CANARY, Body(raw), CANARY, stream, False)


def stream(bench: Bench, record: CallRecord, chunks: int = 3) -> None:
    record.attempt_started("target-a", CHOICE)
    for number in range(chunks):
        bench.clock.advance(1.0)
        record.received(9, 1, Usage(5, 3, 2) if number == chunks - 1 else None)
        bench.clock.advance(0.5)
        record.sent()
    record.attempt_ended()


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
        "attempts": [{"target": "target-a", "outcome": "ok", "reason": "warm"}],
        "duration_s": 4.75,
        "overhead_s": 0.25,
        "queue_s": 0.0,
        "ttft_s": 1.75,
        "chunks": 3,
        "usage": {"prompt_tokens": 5, "completion_tokens": 3, "cached_tokens": 2, "source": "upstream"},
        "cost_micros": 0,
    }
    at = {"route": "route-a", "target": "target-a"}
    assert bench.value("time_to_first_token_seconds_sum", **at) == 1.75
    assert bench.value("inter_token_latency_seconds_count", **at) == 2
    assert bench.value("inter_token_latency_seconds_sum", **at) == 3.0
    assert bench.value("tokens_total", route="route-a", direction="in") == 5
    assert bench.value("tokens_total", route="route-a", direction="out") == 3
    assert bench.value("upstream_attempts_total", **at, outcome="ok") == 1
    assert bench.value("in_flight") == 0


@pytest.mark.parametrize(
    ("error", "sent", "outcome", "error_type", "status"),
    [
        (Unauthenticated(), 0, "refused", "caller_unauthenticated", 401),
        (RateLimited("x", retry_after=1), 0, "shed", "policy_rate_limited", 429),
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
        record.attempt_started("target-a", CHOICE)
        for _ in range(sent):
            record.received(9, 1, None)
            record.sent()
        record.attempt_ended()
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
            record.attempt_started(target, CHOICE)
            if error is not None:
                record.attempt_failed(error)
            record.attempt_ended()
    assert bench.line["attempts"] == [
        {"target": "a", "outcome": "upstream_timeout", "reason": "warm"},
        {"target": "b", "outcome": "upstream_failed", "reason": "warm"},
        {"target": "c", "outcome": "ok", "reason": "warm"},
    ]
    assert bench.value("upstream_attempts_total", route="r", target="a", outcome="upstream_timeout") == 1


def test_time_is_booked_on_whom_it_was_spent(bench: Bench) -> None:
    """The overhead is neither the target's time nor the client's, even when the call fails between them."""
    with pytest.raises(UpstreamTimeout), bench.observe() as record:
        record.received_body(call())
        record.routed("r")
        bench.clock.advance(0.125)
        record.attempt_started("a", CHOICE)
        bench.clock.advance(60)
        record.attempt_failed(UpstreamTimeout(""))
        record.attempt_ended()
        bench.clock.advance(0.125)
        record.attempt_started("b", CHOICE)
        bench.clock.advance(30)
        record.attempt_ended()
        raise UpstreamTimeout("")
    assert bench.line["overhead_s"] == 0.125
    assert bench.line["queue_s"] == 0.125, "between two attempts the call may have waited for room, or for a target"
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
            record.attempt_started("target-a", CHOICE)
            record.received(9, 1, Usage(1, 1))
            record.sent()
            if isinstance(error, GatewayError):
                record.attempt_failed(error)
            record.attempt_ended()
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
        record.attempt_started("t", CHOICE)
        record.received(0, 0, Usage(1, 2))
        record.sent()
        record.attempt_ended()
    assert bench.value("time_to_first_token_seconds_count", route="r", target="t") == 0
    assert bench.value("inter_token_latency_seconds_count", route="r", target="t") == 0
    assert bench.value("tokens_total", route="r", direction="out") == 2


def test_calls_in_flight_are_counted(bench: Bench) -> None:
    with bench.observe(), bench.observe():
        assert bench.value("in_flight") == 2
    assert bench.value("in_flight") == 0


def test_metrics_with_the_same_labels_are_looked_up_once(bench: Bench) -> None:
    one = bench.meter.child(bench.metrics.denials, "key", "rpm")
    assert bench.meter.child(bench.metrics.denials, "key", "rpm") is one
    assert bench.meter.child(bench.metrics.denials, "key", "concurrency") is not one
    assert bench.meter.child(bench.metrics.denials, "tenant", "rpm") is not one


PRICE = Price(input=1_000_000, cached=100_000, output=10_000_000)
"""A micro-unit for a prompt token, a tenth for a cached one, ten for one of the answer."""


def admitted(bench: Bench, record: CallRecord, *, streamed: bool = True) -> None:
    """A call on its way; its prompt is taken to be of 70 tokens."""
    record.authenticated(KEY)
    asked = call(stream=streamed)
    record.received_body(asked)
    record.routed("route-a", PRICE)
    record.admitted(bench.clock.now(), 70)


def counted(bench: Bench) -> tuple[int, int, int, str] | None:
    """Prompt, cached and answer's tokens and their source, as the line tells them."""
    usage = bench.line.get("usage")
    if usage is None:
        return None
    return usage["prompt_tokens"], usage["cached_tokens"], usage["completion_tokens"], usage["source"]


def test_usage_that_the_target_told_is_what_was_spent(bench: Bench) -> None:
    with bench.observe() as record:
        admitted(bench, record)
        stream(bench, record)
        assert record.final_usage() == Spent(5, 2, 3, 5 - 2 + 1 + 30)
    assert counted(bench) == (5, 2, 3, "upstream")
    assert bench.line["cost_micros"] == 34


def test_usage_that_nobody_told_is_counted(bench: Bench) -> None:
    """Events of the answer, and the prompt as it was estimated at admission."""
    with bench.observe() as record:
        admitted(bench, record)
        record.attempt_started("t", CHOICE)
        for tokens in (1, 0, 2, 1):
            record.received(9, tokens, None)
            record.sent()
        record.attempt_ended()
    assert counted(bench) == (70, 0, 4, "counted")
    assert bench.line["cost_micros"] == 70 + 40


def test_a_whole_answer_without_usage_is_estimated_by_its_size(bench: Bench) -> None:
    with bench.observe() as record:
        admitted(bench, record, streamed=False)
        record.attempt_started("t", CHOICE)
        record.received(400, 0, None)
        record.sent()
        record.attempt_ended()
    assert counted(bench) == (70, 0, 100, "estimated")


def test_embeddings_without_usage_have_no_answer_in_tokens(bench: Bench) -> None:
    with recorded(bench.meter, "embeddings") as record:
        admitted(bench, record, streamed=False)
        record.attempt_started("t", CHOICE)
        record.received(40_000, 0, None)
        record.sent()
        record.attempt_ended()
    assert counted(bench) == (70, 0, 0, "estimated")


def test_a_cut_stream_is_charged_what_was_counted(bench: Bench) -> None:
    with pytest.raises(UpstreamFailed), bench.observe() as record:
        admitted(bench, record)
        record.attempt_started("t", CHOICE)
        for _ in range(3):
            record.received(9, 1, None)
            record.sent()
        record.attempt_failed(UpstreamFailed(""))
        record.attempt_ended()
        raise UpstreamFailed("")
    assert counted(bench) == (70, 0, 3, "counted")
    assert (bench.entered[0].outcome, bench.entered[0].output) == ("broke", 3)


def test_a_client_that_left_before_the_first_token_pays_for_its_prompt(bench: Bench) -> None:
    """The target has read it, or was about to."""
    with pytest.raises(asyncio.CancelledError), bench.observe() as record:
        admitted(bench, record)
        record.attempt_started("t", CHOICE)
        record.attempt_failed(ClientGone())
        record.attempt_ended()
        raise asyncio.CancelledError
    assert counted(bench) == (70, 0, 0, "estimated")
    assert bench.entered[0].outcome == "gone"


def test_a_client_that_left_in_the_middle_pays_for_what_came(bench: Bench) -> None:
    with pytest.raises(asyncio.CancelledError), bench.observe() as record:
        admitted(bench, record)
        record.attempt_started("t", CHOICE)
        record.received(9, 1, None)
        record.sent()
        record.attempt_failed(ClientGone())
        record.attempt_ended()
        raise asyncio.CancelledError
    assert counted(bench) == (70, 0, 1, "counted")


@pytest.mark.parametrize("error", [UpstreamTimeout(""), UpstreamFailed(""), Rejected(400, "")])
def test_a_call_that_no_target_has_worked_for_costs_nothing(bench: Bench, error: GatewayError) -> None:
    with pytest.raises(GatewayError), bench.observe() as record:
        admitted(bench, record)
        for target in ("a", "b"):
            record.attempt_started(target, CHOICE)
            record.attempt_failed(error)
            record.attempt_ended()
        assert record.final_usage() == Spent()
        raise error
    assert counted(bench) is None
    assert bench.line["cost_micros"] == 0
    assert bench.value("cost_micros_total", route="route-a") == 0
    (entry,) = bench.entered
    assert (entry.input, entry.output, entry.cost_micros, entry.source) == (0, 0, 0, "")


def test_a_second_target_pays_off_the_first_ones_silence(bench: Bench) -> None:
    """A retry is one call: what the target that answered has counted, and only that."""
    with bench.observe() as record:
        admitted(bench, record)
        record.attempt_started("a", CHOICE)
        record.attempt_failed(UpstreamTimeout(""))
        record.attempt_ended()
        stream(bench, record)
    assert counted(bench) == (5, 2, 3, "upstream")
    (entry,) = bench.entered
    assert (entry.target, entry.input, entry.output) == ("target-a", 5, 3)


def test_a_client_that_left_after_a_failed_target_owes_the_second_ones_prompt(bench: Bench) -> None:
    with pytest.raises(asyncio.CancelledError), bench.observe() as record:
        admitted(bench, record)
        record.attempt_started("a", CHOICE)
        record.attempt_failed(UpstreamFailed(""))
        record.attempt_ended()
        record.attempt_started("b", CHOICE)
        record.attempt_failed(ClientGone())
        record.attempt_ended()
        raise asyncio.CancelledError
    assert counted(bench) == (70, 0, 0, "estimated")


def test_what_a_target_said_before_it_failed_is_not_what_the_next_one_used(bench: Bench) -> None:
    """A first event that was swallowed (a usage of nothing) and then an error: another target answers."""
    with bench.observe() as record:
        admitted(bench, record)
        record.attempt_started("a", CHOICE)
        record.received(0, 0, Usage(5000, 4000))
        record.attempt_failed(UpstreamFailed(""))
        record.attempt_ended()
        record.attempt_started("b", CHOICE)
        for _ in range(2):
            record.received(9, 1, None)
            record.sent()
        record.attempt_ended()
    assert counted(bench) == (70, 0, 2, "counted")


def test_what_was_spent_is_fixed_when_it_is_first_asked_for(bench: Bench) -> None:
    """What was charged is what is written, also if more is heard of later."""
    with bench.observe() as record:
        admitted(bench, record)
        record.attempt_started("t", CHOICE)
        record.received(9, 1, None)
        charged = record.final_usage()
        record.received(9, 1, Usage(999, 999))
        record.attempt_ended()
        assert record.final_usage() is charged
    assert counted(bench) == (70, 0, 1, "counted")
    assert bench.entered[0].output == charged.output


@pytest.mark.parametrize(
    ("told", "spent"),
    [
        (Usage(-5, -3, -2), (0, 0, 0)),
        (Usage(5, -(10**12)), (5, 0, 0)),
        (Usage(5, 3, 50), (5, 5, 3)),
        (Usage(5, 3, -50), (5, 0, 3)),
    ],
)
def test_a_target_that_lies_about_its_usage_gives_nothing_back(
    bench: Bench, told: Usage, spent: tuple[int, int, int]
) -> None:
    """Less than nothing would be credit: a budget would grow by it, and a counter cannot fall."""
    with bench.observe() as record:
        admitted(bench, record)
        record.attempt_started("t", CHOICE)
        record.received(9, 1, told)
        record.sent()
        record.attempt_ended()
    assert (bench.entered[0].input, bench.entered[0].cached, bench.entered[0].output) == spent
    assert bench.line["cost_micros"] == PRICE.cost(*spent) >= 0


def test_a_target_that_lies_beyond_all_numbers_spoils_no_counter(bench: Bench) -> None:
    """Redis counts up to 2 to the 63rd."""
    with bench.observe() as record:
        admitted(bench, record)
        record.attempt_started("t", CHOICE)
        record.received(9, 1, Usage(10**30, 10**30))
        record.sent()
        record.attempt_ended()
    assert record.final_usage().input + record.final_usage().output < 2**63
    assert record.final_usage().cost < 2**63


def test_a_model_without_a_price_costs_nothing(bench: Bench) -> None:
    with bench.observe() as record:
        record.received_body(call())
        record.routed("route-a")
        stream(bench, record)
    assert bench.line["cost_micros"] == 0
    assert bench.value("cost_micros_total", route="route-a") == 0


def test_the_metrics_are_the_lines_added_up(bench: Bench) -> None:
    for _ in range(3):
        with bench.observe() as record:
            admitted(bench, record)
            stream(bench, record)
    assert bench.value("cost_micros_total", route="route-a") == 3 * 34
    assert bench.value("usage_source_total", route="route-a", source="upstream") == 3
    assert bench.value("tokens_total", route="route-a", direction="in") == 15
    assert bench.value("tokens_total", route="route-a", direction="out") == 9


@pytest.mark.parametrize("source", ["upstream", "counted", "estimated"])
def test_where_counts_come_from_is_counted(bench: Bench, source: str) -> None:
    with bench.observe() as record:
        admitted(bench, record, streamed=source != "estimated")
        record.attempt_started("t", CHOICE)
        record.received(40, 0 if source == "estimated" else 1, Usage(1, 1) if source == "upstream" else None)
        record.sent()
        record.attempt_ended()
    for each in ("upstream", "counted", "estimated"):
        assert bench.value("usage_source_total", route="route-a", source=each) == (each == source)


def test_every_admitted_call_is_entered_once(bench: Bench) -> None:
    when = bench.clock.now()
    with bench.observe() as record:
        admitted(bench, record)
        stream(bench, record)
    assert bench.entered == [
        Entry(
            call_id="tl-1",
            time=when,
            key_id="KEYID",
            tenant="acme",
            route="route-a",
            target="target-a",
            endpoint="chat/completions",
            outcome="answered",
            input=5,
            cached=2,
            output=3,
            cost_micros=34,
            source="upstream",
        )
    ]
    assert CANARY not in repr(bench.entered)


@pytest.mark.parametrize("error", [Unauthenticated(), RateLimited("x", retry_after=1)])
def test_a_call_that_was_not_let_in_is_not_entered(bench: Bench, error: GatewayError) -> None:
    with pytest.raises(GatewayError), bench.observe() as record:
        record.authenticated(KEY)
        record.received_body(call())
        record.routed("route-a", PRICE)
        raise error
    assert bench.entered == []
    assert "usage" not in bench.line


def test_only_what_targets_counted_is_learned_from(bench: Bench) -> None:
    with bench.observe() as record:
        admitted(bench, record)
        stream(bench, record)
        record.final_usage()
    assert bench.learned == [("KEYID", "route-a", 5, 3)]
    for streamed in (True, False):
        with bench.observe() as record:
            admitted(bench, record, streamed=streamed)
            record.attempt_started("t", CHOICE)
            record.received(40, int(streamed), None)
            record.attempt_ended()
    assert len(bench.learned) == 1


def test_half_an_answer_teaches_nothing_about_the_length_of_answers(bench: Bench) -> None:
    """Some servers tell the usage so far in each event: of a stream that ended early that is no answer's length."""
    with pytest.raises(asyncio.CancelledError), bench.observe() as record:
        admitted(bench, record)
        record.attempt_started("t", CHOICE)
        record.received(9, 1, Usage(5, 1))
        record.sent()
        record.attempt_failed(ClientGone())
        record.attempt_ended()
        raise asyncio.CancelledError
    assert bench.learned == []
    assert counted(bench) == (5, 0, 1, "upstream")
