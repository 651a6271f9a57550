"""Operators take targets out of service and back in while calls flow; a target that comes back is eased in."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer, redis_server
from harness.upstream import Upstream
from integration.client import Reply, ask, eventually, get
from integration.engine import Engine, engines, sent, served, table, talk, where
from integration.test_admin import said

NAMES = ("order-a", "order-b", "order-c")
HEARD = 1.0
"""Seconds within which every worker goes by an order (and as much again for a busy machine)."""


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    """Workers of other tests would report here, too."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(upstream: Upstream, own_redis: RedisServer) -> Iterator[GatewayProcess]:
    """Two workers and an admin listener."""
    routes = {"m": {"targets": [engine.spec() for engine in engines(upstream, *NAMES)], "policy": "least-tokens"}}
    with gateway_process(table(routes), redis_url=own_redis.url, workers=2, admin=True) as started:
        yield started


@pytest.fixture(scope="module")
def key(gateway: GatewayProcess) -> str:
    return gateway.issue().secret


@pytest.fixture(scope="module")
def admin(gateway: GatewayProcess) -> str:
    secret: str = gateway.said("admin", "create", "--name", "tests")["secret"]
    return secret


@pytest.fixture
def fleet(gateway: GatewayProcess, upstream: Upstream, admin: str) -> Iterator[dict[str, Engine]]:
    made = {engine.name: engine for engine in engines(upstream, *NAMES)}
    yield made
    for engine in made.values():
        engine.release()
        said(gateway, "PATCH", f"/targets/{engine.name}", {"state": "open"}, key=admin)


class Flow:
    """Calls one after the other, and when each of them was sent."""

    def __init__(self) -> None:
        self.replies: list[tuple[float, Reply]] = []

    def after(self, moment: float) -> list[str]:
        """The targets of calls that were sent later."""
        return [where(reply) for at, reply in self.replies if at > moment]


@contextmanager
def flowing(gateway: GatewayProcess, key: str) -> Iterator[Flow]:
    """Calls flow as long as the block lasts; none of them may fail."""
    flow, stop = Flow(), threading.Event()

    def run(number: int) -> None:
        while not stop.is_set():
            at = time.monotonic()
            flow.replies.append((at, ask(gateway, talk("m", f"{number} {at}"), key)))
            stop.wait(0.01)  # how many they are is not what this is about

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield flow
    finally:
        stop.set()
        for thread in threads:
            thread.join(50)
    assert {reply.status for _, reply in flow.replies} == {200}


def enough(flow: Flow, moment: float, calls: int = 60) -> list[str]:
    """The targets of that many calls sent after the moment."""
    eventually(lambda: len(flow.after(moment)) >= calls or None, f"{calls} calls more", 40)
    return flow.after(moment)


@pytest.mark.parametrize("by", ["command", "listener"])
def test_an_order_holds_within_a_second_and_costs_no_call(
    gateway: GatewayProcess, admin: str, key: str, fleet: dict[str, Engine], by: str
) -> None:
    def order(verb: str, state: str, *options: str) -> float:
        """Give it; when it has been given."""
        if by == "command":
            gateway.said("targets", verb, "order-a", "--routing", str(gateway.routing), *options)
        else:
            said(gateway, "PATCH", "/targets/order-a", {"state": state}, key=admin)
        return time.monotonic()

    with flowing(gateway, key) as flow:
        eventually(lambda: set(flow.after(0)) == set(NAMES) or None, "each has calls, a young one a few", 40)
        given = order("drain", "drained")
        assert "order-a" not in enough(flow, given + 2 * HEARD)
        given = order("undrain", "open")
        eventually(lambda: "order-a" in flow.after(given) or None, "it has calls again")
        given = order("eject", "ejected", "--for", "300s") if by == "command" else order("eject", "ejected")
        assert "order-a" not in enough(flow, given + 2 * HEARD)


