"""Another target is tried when, and only when, nothing of an answer has reached the client."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Act, Target, Upstream, event, scripted_upstream, stream, whole
from integration.cases import FAILURES, most_calls
from integration.client import ask, chat, eventually, get, record


def pair(upstream: Upstream, case: str) -> tuple[Target, Target]:
    """The two targets of a route of their own, as new; their route takes turns."""
    first, second = upstream.target(f"{case}-a"), upstream.target(f"{case}-b")
    first.restore()
    second.restore()
    return first, second


@pytest.mark.parametrize("case", FAILURES)
def test_the_other_target_is_tried(gateway: GatewayProcess, key: str, upstream: Upstream, case: str) -> None:
    bad, good = pair(upstream, case)
    bad.script, _, error_type = FAILURES[case]
    fields = {"stream": True} if "stream" in case or "comment" in case else {}

    lines = []
    for _ in range(2):  # one of them starts at the bad one
        answer = ask(gateway, chat(f"pair-{case}", **fields), key)
        assert answer.status == 200
        assert answer.header("x-trunkline-target") == f"{case}-b"
        assert "secret" not in repr(answer)
        lines.append(record(gateway, answer.header("x-request-id")))

    assert len(bad.calls) in most_calls(case)
    assert len(good.calls) == 2
    (tried,) = [line["attempts"] for line in lines if len(line["attempts"]) == 2]
    assert [attempt["target"] for attempt in tried] == [f"{case}-a", f"{case}-b"]
    assert tried[0]["outcome"].startswith(error_type)
    assert tried[1]["outcome"] == "ok"
    assert all(line["target"] == f"{case}-b" for line in lines)
    assert bad.calls[0].body in {call.body for call in good.calls}


def test_a_whole_answer_that_takes_long_is_not_made_twice(
    gateway: GatewayProcess, key: str, upstream: Upstream
) -> None:
    first, second = pair(upstream, "stream-hang")
    first.script = second.script = [Act.STALL]
    answer = ask(gateway, chat("pair-stream-hang"), key)
    assert (answer.status, answer.error["code"], answer.header("x-should-retry")) == (504, "answer_timeout", "false")
    assert len(first.calls) + len(second.calls) == 1
    eventually(lambda: all(call.closed.is_set() for call in first.calls + second.calls), "its connection is closed")


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_the_callers_fault_is_not_tried_again(
    gateway: GatewayProcess, key: str, upstream: Upstream, status: int
) -> None:
    first, second = pair(upstream, "500")
    first.script = second.script = whole({"error": {"message": "no"}}, status)
    assert ask(gateway, chat("pair-500"), key).status == status
    assert len(first.calls) + len(second.calls) == 1


def test_nothing_is_tried_after_the_first_byte(gateway: GatewayProcess, key: str, upstream: Upstream) -> None:
    first, second = pair(upstream, "eof")
    first.script = second.script = stream(event("Hi"), Act.CUT)
    answer = ask(gateway, chat("pair-eof", stream=True), key)
    assert answer.body.startswith(event("Hi"))
    assert b"[DONE]" not in answer.body
    assert len(first.calls) + len(second.calls) == 1


def test_when_all_fail_the_last_failure_is_told(gateway: GatewayProcess, key: str, upstream: Upstream) -> None:
    first, second = pair(upstream, "reset")
    first.script = second.script = [Act.CUT]
    answer = ask(gateway, chat("pair-reset"), key)
    assert answer.status == 502
    assert answer.error["code"] == "upstream_disconnected"
    assert {len(first.calls), len(second.calls)} <= {1, 2}


@pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["whole", "stream"])
def test_a_call_that_crosses_the_end_of_its_connection_fails_and_is_not_sent_again(
    gateway: GatewayProcess, key: str, solo: Target, fields: dict[str, bool]
) -> None:
    """The target may have read it: a prompt that kills an engine must not be sent twice unseen."""
    solo.lone = True
    statuses = [ask(gateway, chat("solo", **fields), key).status for _ in range(8)]
    assert statuses.count(200) == len(solo.calls) > 0
    assert all(then == 502 for first, then in pairwise(statuses) if first == 200), statuses


def test_the_fallback_serves_while_the_targets_cannot(gateway: GatewayProcess, key: str, upstream: Upstream) -> None:
    down, fallback = upstream.target("tier-down"), upstream.target("tier-fallback")
    down.restore()
    fallback.restore()

    assert ask(gateway, chat("tiers"), key).header("x-trunkline-target") == "tier-down"

    down.script = whole({}, 500)
    answer = ask(gateway, chat("tiers"), key)
    assert answer.status == 200
    assert answer.header("x-trunkline-target") == "tier-fallback"

    down.restore()
    assert ask(gateway, chat("tiers"), key).header("x-trunkline-target") == "tier-down"


def test_a_target_that_refuses_connections() -> None:
    """Its port closes between two probes: the first call learns it, and is served by the other target."""
    with scripted_upstream() as one, scripted_upstream() as other:
        targets = [
            {"name": "one", "backend": "openai", "url": one.target("x").url},
            {"name": "other", "backend": "openai", "url": other.target("x").url},
        ]
        table = {"routes": {"m": {"targets": targets, "policy": "round-robin"}}}
        with gateway_process(json.dumps(table)) as gateway:
            key = gateway.issue().secret

            def tried() -> list[str] | None:
                one.vanish()
                try:
                    answers = [ask(gateway, chat("m"), key) for _ in range(2)]
                finally:
                    one.listen()
                assert [answer.status for answer in answers] == [200, 200]
                lines = [record(gateway, answer.header("x-request-id")) for answer in answers]
                return next((line["attempts"] for line in lines if len(line["attempts"]) == 2), None)

            def tried_while_up() -> list[str] | None:
                up = get(gateway, "/ready").json()["targets"]["one"] == "up"
                return tried() if up else None

            attempts = eventually(tried_while_up, "a call that met the closed port")
            assert attempts == [
                {"target": "one", "outcome": "upstream_unreachable", "reason": "turn"},
                {"target": "other", "outcome": "ok", "reason": "turn"},
            ]
