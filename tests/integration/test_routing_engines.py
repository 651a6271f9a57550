"""What engines tell of themselves corrects what the gateway counts: load, context, differences, refused credentials."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Upstream, whole
from integration.client import ask, eventually, get, record, samples, total
from integration.engine import Engine, engines, sent, served, table, talk, text

NAMES = ("engine-a", "engine-b", "home-a", "home-b", "short", "long", "locked", "unlocked")


@pytest.fixture(scope="module")
def fleet(upstream: Upstream) -> dict[str, Engine]:
    made = {engine.name: engine for engine in engines(upstream, *NAMES)}
    made["short"].list_model(1000)
    made["long"].list_model(8000)
    made["locked"].pages["/v1/models"] = whole({"error": "who are you?"}, 401)
    return made


@pytest.fixture(scope="module")
def gateway(fleet: dict[str, Engine]) -> Iterator[GatewayProcess]:
    """ "told" and "cached" have engines with metrics, "sizes" two contexts, "locks" a wrong credential."""

    def targets(*names: str, **values: object) -> list[dict[str, object]]:
        return [fleet[name].spec("vllm", api_key="${ENGINE_KEY}", **values) for name in names]

    routes = {
        "told": {"targets": targets("engine-a", "engine-b"), "policy": "least-tokens"},
        "cached": {"targets": targets("home-a", "home-b", kv_tokens=24_000)},
        "sizes": {"targets": targets("short", "long"), "policy": "round-robin"},
        "locks": {"targets": targets("locked", "unlocked"), "policy": "round-robin"},
    }
    with gateway_process(table(routes), env={"ENGINE_KEY": "secret-credential"}) as started:
        yield started


@pytest.fixture(scope="module")
def key(gateway: GatewayProcess) -> str:
    return gateway.issue().secret


@pytest.fixture
def told(fleet: dict[str, Engine]) -> Iterator[tuple[Engine, Engine]]:
    pair = fleet["engine-a"], fleet["engine-b"]
    yield pair
    for engine in pair:
        engine.release()
        engine.tell(0, 0)


def seen(gateway: GatewayProcess, what: str, name: str, value: float) -> None:
    """Return when the gateway has heard this of an engine."""

    def look() -> bool | None:
        return total(samples(gateway), f"engine_{what}", target=name) == value or None

    eventually(look, f"{name} tells {value:g} {what}")


def test_an_engine_with_calls_waiting_is_still_sent_what_it_has_cached(
    gateway: GatewayProcess, key: str, fleet: dict[str, Engine]
) -> None:
    """Elsewhere the document would be read anew, and all that waits there would wait for it. Caches have room for one
    home of it each, and no more."""
    pair = fleet["home-a"], fleet["home-b"]
    for engine in pair:
        engine.tell(0, 0)

    def about(n: int) -> dict[str, object]:
        return talk("cached", f"Question {n}", system=text(6000))

    (at,) = {served(gateway, about(n), key) for n in range(4)}
    home, other = sorted(pair, key=lambda engine: engine.name != at)
    home.tell(4, 9)
    seen(gateway, "waiting", home.name, 9)
    time.sleep(5)  # it has told so at two looks at least
    before = len(home.calls)
    assert {served(gateway, about(n), key) for n in range(10, 22)} == {home.name}
    assert (len(home.calls) - before, len(other.calls)) == (12, 0)
    home.holding = 1
    with sent(gateway, [about(n) for n in range(30, 36)], key):
        eventually(lambda: home.running == 6 or None, "calls that run at once are all there")
        assert other.running == 0
    home.release()


def test_stale_metrics_draw_no_herd(gateway: GatewayProcess, key: str, told: tuple[Engine, Engine]) -> None:
    """llm-d-router#298: between two looks at an engine that was idle all calls of a burst would run there."""
    idle, busy = told
    idle.tell(0, 0)
    busy.tell(40, 0)
    seen(gateway, "running", busy.name, 40)
    seen(gateway, "running", idle.name, 0)
    idle.holding = busy.holding = 1
    with sent(gateway, [talk("told", f"Burst {n}") for n in range(40)], key):
        eventually(lambda: idle.running + busy.running == 40 or None, "all are somewhere")
        assert 12 <= idle.running <= 28, "what we have sent ourselves counts at once"


def test_calls_too_long_for_a_target_are_not_sent_there(
    gateway: GatewayProcess, key: str, fleet: dict[str, Engine]
) -> None:
    def known() -> bool | None:
        fleet["short"].calls.clear()
        for _ in range(4):
            assert ask(gateway, talk("sizes", "Hi", max_tokens=4000), key).status == 200
        return not fleet["short"].calls or None

    eventually(known, "the contexts are known")
    places = {served(gateway, talk("sizes", f"{n}", max_tokens=10), key) for n in range(4)}
    assert places == {"short", "long"}
    assert {served(gateway, talk("sizes", text(2000)), key) for n in range(4)} == {"long"}
    calls = len(fleet["long"].calls)
    for length, answer, param in ((1, 8001, "max_tokens"), (500, 7999, "max_tokens"), (40_000, 1, "messages")):
        refused = ask(gateway, talk("sizes", text(length), max_tokens=answer), key)
        assert refused.status == 400 and "8000 tokens" in refused.error["message"]
        assert (refused.error["param"], refused.error["type"]) == (param, "invalid_request_error")
        line = record(gateway, refused.header("x-request-id"))
        assert (line["outcome"], line["attempts"]) == ("refused", [])
    assert len(fleet["long"].calls) == calls, "what fits nowhere is sent nowhere"


def test_what_fits_perhaps_is_left_to_the_engine(gateway: GatewayProcess, key: str) -> None:
    """Tokens are estimated: a prompt of digits is half as long as one of words of that many bytes."""
    assert served(gateway, talk("sizes", text(9000)), key) == "long"


def test_targets_of_one_route_that_differ_are_told(gateway: GatewayProcess, fleet: dict[str, Engine]) -> None:
    def drifts(field: str, route: str = "sizes") -> float:
        return total(samples(gateway), "route_drift", route=route, field=field)

    eventually(lambda: drifts("context") == 1 or None, "contexts differ")
    assert drifts("models") == 0
    assert drifts("context", "told") == 0
    fleet["short"].target.healthy = False
    fleet["short"].pages["/health"] = whole({}, 503)
    eventually(lambda: get(gateway, "/ready").json()["targets"]["short"] == "down" or None, "it is down")
    fleet["short"].list_model(8000)
    del fleet["short"].pages["/health"]
    fleet["short"].target.healthy = True
    eventually(lambda: drifts("context") == 0 or None, "it came back with the same context")


def test_a_target_that_refuses_our_credential_gets_no_calls(
    gateway: GatewayProcess, key: str, fleet: dict[str, Engine]
) -> None:
    """Its health route says that all is well: only a call, or a probe with the credential, can tell."""
    eventually(lambda: get(gateway, "/ready").json()["targets"]["locked"] == "down" or None, "it is found out")
    assert "target locked is down: credential refused" in gateway.stderr()
    assert total(samples(gateway), "target_up", target="locked") == 0
    fleet["locked"].calls.clear()
    assert {served(gateway, talk("locks", f"{n}"), key) for n in range(6)} == {"unlocked"}
    assert not fleet["locked"].calls
    listed = gateway.said("targets", "list", "--routing", str(gateway.routing))
    (shown,) = [each for each in listed if each["name"] == "locked"]
    assert (shown["state"], shown["why"]) == ("down", "credential refused")
    assert "secret-credential" not in gateway.stderr() + repr(listed)
