"""Where calls go when their targets cannot take them: pauses of targets, fallbacks, other routes; and canaries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Upstream, whole
from integration.client import Reply, ask, eventually, record, samples, total
from integration.engine import Engine, served, table, talk, where

NAMES = ("rest-a", "rest-b", "first", "second", "third", "last", "stable", "canary")
BUSY = whole({"error": "busy"}, 429, retry_after=40)


@pytest.fixture(scope="module")
def fleet(upstream: Upstream) -> dict[str, Engine]:
    return {name: Engine(upstream, name) for name in NAMES}


@pytest.fixture(scope="module")
def table_text(fleet: dict[str, Engine]) -> str:
    return table(
        {
            "rest": {"targets": [fleet[name].spec() for name in ("rest-a", "rest-b")], "policy": "round-robin"},
            "tiers": {
                "targets": [fleet["first"].spec()],
                "fallback": [fleet["third"].spec(tier=2), fleet["second"].spec()],
                "fallback_route": "other",
            },
            "other": {"targets": [fleet["last"].spec()]},
            "trial": {"targets": [fleet["stable"].spec(), fleet["canary"].spec(canary=0.2)]},
        }
    )


@pytest.fixture
def gateway(table_text: str, fleet: dict[str, Engine]) -> Iterator[GatewayProcess]:
    """Of its own for each test: pauses and ejections last longer than that."""
    for engine in fleet.values():
        engine.renew()
    with gateway_process(table_text) as started:
        yield started


def told(gateway: GatewayProcess, reply: Reply) -> tuple[str, str | None, str | None]:
    """What an answer's headers say of its way; the record says the same."""
    assert reply.status == 200, reply
    line = record(gateway, reply.header("x-request-id"))
    fallback, attempts = reply.header("x-trunkline-fallback"), reply.header("x-trunkline-attempts")
    assert (line["target"], line.get("fallback"), str(len(line["attempts"]))) == (where(reply), fallback, attempts)
    return where(reply), fallback, attempts


def test_a_target_that_asks_for_a_pause_has_it(gateway: GatewayProcess, fleet: dict[str, Engine]) -> None:
    key = gateway.issue().secret
    resting, other = fleet["rest-a"], fleet["rest-b"]
    resting.script = BUSY
    replies = [ask(gateway, talk("rest", f"{n}"), key) for n in range(12)]
    assert [reply.status for reply in replies] == [200] * 12
    assert (len(resting.calls), len(other.calls)) == (1, 12)
    listed = gateway.said("targets", "list", "--routing", str(gateway.routing))
    states = {each["name"]: each["state"] for each in listed}
    assert "ejected" not in states.values(), "shedding load is no failure"


def test_when_all_rest_clients_are_told_for_how_long(gateway: GatewayProcess, fleet: dict[str, Engine]) -> None:
    key = gateway.issue().secret
    fleet["rest-a"].script = BUSY
    fleet["rest-b"].script = whole({}, 503, retry_after=90)
    assert ask(gateway, talk("rest", "Both are asked"), key).status == 503
    asked = len(fleet["rest-a"].calls), len(fleet["rest-b"].calls)
    assert asked == (1, 1)
    for n in range(5):
        refused = ask(gateway, talk("rest", f"{n}"), key)
        assert refused.status == 429
        assert 30 <= float(refused.header("retry-after") or 0) <= 40, "until the first of them is back"
        line = record(gateway, refused.header("x-request-id"))
        assert line["duration_s"] < 1.5 and line["attempts"] == []
    assert (len(fleet["rest-a"].calls), len(fleet["rest-b"].calls)) == asked


def test_a_short_pause_is_waited_for(gateway: GatewayProcess, fleet: dict[str, Engine]) -> None:
    key = gateway.issue().secret
    fleet["rest-a"].script = fleet["rest-b"].script = whole({}, 429, retry_after=2)
    ask(gateway, talk("rest", "Both are asked"), key)
    fleet["rest-a"].script = fleet["rest-b"].script = None
    reply = ask(gateway, talk("rest", "Waits"), key)
    assert reply.status == 200
    assert record(gateway, reply.header("x-request-id"))["queue_s"] > 0.2


def test_tiers_and_then_another_route_each_with_its_reason(gateway: GatewayProcess, fleet: dict[str, Engine]) -> None:
    key = gateway.issue().secret
    assert told(gateway, ask(gateway, talk("tiers", "Hi"), key)) == ("first", None, "1")
    fleet["first"].script = whole({}, 500)
    assert told(gateway, ask(gateway, talk("tiers", "Hi"), key)) == ("second", "failed", "2")
    fleet["second"].script = whole({}, 500)
    assert told(gateway, ask(gateway, talk("tiers", "Hi"), key)) == ("third", "failed", "3")
    fleet["third"].script = whole({}, 500)
    assert told(gateway, ask(gateway, talk("tiers", "Hi"), key)) == ("last", "failed", "4")
    assert fleet["last"].calls[-1].json()["model"] == "other", "it would not know the other name"
    found = samples(gateway)
    assert total(found, "fallbacks_total", route="tiers", reason="failed") >= 2
    assert total(found, "upstream_attempts_total", route="tiers", target="last", outcome="ok") == 1


def test_targets_that_rest_are_passed_over(gateway: GatewayProcess, fleet: dict[str, Engine]) -> None:
    key = gateway.issue().secret
    for name in ("first", "second"):
        fleet[name].script = BUSY
    ask(gateway, talk("tiers", "Both are asked"), key)
    assert told(gateway, ask(gateway, talk("tiers", "Hi"), key)) == ("third", "resting", "1")
    assert total(samples(gateway), "fallbacks_total", route="tiers", reason="resting") == 1


def test_a_target_that_is_down_is_passed_over(gateway: GatewayProcess, fleet: dict[str, Engine]) -> None:
    key = gateway.issue().secret
    fleet["first"].target.healthy = False

    def passed() -> bool | None:
        return told(gateway, ask(gateway, talk("tiers", "Hi"), key)) == ("second", "down", "1") or None

    eventually(passed, "the probe has found out")
    assert "target first is down: status 503" in gateway.stderr()


def test_other_routes_errors_are_not_hidden(gateway: GatewayProcess, fleet: dict[str, Engine]) -> None:
    key = gateway.issue().secret
    for name in ("first", "second", "third", "last"):
        fleet[name].script = whole({}, 500)
    failed = ask(gateway, talk("tiers", "Hi"), key)
    assert failed.status == 502
    assert [each["target"] for each in record(gateway, failed.header("x-request-id"))["attempts"]] == [
        "first", "second", "third", "last",
    ]  # fmt: skip
    fleet["first"].script = whole({"error": {"message": "bad"}}, 400)
    assert ask(gateway, talk("tiers", "Hi"), key).status == 400, "the caller's fault is nobody's to retry"


def test_a_canary_has_its_share_of_the_conversations_and_keeps_them(
    gateway: GatewayProcess, fleet: dict[str, Engine]
) -> None:
    key = gateway.issue().secret
    topics = [f"Conversation {n}" for n in range(200)]
    places = {topic: served(gateway, talk("trial", topic), key) for topic in topics}
    share = Counter(places.values())["canary"] / len(topics)
    assert 0.1 < share < 0.32
    for topic in topics[:40]:
        assert served(gateway, talk("trial", topic, 2), key) == places[topic]
    fleet["canary"].script = whole({}, 500)
    for topic, place in places.items():
        if place == "canary":
            assert served(gateway, talk("trial", topic, 3), key) == "stable"
