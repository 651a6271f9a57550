"""Every call is counted once, whatever became of it: in the metrics, and in one line of the log."""

from __future__ import annotations

import json
import re

import pytest
from harness.gateway_process import GatewayProcess
from harness.upstream import DONE, Act, Gate, Script, Target, answer, event, stream, usage_event, whole
from integration.client import ask, chat, eventually, record, request, samples, total, wire

from gateway.core.types import Limit

FINISH = event(finish="stop")


@pytest.mark.parametrize(
    ("fields", "script", "labels"),
    [
        ({}, whole(answer()), {"outcome": "answered", "error_type": ""}),
        ({"stream": True}, stream(event("a"), FINISH, DONE), {"outcome": "answered", "error_type": ""}),
        ({}, whole({}, 500), {"outcome": "failed", "error_type": "upstream_failed"}),
        ({}, whole({}, 400), {"outcome": "refused", "error_type": "caller_rejected_upstream"}),
        ({"stream": True}, stream(event("a"), Act.CUT), {"outcome": "broke", "error_type": "upstream_disconnected"}),
        ({"stream": "x"}, whole({}), {"outcome": "refused", "error_type": "caller_bad_request"}),
    ],
)
def test_each_ending_is_counted_once(
    gateway: GatewayProcess, key: str, solo: Target, fields: dict[str, bool], script: Script, labels: dict[str, str]
) -> None:
    solo.script = script
    before = samples(gateway)
    ask(gateway, chat("solo", **fields), key)

    def counted() -> bool | None:
        return total(samples(gateway), "requests_total") > total(before, "requests_total") or None

    eventually(counted, "the call is counted")
    after = samples(gateway)
    route = "other" if labels["error_type"] == "caller_bad_request" else "solo"
    for name in ("requests_total", "request_duration_seconds_count"):
        assert total(after, name) - total(before, name) == 1
        assert total(after, name, route=route) - total(before, name, route=route) == 1
    endpoint = {"endpoint": "chat/completions", "route": route, **labels}
    assert total(after, "requests_total", **endpoint) - total(before, "requests_total", **endpoint) == 1
    assert (
        total(after, "overhead_seconds_count", route=route) - total(before, "overhead_seconds_count", route=route) == 1
    )
    assert total(after, "in_flight") == 0
    attempts = 0 if route == "other" else 1
    assert total(after, "upstream_attempts_total") - total(before, "upstream_attempts_total") == attempts


@pytest.mark.parametrize(
    ("fields", "script", "counts", "source"),
    [
        ({}, whole(answer(prompt=11, completion=7)), (11, 7), "upstream"),
        ({"stream": True}, stream(event("a"), FINISH, usage_event(13, 5), DONE), (13, 5), "upstream"),
        ({"stream": True}, stream(event("a"), event("b"), event("c"), FINISH, DONE), None, "counted"),
        ({"stream": True}, stream(event("a"), usage_event(3, 1), Act.CUT), (3, 1), "upstream"),
    ],
    ids=["whole", "stream", "without usage", "broken"],
)
def test_tokens_are_those_the_target_reported(
    gateway: GatewayProcess,
    key: str,
    solo: Target,
    fields: dict[str, bool],
    script: Script,
    counts: tuple[int, int] | None,
    source: str,
) -> None:
    solo.script = script
    before = samples(gateway)
    reply = ask(gateway, chat("solo", **fields), key)
    line = record(gateway, reply.header("x-request-id"))
    after = samples(gateway)

    assert line["usage"]["source"] == source
    counted = tuple(
        total(after, "tokens_total", route="solo", direction=way)
        - total(before, "tokens_total", route="solo", direction=way)
        for way in ("in", "out")
    )
    if counts is None:
        assert 1 <= counted[0] < 200
        assert counted[1] >= 3
    else:
        assert counted == counts
        assert (line["usage"]["prompt_tokens"], line["usage"]["completion_tokens"]) == counts


