"""The client leaves: the target's connection is closed at once, the slot is free, the record says so."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from harness.gateway_process import GatewayProcess, Issued
from harness.upstream import Act, Script, Target, event, head, stream
from integration.client import UNEXPIRED, Wire, ask, chat, eventually, record, request, wire

from gateway.core.types import Limit

HI = event("Hi")
PHASES: dict[str, tuple[dict[str, bool], Script, bytes | None]] = {
    "whole": ({}, [Act.STALL], None),
    "whole after the head": ({}, [head(content_type="application/json", content_length=9) + b"{", Act.STALL], None),
    "stream before its head": ({"stream": True}, [Act.STALL], None),
    "stream before its first event": ({"stream": True}, stream(Act.STALL), None),
    "stream after a comment": ({"stream": True}, stream(b": wait\n\n", Act.STALL), None),
    "stream midway": ({"stream": True}, stream(HI, HI, Act.STALL), HI),
}
WAYS: dict[str, Callable[[Wire], None]] = {"close": Wire.leave, "reset": Wire.reset}


@pytest.fixture
def single(gateway: GatewayProcess) -> Issued:
    """A key for one call at a time."""
    return gateway.issue(limit=Limit(concurrency=1))


def is_free(gateway: GatewayProcess, issued: Issued) -> None:
    """The key's only slot is free at once, not only when a lease expires."""
    eventually(lambda: ask(gateway, chat("good"), issued.secret).status == 200 or None, "a free slot", UNEXPIRED)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("phase", PHASES)
def test_the_target_is_told_and_the_slot_is_free(
    gateway: GatewayProcess, solo: Target, single: Issued, phase: str, way: str
) -> None:
    fields, solo.script, wait_for = PHASES[phase]
    with wire(gateway, request(chat("solo", **fields), single.secret)) as connection:
        received = solo.wait_for_calls()
        if wait_for is not None:
            connection.read_until(wait_for)
        assert ask(gateway, chat("good"), single.secret).status == 429  # the slot is taken
        WAYS[way](connection)
        assert received.closed.wait(30)
    is_free(gateway, single)
    line = record(gateway, received.header("x-request-id"))
    assert (line["outcome"], line["status"], line["error_type"]) == ("gone", 499, "caller_gone")
    assert line["key_id"] == single.record.id


def test_a_client_that_leaves_amid_its_body_costs_nothing(
    gateway: GatewayProcess, solo: Target, single: Issued
) -> None:
    with wire(gateway, request(b'{"model"', single.secret, length=1000)) as connection:
        connection.leave()
    is_free(gateway, single)
    assert solo.calls == []
    eventually(lambda: "trunkline_in_flight 0.0" in gateway.metrics() or None, "nothing in flight")


def test_a_client_that_leaves_amid_a_flood_is_noticed(gateway: GatewayProcess, solo: Target, single: Issued) -> None:
    """It has stopped reading, so the gateway's own writes are what waits."""
    solo.script = stream(*[event("x" * 60_000)] * 400, Act.STALL)
    with wire(gateway, request(chat("solo", stream=True), single.secret)) as connection:
        received = solo.wait_for_calls()
        connection.read_until(b"xxx")
        connection.leave()
        assert received.closed.wait(30)
    is_free(gateway, single)


def test_half_a_close_is_no_leave_of_the_others(gateway: GatewayProcess, key: str, solo: Target) -> None:
    """One client leaves; another with the same key and target is served on."""
    solo.scripts = [stream(HI, Act.STALL)]
    with wire(gateway, request(chat("solo", stream=True), key)) as leaving:
        leaving.read_until(HI)
        leaving.leave()
        assert ask(gateway, chat("solo"), key).status == 200
    assert solo.calls[0].closed.wait(30)


def test_many_that_leave_leave_nothing_behind(gateway: GatewayProcess, solo: Target) -> None:
    ten = gateway.issue(limit=Limit(concurrency=10))
    solo.script = stream(HI, Act.STALL)
    for _ in range(5):
        open_ = [Wire(gateway.port) for _ in range(10)]
        for connection in open_:
            connection.send(request(chat("solo", stream=True), ten.secret))
        for connection in open_:
            connection.read_until(HI)
        for connection in open_:
            connection.leave()

        def all_free() -> bool | None:
            return "trunkline_in_flight 0.0" in gateway.metrics() or None

        eventually(all_free, "nothing in flight")
    assert len(solo.calls) == 50
    assert all(call.closed.wait(30) for call in solo.calls)


@pytest.mark.parametrize(
    "script",
    [
        [*stream(HI, event(finish="stop"), b"data: [DONE]\n\n")],
        stream(HI, Act.CUT),
        [Act.CUT],
        [Act.RESET],
        stream(b'data: {"error": {"code": 400}}\n\n'),
        stream(HI, b"data: nonsense\n\n"),
    ],
    ids=["answered", "broke", "cut", "reset", "refused", "nonsense"],
)
def test_every_other_ending_frees_the_slot_too(
    gateway: GatewayProcess, solo: Target, single: Issued, script: Script
) -> None:
    for _ in range(3):
        solo.script = script
        answer = ask(gateway, chat("solo", stream=True), single.secret)
        assert answer.status != 429
        is_free(gateway, single)


@pytest.mark.parametrize("body", [b"nonsense", json.dumps(chat("no-such")).encode(), json.dumps(chat("dead")).encode()])
def test_refusals_free_or_never_take_the_slot(gateway: GatewayProcess, single: Issued, body: bytes) -> None:
    for _ in range(3):
        assert ask(gateway, body, single.secret).status in (400, 404, 502)
    is_free(gateway, single)
