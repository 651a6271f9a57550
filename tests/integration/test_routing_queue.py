"""The queue before full targets: who goes first, who leaves, who is refused, and what is told of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Upstream
from integration.client import Wire, ask, eventually, record, samples, total
from integration.engine import Engine, send, sent, table, talk, text


@pytest.fixture(scope="module")
def engine(upstream: Upstream) -> Engine:
    return Engine(upstream, "queue")


@pytest.fixture(scope="module")
def gateway(engine: Engine) -> Iterator[GatewayProcess]:
    """One slot; "brief" is a queue of one call and a short time, "bytes" one of few bytes, "none" is none at all."""

    def route(name: str, slots: int = 1, **queue: object) -> dict[str, object]:
        return {"targets": [{**engine.spec(max_inflight=slots), "name": name}], "queue": queue}

    routes = {
        "m": route("queue-m", wait="30s"),
        "ten": route("queue-ten", 10, wait="30s"),
        "brief": route("queue-brief", calls=1, wait="2s"),
        "bytes": route("queue-bytes", size="16KiB", wait="20s"),
        "none": route("queue-none", calls=0),
    }
    with gateway_process(table(routes)) as started:
        yield started


@pytest.fixture(autouse=True)
def renewed(engine: Engine) -> Iterator[None]:
    engine.renew()
    engine.holding = 1
    yield
    engine.release()


def waiting(gateway: GatewayProcess, route: str, calls: int) -> None:
    """Return when so many calls wait."""
    eventually(lambda: total(samples(gateway), "queue_calls", route=route) == calls or None, f"{calls} wait")


def order(gateway: GatewayProcess, engine: Engine, asked: list[tuple[str, str]]) -> list[str]:
    """The topics of queued calls in the order in which they are served, each given as topic and key."""
    first = asked[0][1]
    with ExitStack() as stack:
        stack.enter_context(sent(gateway, [talk("m", "first")], first))
        engine.target.wait_for_calls(1)
        clients: list[Wire] = []
        for n, (topic, key) in enumerate(asked, 1):
            clients.append(send(gateway, talk("m", topic), key))
            stack.callback(clients[-1].leave)
            waiting(gateway, "m", n)
        for n in range(len(asked)):
            engine.held[n].open()
            engine.target.wait_for_calls(n + 2)
        engine.release()
        assert [client.answer().status for client in clients] == [200] * len(asked)
    assert engine.peak == 1
    return [call.json()["messages"][0]["content"] for call in engine.calls[1:]]


def test_high_goes_before_normal_before_low(gateway: GatewayProcess, engine: Engine) -> None:
    keys = {priority: gateway.issue(priority=priority).secret for priority in ("low", "normal", "high")}
    asked = [(f"{priority} {n}", keys[priority]) for priority in keys for n in range(2)]
    assert order(gateway, engine, asked) == [
        f"{priority} {n}" for priority in ("high", "normal", "low") for n in range(2)
    ]


def test_tenants_take_turns_however_many_calls_one_of_them_has(gateway: GatewayProcess, engine: Engine) -> None:
    many, few = (gateway.issue(tenant=tenant).secret for tenant in ("many", "few"))
    found = order(gateway, engine, [*((f"many {n}", many) for n in range(6)), *((f"few {n}", few) for n in range(2))])
    assert [topic for topic in found if topic.startswith("many")] == [f"many {n}" for n in range(6)]
    assert found.index("few 0") <= 2 and found.index("few 1") <= 4, found


def test_who_leaves_frees_its_place(gateway: GatewayProcess, engine: Engine) -> None:
    key = gateway.issue().secret
    with sent(gateway, [talk("brief", "Run")], key):
        engine.target.wait_for_calls(1)
        for _ in range(3):
            with sent(gateway, [talk("brief", "Wait and leave")], key):
                waiting(gateway, "brief", 1)
                assert ask(gateway, talk("brief", "No place"), key).status == 429
            waiting(gateway, "brief", 0)
        assert len(engine.calls) == 1
        last = send(gateway, talk("brief", "Wait"), key)
        waiting(gateway, "brief", 1)
        engine.release()
        assert last.answer().status == 200
    assert total(samples(gateway), "queue_bytes") == 0


@pytest.mark.parametrize("route", ["brief", "bytes", "none"])
def test_a_full_queue_refuses_at_once(gateway: GatewayProcess, engine: Engine, route: str) -> None:
    key = gateway.issue().secret
    ahead = {"brief": [talk("brief", "Wait")], "bytes": [talk("bytes", text(3500))], "none": []}[route]
    with sent(gateway, [talk(route, "Run")], key):
        engine.target.wait_for_calls(1)
        with sent(gateway, ahead, key):
            waiting(gateway, route, len(ahead))
            refused = ask(gateway, talk(route, text(1000)), key)
            assert refused.status == 429
            assert 1 <= float(refused.header("retry-after") or 0) <= 120
            assert refused.error["type"] == "rate_limit_error"
            line = record(gateway, refused.header("x-request-id"))
            assert (line["outcome"], line["attempts"], line["target"]) == ("shed", [], "")
            assert line["duration_s"] < 1.5, "it did not wait"
            # A call of the test before, whose client has left, may still get its turn.
            assert [call.json()["model"] for call in engine.calls].count(route) == 1


def test_who_has_waited_long_enough_is_refused(gateway: GatewayProcess, engine: Engine) -> None:
    key = gateway.issue().secret
    with sent(gateway, [talk("brief", "Run")], key):
        engine.target.wait_for_calls(1)
        refused = ask(gateway, talk("brief", "Wait"), key)
        assert refused.status == 429 and refused.header("retry-after")
        assert record(gateway, refused.header("x-request-id"))["duration_s"] >= 1.9
        waiting(gateway, "brief", 0)
    assert len(engine.calls) == 1


def test_waiting_is_told_in_the_record_and_in_metrics(gateway: GatewayProcess, engine: Engine) -> None:
    key = gateway.issue().secret
    before = total(samples(gateway), "queue_wait_seconds_count", route="m")
    with sent(gateway, [talk("m", "Run")], key) as (first,):
        engine.target.wait_for_calls(1)
        second = send(gateway, talk("m", text(1000)), key)
        waiting(gateway, "m", 1)
        assert total(samples(gateway), "queue_bytes", route="m") > 4000
        engine.release()
        direct, queued = (record(gateway, wire.answer().header("x-request-id")) for wire in (first, second))
    assert direct["queue_s"] < queued["queue_s"] <= queued["duration_s"]
    assert queued["overhead_s"] < queued["duration_s"]
    assert total(samples(gateway), "queue_wait_seconds_count", route="m") == before + 1


def test_low_priority_leaves_room_for_others(gateway: GatewayProcess, engine: Engine) -> None:
    """Of ten slots it fills seven."""
    low, normal = (gateway.issue(priority=priority).secret for priority in ("low", "normal"))
    with sent(gateway, [talk("ten", f"{n}") for n in range(9)], low):
        waiting(gateway, "ten", 2)
        assert engine.running == 7
        with sent(gateway, [talk("ten", f"{n}") for n in range(3)], normal):
            eventually(lambda: engine.running == 10 or None, "the rest is for others")
            waiting(gateway, "ten", 2)
