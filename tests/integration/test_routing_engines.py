"""What engines tell of themselves corrects what the gateway counts: load, context, differences, refused credentials."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Upstream, whole
from integration.client import ask, eventually, get, record, samples, total
from integration.engine import Engine, engines, sent, served, table, talk, text

NAMES = ("engine-a", "engine-b", "short", "long", "locked", "unlocked")


@pytest.fixture(scope="module")
def fleet(upstream: Upstream) -> dict[str, Engine]:
    made = {engine.name: engine for engine in engines(upstream, *NAMES)}
    made["short"].list_model(1000)
    made["long"].list_model(8000)
    made["locked"].pages["/v1/models"] = whole({"error": "who are you?"}, 401)
    return made


@pytest.fixture(scope="module")
def gateway(fleet: dict[str, Engine]) -> Iterator[GatewayProcess]:
    """ "told" has engines with metrics, "sizes" a small context and a large one, "locks" a wrong credential."""

    def targets(*names: str) -> list[dict[str, object]]:
        return [fleet[name].spec("vllm", api_key="${ENGINE_KEY}") for name in names]

    routes = {
        "told": {"targets": targets("engine-a", "engine-b"), "policy": "least-tokens"},
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

    eventually(look, f"{name} tells {value:g} {what}", 15)


def test_an_engine_with_calls_waiting_gets_no_more_until_it_has_room(
    gateway: GatewayProcess, key: str, told: tuple[Engine, Engine]
) -> None:
    """It works on one call and has others waiting: what we have there is one call, and it stays one."""
    full, other = told
    full.tell(1, 3)
    other.tell(0, 0)
    seen(gateway, "waiting", full.name, 3)
    full.holding = other.holding = 1
    before = len(full.calls)
    with sent(gateway, [talk("told", f"Fill {n}") for n in range(12)], key):
        eventually(lambda: full.running + other.running == 12 or None, "all are somewhere", 10)
    full.release()
    other.release()

    def capped() -> bool | None:
        """Twice running it has told so; a call that runs there is all it takes."""
        full.holding = other.holding = 1
        with sent(gateway, [talk("told", f"Cap {n}") for n in range(12)], key):
            eventually(lambda: full.running + other.running == 12 or None, "all are somewhere", 10)
            found = full.running
        eventually(lambda: full.running + other.running == 0 or None, "all are gone", 10)
        return found <= 1 or None

    eventually(capped, "no more than one call is sent to a full engine", 15)
    assert len(full.calls) > before, "it is not cut off either"
    full.tell(1, 0)

    def cleared() -> bool | None:
        return not capped() or None

    eventually(cleared, "it is used as before", 15)


def test_stale_metrics_draw_no_herd(gateway: GatewayProcess, key: str, told: tuple[Engine, Engine]) -> None:
    """llm-d-router#298: between two looks at an engine that was idle all calls of a burst would run there."""
    idle, busy = told
    idle.tell(0, 0)
    busy.tell(40, 0)
    seen(gateway, "running", busy.name, 40)
    seen(gateway, "running", idle.name, 0)
    idle.holding = busy.holding = 1
    with sent(gateway, [talk("told", f"Burst {n}") for n in range(40)], key):
        eventually(lambda: idle.running + busy.running == 40 or None, "all are somewhere", 15)
        assert 12 <= idle.running <= 28, "what we have sent ourselves counts at once"


def test_calls_too_long_for_a_target_are_not_sent_there(
    gateway: GatewayProcess, key: str, fleet: dict[str, Engine]
) -> None:
    def known() -> bool | None:
        fleet["short"].calls.clear()
        for _ in range(4):
            assert ask(gateway, talk("sizes", "Hi", max_tokens=4000), key).status == 200
        return not fleet["short"].calls or None

    eventually(known, "the contexts are known", 15)
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

    eventually(lambda: drifts("context") == 1 or None, "contexts differ", 15)
    assert drifts("models") == 0
    assert drifts("context", "told") == 0
    fleet["short"].target.healthy = False
    fleet["short"].pages["/health"] = whole({}, 503)
    eventually(lambda: get(gateway, "/ready").json()["targets"]["short"] == "down" or None, "it is down", 20)
    fleet["short"].list_model(8000)
    del fleet["short"].pages["/health"]
    fleet["short"].target.healthy = True
    eventually(lambda: drifts("context") == 0 or None, "it came back with the same context", 20)


def test_a_target_that_refuses_our_credential_gets_no_calls(
    gateway: GatewayProcess, key: str, fleet: dict[str, Engine]
) -> None:
    """Its health route says that all is well: only a call, or a probe with the credential, can tell."""
    eventually(lambda: get(gateway, "/ready").json()["targets"]["locked"] == "down" or None, "it is found out", 15)
    assert "target locked is down: credential refused" in gateway.stderr()
    assert total(samples(gateway), "target_up", target="locked") == 0
    fleet["locked"].calls.clear()
    assert {served(gateway, talk("locks", f"{n}"), key) for n in range(6)} == {"unlocked"}
    assert not fleet["locked"].calls
    listed = gateway.said("targets", "list", "--routing", str(gateway.routing))
    (shown,) = [each for each in listed if each["name"] == "locked"]
    assert (shown["state"], shown["why"]) == ("down", "credential refused")
    assert "secret-credential" not in gateway.stderr() + repr(listed)