def test_times_to_the_first_token_and_between_tokens(gateway: GatewayProcess, key: str, solo: Target) -> None:
    gates = [Gate(), Gate(), Gate()]
    solo.script = stream(gates[0], event("a"), gates[1], event("b"), gates[2], FINISH, DONE)
    before = samples(gateway)
    with wire(gateway, request(chat("solo", stream=True), key)) as connection:
        solo.wait_for_calls()
        for gate, mark in zip(gates, (b'"a"', b'"b"', b"[DONE]"), strict=True):
            assert total(samples(gateway), "in_flight") == 1
            gate.open()
            connection.read_until(mark)
    eventually(lambda: total(samples(gateway), "in_flight") == 0 or None, "the call's end")
    after = samples(gateway)
    labels = {"route": "solo", "target": "solo"}

    def grown(name: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    assert grown("time_to_first_token_seconds_count") == 1
    assert grown("time_to_first_token_seconds_sum") > 0
    assert grown("inter_token_latency_seconds_count") in (2, 3)
    whole_time = total(after, "request_duration_seconds_sum", route="solo") - total(
        before, "request_duration_seconds_sum", route="solo"
    )
    own = total(after, "overhead_seconds_sum", route="solo") - total(before, "overhead_seconds_sum", route="solo")
    assert grown("inter_token_latency_seconds_sum") <= whole_time
    assert grown("time_to_first_token_seconds_sum") <= whole_time
    assert own < whole_time


def test_waiting_for_the_target_is_no_overhead(gateway: GatewayProcess, key: str, hasty: Target) -> None:
    hasty.script = [Act.STALL]
    reply = ask(gateway, chat("hasty"), key)
    line = record(gateway, reply.header("x-request-id"))
    assert line["duration_s"] > 0.69  # the loop's clock stands still for a turn
    assert line["overhead_s"] < 0.3


def test_denials_are_counted_by_their_dimension(gateway: GatewayProcess, solo: Target) -> None:
    before = samples(gateway)
    rate, slots = gateway.issue(limit=Limit(rpm=1)), gateway.issue(limit=Limit(concurrency=1))
    assert [ask(gateway, chat("solo"), rate.secret).status for _ in range(4)] == [200, 429, 429, 429]
    solo.script = [Act.STALL]
    with wire(gateway, request(chat("solo"), slots.secret)):
        solo.wait_for_calls(2)
        assert [ask(gateway, chat("solo"), slots.secret).status for _ in range(2)] == [429, 429]
    after = samples(gateway)
    for dimension, count in (("rpm", 3), ("concurrency", 2)):
        labels = {"scope": "key", "dimension": dimension}
        assert total(after, "limit_denials_total", **labels) - total(before, "limit_denials_total", **labels) == count
    # A denial that is told again, before its body was read, has no route.
    shed = {"outcome": "shed", "error_type": "policy_rate_limited"}
    assert total(after, "requests_total", **shed) - total(before, "requests_total", **shed) == 5


def test_a_client_that_left_is_counted(gateway: GatewayProcess, key: str, solo: Target) -> None:
    solo.script = stream(event("a"), Act.STALL)
    before = samples(gateway)
    labels = {"route": "solo", "outcome": "gone", "error_type": "caller_gone"}
    with wire(gateway, request(chat("solo", stream=True), key)) as connection:
        connection.read_until(b'"a"')

    def counted() -> bool | None:
        return (
            total(samples(gateway), "requests_total", **labels) - total(before, "requests_total", **labels) == 1 or None
        )

    eventually(counted, "the client that left")
    eventually(lambda: total(samples(gateway), "in_flight") == 0 or None, "nothing in flight")


def test_labels_never_come_from_a_client(gateway: GatewayProcess, key: str, solo: Target) -> None:
    before = set(samples(gateway))
    for i in range(20):
        ask(gateway, chat(f"intruder-{i}"), key)
        ask(gateway, {"model": f"intruder-{i}", "input": "x"}, key, f"/v1/embeddings?intruder={i}")
        ask(gateway, chat("solo", user=f"intruder-{i}"), key, f"/v1/intruder-{i}")
        ask(gateway, chat("solo-alias"), key, headers={"x-intruder": f"intruder-{i}"})
    text = gateway.metrics()
    assert "intruder" not in text
    assert "solo-alias" not in text
    unknown = {"route": "other", "outcome": "refused", "error_type": "caller_unknown_model"}
    assert total(samples(gateway), "requests_total", **unknown) >= 40
    new = {(name, labels) for name, labels in set(samples(gateway)) - before if name.startswith("trunkline_requests")}
    assert len(new) <= 6


def test_the_record_tells_the_calls_way(gateway: GatewayProcess, solo: Target) -> None:
    issued = gateway.issue(tenant="team-a")
    reply = ask(gateway, chat("solo-alias"), issued.secret)
    line = record(gateway, reply.header("x-request-id"))

    assert line["request_id"] == reply.header("x-request-id")
    assert line["key_id"] == issued.record.id
    assert line["tenant"] == "team-a"
    assert (line["route"], line["target"], line["endpoint"]) == ("solo", "solo", "chat/completions")
    assert line["attempts"] == [{"target": "solo", "outcome": "ok", "reason": "only"}]
    assert (line["status"], line["outcome"], line["stream"]) == (200, "answered", False)
    assert line["usage"]["prompt_tokens"] == 5
    assert line["cost_micros"] == 0
    assert 0 < line["overhead_s"] <= line["duration_s"] < 10


def test_there_is_one_line_a_call(gateway: GatewayProcess, key: str, solo: Target) -> None:
    ids = [ask(gateway, chat("solo", stream=i % 2 == 0), key).header("x-request-id") for i in range(20)]
    record(gateway, ids[-1])
    lines = gateway.stdout().splitlines()
    for request_id in ids:
        assert sum(f'"{request_id}"' in line for line in lines) == 1
    assert all(json.loads(line)["event"] == "call" for line in lines if line)


def test_every_metric_is_there_and_explained(gateway: GatewayProcess) -> None:
    text = gateway.metrics()
    names = set(re.findall(r"^# TYPE (trunkline_\w+)", text, re.MULTILINE))
    assert {
        "trunkline_requests_total",
        "trunkline_request_duration_seconds",
        "trunkline_overhead_seconds",
        "trunkline_time_to_first_token_seconds",
        "trunkline_inter_token_latency_seconds",
        "trunkline_tokens_total",
        "trunkline_in_flight",
        "trunkline_upstream_attempts_total",
        "trunkline_limit_denials_total",
        "trunkline_cost_micros_total",
        "trunkline_usage_source_total",
        "trunkline_settle_pending",
        "trunkline_gateways",
        "trunkline_ledger_entries_dropped_total",
        "trunkline_redis_seconds",
    } <= names
    assert re.search(r"^# HELP trunkline_\w+ *$", text, re.MULTILINE) is None
