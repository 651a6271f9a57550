"""Shadow traffic next to real calls: whatever the shadow target does, its clients' calls are as without it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Act, Script, Upstream, event, stream, whole
from integration.client import Reply, ask, eventually, record, samples, total
from integration.engine import Engine, engines, table, talk

SHADOWS = {"all": (1.0, 64), "few": (1.0, 2), "some": (0.25, 64)}
"""By route: the share of its calls that is copied, and how many copies there may be at once."""


@pytest.fixture(scope="module")
def fleet(upstream: Upstream) -> dict[str, Engine]:
    return {engine.name: engine for engine in engines(upstream, *SHADOWS, *(f"shadow-{route}" for route in SHADOWS))}


@pytest.fixture(scope="module")
def gateway(fleet: dict[str, Engine]) -> Iterator[GatewayProcess]:
    routes = {}
    for route, (share, most) in SHADOWS.items():
        mirror = fleet[f"shadow-{route}"].spec(model="the-new-one", api_key="${SHADOW_KEY}")
        shadow = {"target": mirror, "share": share, "concurrency": most}
        routes[route] = {"targets": [fleet[route].spec()], "shadow": shadow, "timeouts": {"idle": "20s"}}
    with gateway_process(table(routes), env={"SHADOW_KEY": "secret-of-shadow"}) as started:
        yield started


@pytest.fixture
def key(gateway: GatewayProcess, fleet: dict[str, Engine]) -> Iterator[str]:
    for engine in fleet.values():
        engine.renew()
    yield gateway.issue().secret
    for engine in fleet.values():
        engine.release()


def shadowed(gateway: GatewayProcess, route: str, outcome: str) -> float:
    return total(samples(gateway), "shadow_calls_total", route=route, target=f"shadow-{route}", outcome=outcome)


def plain(reply: Reply) -> tuple[int, bytes, list[tuple[str, str]]]:
    """What a client sees of an answer, however it was cut into packets."""
    told = [(name.lower(), value) for name, value in reply.headers if name.lower().startswith("x-trunkline-")]
    return reply.status, reply.body, sorted(told)


HANGS: Script = [Act.STALL]
WAYS: dict[str, tuple[Script, str]] = {
    "crashes": ([Act.RESET], "other"),
    "refuses": (whole({}, 500), "other"),
    "cuts": (stream(event("Hi"), Act.CUT), "other"),
    "nonsense": ([b"220 ready\r\n\r\n", Act.CUT], "other"),
    "answers": (whole({"id": "x", "choices": []}), "same"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_the_answer_is_the_same_whatever_the_shadow_does(
    gateway: GatewayProcess, key: str, fleet: dict[str, Engine], way: str, streamed: bool
) -> None:
    without = plain(ask(gateway, talk("all", "Hi", stream=streamed), key))
    shadow = fleet["shadow-all"]
    shadow.target.wait_for_calls(1)
    script, outcome = WAYS[way]
    if way == "answers" and streamed:
        script = stream(event("Hi"), event(finish="stop"), b"data: [DONE]\n\n")
    before, shadow.script = shadowed(gateway, "all", outcome), script
    reply = ask(gateway, talk("all", "Hi", stream=streamed), key)
    assert plain(reply) == without
    eventually(lambda: shadowed(gateway, "all", outcome) > before or None, "it is compared")
    line = record(gateway, reply.header("x-request-id"))
    assert [each["target"] for each in line["attempts"]] == ["all"] and line["outcome"] == "answered"
    copied = shadow.calls[-1]
    assert copied.json()["model"] == "the-new-one"
    assert copied.json()["messages"] == fleet["all"].calls[-1].json()["messages"]
    assert copied.header("authorization") == "Bearer secret-of-shadow" and key not in repr(copied.headers)
    assert "secret-of-shadow" not in repr(reply.headers) + gateway.stderr()


def test_a_shadow_that_hangs_holds_up_nobody_and_what_is_too_much_is_dropped(
    gateway: GatewayProcess, key: str, fleet: dict[str, Engine]
) -> None:
    shadow, before = fleet["shadow-few"], shadowed(gateway, "few", "dropped")
    shadow.script = HANGS
    replies = [ask(gateway, talk("few", f"{n}", stream=n % 2 > 0), key) for n in range(20)]
    assert [reply.status for reply in replies] == [200] * 20
    shadow.target.wait_for_calls(2)
    assert shadow.peak == len(shadow.calls) == 2, "its two places are taken"
    assert shadowed(gateway, "few", "dropped") == before + 18
    assert len(fleet["few"].calls) == 20


def test_only_its_share_of_the_calls_is_copied(gateway: GatewayProcess, key: str, fleet: dict[str, Engine]) -> None:
    before = shadowed(gateway, "some", "same")
    assert {ask(gateway, talk("some", f"{n}"), key).status for n in range(200)} == {200}
    shadow = fleet["shadow-some"]
    eventually(lambda: shadowed(gateway, "some", "same") - before == len(shadow.calls) or None, "all are compared")
    assert 25 <= len(shadow.calls) <= 80
    copied = [call.json()["messages"] for call in shadow.calls]
    assert all(messages in [call.json()["messages"] for call in fleet["some"].calls] for messages in copied)


def test_a_slow_shadow_is_measured(gateway: GatewayProcess, key: str, fleet: dict[str, Engine]) -> None:
    def measured(what: str) -> float:
        return total(samples(gateway), f"shadow_time_to_first_token_seconds_{what}", route="all")

    count, seconds = measured("count"), measured("sum")
    fleet["shadow-all"].work = 0.4
    for n in range(3):
        assert ask(gateway, talk("all", f"{n}", stream=True), key).status == 200
    eventually(lambda: measured("count") == count + 3 or None, "all are compared")
    assert measured("sum") - seconds > 1.2
    ticks = total(samples(gateway), "loop_lag_seconds_count")
    eventually(lambda: total(samples(gateway), "loop_lag_seconds_count") > ticks + 25 or None, "seconds have passed")
    assert total(samples(gateway), "shadow_tokens_ratio", route="all") > 0, "it is a target of the table, too"


def test_what_the_primary_failed_is_not_copied(gateway: GatewayProcess, key: str, fleet: dict[str, Engine]) -> None:
    fleet["all"].script = whole({"error": {"message": "no"}}, 400)
    assert ask(gateway, talk("all", "Bad"), key).status == 400
    fleet["all"].script = None
    assert ask(gateway, talk("all", "Good"), key).status == 200
    fleet["shadow-all"].target.wait_for_calls(1)
    assert [call.json()["messages"][0]["content"] for call in fleet["shadow-all"].calls] == ["Good"]
