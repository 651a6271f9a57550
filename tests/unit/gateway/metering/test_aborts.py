"""Clients that leave: in which phase, how soon all was given back, and what was made for nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, get_args

import pytest
from harness.clock import FixedClock
from unit.gateway.metering.recording import recorded

from backends.api import Call, Usage
from backends.body import Body
from gateway.core.errors import ClientGone, GatewayError, Rejected, UpstreamFailed
from gateway.metering import CallRecord, Meter, Metrics
from gateway.metering.aborts import Phase
from gateway.routing.attempt import Choice

CHOICE = Choice("home-cost", "warm")
SOON = 1 / 64
"""Seconds; exact in binary."""


class Client:
    gone_at: float | None = None
    own_id: str = ""


class Bench:
    def __init__(self) -> None:
        self.clock, self.metrics, self.written, self.client = FixedClock(), Metrics(), list[bytes](), Client()
        self.meter = Meter(self.metrics, self.clock, self.written.append)

    def run(
        self, *steps: Callable[[CallRecord], Any], took: float = SOON, leaves: bool = True, stream: bool = True
    ) -> Any:
        """The line of a call that goes through these steps, then is cancelled; giving all back takes `took`."""
        with pytest.raises(asyncio.CancelledError), recorded(self.meter, client=self.client) as call:
            call.stream = stream
            for step in steps:
                step(call)
            self.clock.advance(1)
            if leaves:
                self.client.gone_at = self.clock.monotonic()
            self.clock.advance(took)
            if call.attempts and call.attempts[-1].outcome == "ok":
                call.attempt_failed(ClientGone())
                call.attempt_ended()
            raise asyncio.CancelledError
        return json.loads(self.written[-1])

    def value(self, metric: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"trunkline_{metric}", labels)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def asked(*, stream: bool = True) -> Callable[[CallRecord], None]:
    call = Call("tl-1", "chat/completions", "m", Body(b'{"model": "m"}'), "application/json", stream, False)
    return lambda record: record.received_body(call)


def routed(record: CallRecord) -> None:
    record.routed("r")


def tried(record: CallRecord) -> None:
    record.attempt_started("a", CHOICE)


def failed(record: CallRecord) -> None:
    record.attempt_failed(UpstreamFailed(""))
    record.attempt_ended()


def came(tokens: int, usage: Usage | None = None) -> Callable[[CallRecord], None]:
    return lambda record: record.received(9, tokens, usage)


HEADED = CallRecord.got_headers
TO_TARGET = (asked(), routed, tried)
PHASES: dict[str, tuple[Phase, tuple[Callable[[CallRecord], Any], ...]]] = {
    "at once": ("body", ()),
    "routed": ("queue", (asked(), routed)),
    "sent": ("headers", TO_TARGET),
    "its target has failed": ("queue", (*TO_TARGET, came(1), failed)),
    "its second target": ("headers", (*TO_TARGET, HEADED, came(1), failed, tried)),
    "headers are here": ("first_token", (*TO_TARGET, HEADED)),
    "a role is here": ("first_token", (*TO_TARGET, HEADED, came(0), CallRecord.sent)),
    "a token is here": ("stream", (*TO_TARGET, HEADED, came(1))),
    "a token was sent": ("stream", (*TO_TARGET, HEADED, came(1), CallRecord.sent)),
    "no stream": ("whole", (asked(stream=False), routed, tried)),
    "no stream, answered": ("whole", (asked(stream=False), routed, tried, HEADED, came(0, Usage(5, 3)))),
}


@pytest.mark.parametrize("case", PHASES)
def test_each_leaving_is_of_one_phase_and_timed(bench: Bench, case: str) -> None:
    phase, steps = PHASES[case]
    line = bench.run(*steps)
    assert line["abort"] == {"phase": phase, "seconds": SOON}
    route = line["route"]
    for each in get_args(Phase):
        assert bench.value("aborts_total", route=route, phase=each) == (1 if each == phase else None)
    assert bench.value("abort_seconds_count") == 1
    assert bench.value("abort_seconds_sum") == SOON
    assert (bench.value("abort_seconds_bucket", le="0.01"), bench.value("abort_seconds_bucket", le="0.025")) == (0, 1)


def test_every_phase_is_tried_here() -> None:
    assert {phase for phase, _ in PHASES.values()} == set(get_args(Phase))


def test_a_call_that_the_gateway_itself_gave_up_is_no_abort(bench: Bench) -> None:
    line = bench.run(*TO_TARGET, leaves=False)
    assert "abort" not in line
    assert bench.value("abort_seconds_count") == 0


def test_a_client_that_leaves_when_it_has_its_answer_is_no_abort(bench: Bench) -> None:
    with recorded(bench.meter, client=bench.client) as record:
        for step in (*TO_TARGET, HEADED, came(1), CallRecord.sent, CallRecord.attempt_ended):
            step(record)
        bench.client.gone_at = bench.clock.monotonic()
    line = json.loads(bench.written[-1])
    assert line["outcome"] == "answered"
    assert "abort" not in line and "wasted_tokens" not in line


@pytest.mark.parametrize(
    ("steps", "wasted"),
    [
        ((came(1), came(2)), 3),
        ((came(1), came(0, Usage(5, 7))), 7),
        ((came(0, Usage(5, -7)),), None),
        ((), None),
    ],
    ids=["counted", "told", "lied", "nothing"],
)
def test_what_was_made_for_a_client_that_left_is_wasted(
    bench: Bench, steps: tuple[Callable[[CallRecord], None], ...], wasted: int | None
) -> None:
    line = bench.run(*TO_TARGET, HEADED, *steps)
    assert bench.value("wasted_tokens_total", route="r", cause="client_gone") == wasted
    assert bench.value("wasted_tokens_total", route="r", cause="attempt_failed") is None
    assert line.get("wasted_tokens") == wasted


@pytest.mark.parametrize("error", [UpstreamFailed(""), Rejected(400, "")])
def test_what_a_failed_attempt_had_made_is_wasted(bench: Bench, error: GatewayError) -> None:
    with recorded(bench.meter, client=bench.client) as record:
        for step in (*TO_TARGET, HEADED, came(4)):
            step(record)
        record.attempt_failed(error)
        record.attempt_ended()
        for step in (tried, HEADED, came(3), CallRecord.sent, CallRecord.attempt_ended):
            step(record)
    assert bench.value("wasted_tokens_total", route="r", cause="attempt_failed") == 4
    assert bench.value("wasted_tokens_total", route="r", cause="client_gone") is None
    assert json.loads(bench.written[-1])["wasted_tokens"] == 4


def test_the_waste_of_a_failure_and_of_a_leave_are_told_apart(bench: Bench) -> None:
    line = bench.run(*TO_TARGET, HEADED, came(4), failed, tried, HEADED, came(2))
    assert bench.value("wasted_tokens_total", route="r", cause="attempt_failed") == 4
    assert bench.value("wasted_tokens_total", route="r", cause="client_gone") == 2
    assert line["wasted_tokens"] == 6
    assert line["usage"]["completion_tokens"] == 2


def carried(record: CallRecord) -> None:
    """The attempt broke off, and its text is to go on elsewhere."""
    record.attempt_failed(UpstreamFailed(""))
    record.broke_off("")
    record.attempt_ended()


STREAMED = (*TO_TARGET, HEADED, came(4), CallRecord.sent, carried)


def test_text_that_another_target_continued_is_not_wasted(bench: Bench) -> None:
    with recorded(bench.meter, client=bench.client) as record:
        for step in (*STREAMED, tried, HEADED, came(3), CallRecord.sent, CallRecord.attempt_ended):
            step(record)
    assert "wasted_tokens" not in json.loads(bench.written[-1])


def test_a_client_that_leaves_before_its_text_was_continued_left_a_stream(bench: Bench) -> None:
    line = bench.run(*STREAMED, tried, HEADED)
    assert line["abort"]["phase"] == "stream"
    assert bench.value("wasted_tokens_total", route="r", cause="client_gone") == line["wasted_tokens"] == 4


def test_a_client_that_leaves_a_continued_stream_leaves_all_of_it(bench: Bench) -> None:
    line = bench.run(*STREAMED, tried, HEADED, came(3), CallRecord.sent)
    assert bench.value("wasted_tokens_total", route="r", cause="client_gone") == line["wasted_tokens"] == 7


def test_text_that_no_target_continued_is_wasted_once(bench: Bench) -> None:
    with (
        pytest.raises(UpstreamFailed),
        recorded(bench.meter, client=bench.client) as record,
    ):
        for step in (*STREAMED, tried, carried):
            step(record)
        raise UpstreamFailed("")
    assert bench.value("wasted_tokens_total", route="r", cause="attempt_failed") == 4
    assert json.loads(bench.written[-1])["wasted_tokens"] == 4