def test_calls_that_run_on_a_drained_target_finish(
    gateway: GatewayProcess, admin: str, key: str, fleet: dict[str, Engine]
) -> None:
    for engine in fleet.values():
        engine.holding = 1
    with sent(gateway, [talk("m", f"{n}", stream=n % 2 == 0) for n in range(12)], key) as clients:
        eventually(lambda: sum(engine.running for engine in fleet.values()) == 12 or None, "all run")
        drained = max(fleet.values(), key=lambda engine: engine.running)
        running, path = drained.running, f"/targets/{drained.name}"
        version = said(gateway, "PATCH", path, {"state": "drained"}, key=admin)["order"]["version"]

        def heeded() -> bool | None:
            shown = said(gateway, "GET", path, key=admin)
            states: list[dict[str, Any]] = shown["gateways"]
            return (
                len(states) == 2 and all(at["order"] >= version for at in states) and shown["running"] == running
            ) or None

        eventually(heeded, "both workers heed it and say what runs there")
        for engine in fleet.values():
            engine.release()
        replies = [client.answer() for client in clients]
        assert [reply.status for reply in replies] == [200] * 12
        assert [where(reply) for reply in replies].count(drained.name) == running == len(drained.calls)


def test_an_ejection_by_order_ends_by_itself(
    gateway: GatewayProcess, admin: str, key: str, fleet: dict[str, Engine]
) -> None:
    said(gateway, "PATCH", "/targets/order-b", {"state": "ejected", "seconds": 3}, key=admin)

    def back() -> bool | None:
        return served(gateway, talk("m", str(time.monotonic())), key) == "order-b" or None

    def order() -> Any:
        return said(gateway, "GET", "/targets/order-b", key=admin)["order"]

    assert order()["state"] == "ejected"
    eventually(lambda: order() is None or None, "the order has ended", 30)
    eventually(back, "it is used again", 30)


def test_what_is_drained_everywhere_is_refused_clearly(
    gateway: GatewayProcess, admin: str, key: str, fleet: dict[str, Engine]
) -> None:
    for name in NAMES:
        said(gateway, "PATCH", f"/targets/{name}", {"state": "drained"}, key=admin)

    def refused() -> Reply | None:
        replies = [ask(gateway, talk("m", f"{n}"), key) for n in range(4)]
        return replies[0] if {reply.status for reply in replies} == {503} else None

    reply = eventually(refused, "no target may be used")
    assert reply.header("retry-after") == "1" and "order-" not in reply.error["message"]


def test_a_target_that_comes_back_is_eased_in(upstream: Upstream, fleet: dict[str, Engine]) -> None:
    """Its cache is empty: for half a minute it has fewer conversations than the others."""
    routes = {"m": {"targets": [engine.spec() for engine in fleet.values()]}}
    young = fleet["order-a"]
    with gateway_process(table(routes)) as own:
        key = own.issue().secret
        topics = [f"Topic {n}" for n in range(60)]
        before = {topic: served(own, talk("m", topic), key) for topic in topics}
        assert list(before.values()).count(young.name) > 10
        young.target.healthy = False
        eventually(lambda: get(own, "/ready").json()["targets"][young.name] == "down" or None, "it is down")
        away = {topic: served(own, talk("m", topic, 2), key) for topic in topics}
        assert young.name not in away.values()
        assert all(away[topic] == place for topic, place in before.items() if place != young.name), "the rest stays"
        young.target.healthy = True
        eventually(lambda: get(own, "/ready").json()["targets"][young.name] == "up" or None, "it is up")
        back = [served(own, talk("m", f"New {topic}"), key) for topic in topics]
        assert back.count(young.name) < list(before.values()).count(young.name) / 2

        def listed() -> bool | None:
            shown = own.said("targets", "list", "--routing", str(own.routing))
            (state,) = [each for each in shown if each["name"] == young.name]
            return (state["state"] == "up" and state["weight"] <= 1.0) or None

        eventually(listed, "the list, which is told each second, has it up")


def test_the_command_tells_a_script_what_it_did(gateway: GatewayProcess, fleet: dict[str, Engine]) -> None:
    done = gateway.said("targets", "drain", "order-c", "--reason", "new card", "--routing", str(gateway.routing))
    assert (done["name"], done["order"]["state"], done["order"]["reason"]) == ("order-c", "drained", "new card")
