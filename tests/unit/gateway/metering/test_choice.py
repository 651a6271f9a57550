"""What a record tells of the way to a target: reasons, fallbacks, the queue; and what shadows are compared with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from harness.clock import FixedClock
from unit.gateway.metering.recording import recorded

from backends.api import Call, Usage
from backends.body import Body
from gateway.core.errors import QueueTimeout, UpstreamFailed
from gateway.metering import CallRecord, Meter, Metrics
from gateway.metering.shadows import ShadowMetrics
from gateway.routing.attempt import Choice
from gateway.upstream.shadow import Comparison, Seen

WARM = Choice("home-cost", "warm")


class Bench:
    def __init__(self) -> None:
        self.clock, self.metrics, self.written = FixedClock(), Metrics(), list[bytes]()
        self.meter = Meter(self.metrics, self.clock, self.written.append)

    @property
    def line(self) -> dict[str, Any]:
        (line,) = self.written
        decoded: dict[str, Any] = json.loads(line)
        return decoded

    @contextmanager
    def observe(self) -> Iterator[CallRecord]:
        with recorded(self.meter) as record:
            record.received_body(Call("tl-1", "chat/completions", "m", Body(b"{}"), stream=True))
            record.routed("r")
            yield record

    def value(self, metric: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"trunkline_{metric}", labels) or 0.0


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_each_decision_is_counted_by_its_reason(bench: Bench) -> None:
    with bench.observe() as record:
        record.attempt_started("a", WARM)
        record.attempt_failed(UpstreamFailed(""))
        record.attempt_ended()
        record.attempt_started("b", Choice("home-cost", "spill"))
        record.attempt_ended()
    assert [each["reason"] for each in bench.line["attempts"]] == ["warm", "spill"]
    for reason in ("warm", "spill"):
        assert bench.value("route_decisions_total", route="r", policy="home-cost", reason=reason) == 1
    assert "fallback" not in bench.line


def test_a_fallback_is_told_with_its_reason(bench: Bench) -> None:
    with bench.observe() as record:
        record.attempt_started("a", WARM)
        record.attempt_ended()
        record.attempt_started("b", Choice("round-robin", "only", fallback="down"))
        record.attempt_ended()
    assert bench.line["fallback"] == "down"
    assert bench.value("fallbacks_total", route="r", reason="down") == 1


def test_waiting_in_the_queue_is_nobodys_overhead(bench: Bench) -> None:
    with bench.observe() as record:
        bench.clock.advance(0.25)
        record.admitted(bench.clock.now(), 70)
        bench.clock.advance(2.0)
        record.attempt_started("a", Choice("home-cost", "home", waited=2.0))
        bench.clock.advance(1.0)
        record.attempt_failed(UpstreamFailed(""))
        record.attempt_ended()
        bench.clock.advance(0.25)
        record.attempt_started("b", WARM)
        record.attempt_ended()
    line = bench.line
    assert (line["queue_s"], line["overhead_s"], line["duration_s"]) == (2.25, 0.25, 3.5)
    assert bench.value("queue_wait_seconds_count", route="r") == 1
    assert bench.value("queue_wait_seconds_sum", route="r") == 2.0


@pytest.mark.parametrize("error", [QueueTimeout("x"), asyncio.CancelledError()])
def test_waiting_in_vain_is_waiting_too(bench: Bench, error: BaseException) -> None:
    with pytest.raises(type(error)), bench.observe() as record:
        record.admitted(bench.clock.now(), 70)
        bench.clock.advance(10.0)
        raise error
    line = bench.line
    assert (line["queue_s"], line["overhead_s"], line["duration_s"]) == (10.0, 0.0, 10.0)
    assert bench.value("queue_wait_seconds_count", route="r") == 0, "only of those that had room in the end"


def test_a_call_that_had_not_to_wait_is_not_in_the_queues_histogram(bench: Bench) -> None:
    with bench.observe() as record:
        record.admitted(bench.clock.now(), 70)
        bench.clock.advance(0.0002)
        record.attempt_started("a", Choice("home-cost", "home", waited=0.0002))
        record.attempt_ended()
    assert bench.value("queue_wait_seconds_count", route="r") == 0
    assert (bench.line["queue_s"], bench.line["overhead_s"]) == (0.0, 0.0002)


def test_what_came_from_the_cache_is_counted_by_target(bench: Bench) -> None:
    with bench.observe() as record:
        record.attempt_started("a", WARM)
        record.received(9, 1, Usage(100, 3, 60))
        record.sent()
        record.attempt_ended()
    assert bench.value("prompt_tokens_total", route="r", target="a") == 100
    assert bench.value("cached_tokens_total", route="r", target="a") == 60


def test_what_nobody_counted_is_no_measure_of_a_cache(bench: Bench) -> None:
    with bench.observe() as record:
        record.attempt_started("a", WARM)
        record.received(9, 1, None)
        record.attempt_ended()
    assert bench.value("prompt_tokens_total", route="r", target="a") == 0


def test_a_shadow_is_compared_with_what_the_last_target_did(bench: Bench) -> None:
    with bench.observe() as record:
        bench.clock.advance(5.0)
        record.attempt_started("a", WARM)
        bench.clock.advance(7.0)
        record.attempt_ended()
        record.attempt_started("b", WARM)
        bench.clock.advance(0.5)
        record.received(9, 1, None)
        record.sent()
        bench.clock.advance(1.5)
        record.received(9, 1, Usage(10, 2))
        record.sent()
        assert record.seen() == (200, 2, 0.5, 2.0)
        record.attempt_ended()


def test_a_shadow_is_compared_with_all_parts_of_an_answer_that_went_on_elsewhere(bench: Bench) -> None:
    with bench.observe() as record:
        record.attempt_started("a", WARM)
        bench.clock.advance(0.5)
        record.received(9, 1, None)
        record.sent()
        bench.clock.advance(3.0)
        record.attempt_failed(UpstreamFailed(""))
        record.broke_off("")
        record.attempt_ended()
        record.attempt_started("b", WARM)
        bench.clock.advance(1.0)
        record.received(9, 1, Usage(10, 2))
        record.sent()
        assert record.seen() == (200, 2, 0.5, 4.5)
        record.attempt_ended()


def test_without_a_first_token_there_is_none_to_compare(bench: Bench) -> None:
    with bench.observe() as record:
        record.attempt_started("a", WARM)
        bench.clock.advance(1.0)
        assert record.seen() == (200, None, None, 1.0)
        record.attempt_ended()


def test_a_client_that_leaves_the_queue_is_gone_and_costs_nothing(bench: Bench) -> None:
    with pytest.raises(asyncio.CancelledError), bench.observe() as record:
        record.admitted(bench.clock.now(), 70)
        raise asyncio.CancelledError
    line = bench.line
    assert (line["outcome"], line["attempts"], line["target"], line["status"]) == ("gone", [], "", 499)
    assert "usage" not in line


def test_comparisons_come_to_a_ratio_of_tokens() -> None:
    def told(status: int, tokens: int | None = None) -> Seen:
        return Seen(status, tokens, None, 1.0)

    metrics = Metrics()
    shadows = ShadowMetrics(metrics)
    for primary, shadow in ((Seen(200, 10, 0.1, 1.0), Seen(200, 30, 0.4, 2.0)), (told(200, 20), told(200, 30))):
        shadows.compared("r", "s", Comparison(primary, shadow))
    shadows.compared("r", "s", Comparison(told(200, 5), told(500)))
    shadows.dropped("r", "s")

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"trunkline_{name}", {"route": "r", "target": "s", **labels})

    assert value("shadow_tokens_ratio") == 2.0
    assert value("shadow_time_to_first_token_seconds_count") == 1
    for outcome, times in (("same", 2), ("other", 1), ("dropped", 1)):
        assert value("shadow_calls_total", outcome=outcome) == times
