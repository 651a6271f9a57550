"""Targets that answer anybody beside the gateway, or whose credential anybody would try: told of, and served."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Upstream
from integration.client import ask, chat, eventually, samples, total
from integration.engine import Engine, table

GOOD, WEAK = {"api_key": "${GOOD}"}, {"api_key": "${WEAK}"}
ENV = {"GOOD": "a-long-and-secret-word", "WEAK": "token-abc123"}
OPEN = {"/invocations": 400, "/pooling": 404, "/tokenize": 422}
"""As vLLM's `--api-key` leaves them: it guards what is below /v1."""


def said_of(gateway: GatewayProcess, target: str) -> str:
    listed = gateway.said("targets", "list", "--routing", str(gateway.routing))
    return next(each["why"] for each in listed if each["name"] == target)


def warned(gateway: GatewayProcess, target: str, about: str) -> float:
    return total(samples(gateway), "target_warning", target=target, about=about)


@pytest.fixture(scope="module")
def engines(upstream: Upstream) -> dict[str, Engine]:
    names = ("opens-some", "opens-all", "shut", "keyless", "breaks")
    found = {name: Engine(upstream, name) for name in names}
    found["opens-some"].target.open_paths = OPEN
    found["opens-all"].target.open_paths = {"/v1/chat/completions": 400, "/v1/embeddings": 405}
    found["breaks"].target.open_paths = {"/v1/chat/completions": 503}
    found["keyless"].target.open_paths = {"/v1/chat/completions": 200}
    return found


@pytest.fixture(scope="module")
def gateway(engines: dict[str, Engine]) -> Iterator[GatewayProcess]:
    specs = {
        "opens-some": ("vllm", GOOD),
        "opens-all": ("openai", WEAK),
        "shut": ("vllm", GOOD),
        "keyless": ("openai", {}),
        "breaks": ("openai", GOOD),
    }
    routes = {name: {"targets": [engines[name].spec(kind, **more)]} for name, (kind, more) in specs.items()}
    with gateway_process(table(routes), env=ENV) as started:
        yield started


def test_a_target_that_answers_anybody_is_told(gateway: GatewayProcess, engines: dict[str, Engine]) -> None:
    eventually(lambda: warned(gateway, "opens-some", "unguarded"), "it is found")
    said = "target opens-some: it answers /invocations, /tokenize to anybody, without its credential"
    eventually(lambda: said in gateway.stderr() or None, "it is told")
    eventually(lambda: "/invocations, /tokenize" in said_of(gateway, "opens-some") or None, "and listed")
    eventually(lambda: warned(gateway, "opens-all", "unguarded"), "it is found")
    eventually(lambda: len(anonymous(engines["shut"])) >= 10 or None, "it was asked for all of them")
    for name in ("shut", "keyless", "breaks"):
        assert warned(gateway, name, "unguarded") == 0, name


def anonymous(engine: Engine) -> list[str]:
    """The paths that it was asked for without a credential."""
    return [probe.path for probe in engine.target.probes if probe.method == "POST"]


def test_it_is_asked_once_and_serves_as_before(gateway: GatewayProcess, engines: dict[str, Engine]) -> None:
    key = gateway.issue().secret
    assert [ask(gateway, chat(name), key).status for name in ("opens-some", "shut", "keyless")] == [200] * 3
    asked = anonymous(engines["opens-some"])
    assert len(asked) == len(set(asked)) and asked[0] == "/v1/chat/completions"
    assert anonymous(engines["keyless"]) == []
    assert all(probe.body == b"{}" for probe in engines["shut"].target.probes if probe.method == "POST")


def test_one_that_comes_back_is_asked_again(gateway: GatewayProcess, engines: dict[str, Engine]) -> None:
    target = engines["opens-some"].target
    eventually(lambda: warned(gateway, "opens-some", "unguarded"), "it is found")
    target.healthy = False
    eventually(lambda: total(samples(gateway), "target_up", target="opens-some") == 0 or None, "it is down")
    target.open_paths, target.healthy = {}, True
    try:
        eventually(lambda: not warned(gateway, "opens-some", "unguarded"), "it answers nobody else now")
        eventually(lambda: not said_of(gateway, "opens-some") or None, "nothing is listed")
    finally:
        target.open_paths = OPEN


def test_a_credential_of_an_engines_example_is_told(gateway: GatewayProcess) -> None:
    eventually(lambda: warned(gateway, "opens-all", "credential"), "it is found")
    assert "target opens-all: its credential is a word that anybody would try" in gateway.stderr()
    assert "token-abc123" not in gateway.stderr()
    assert warned(gateway, "shut", "credential") == 0


def test_whoever_does_not_want_it_is_not_asked(upstream: Upstream) -> None:
    engine = Engine(upstream, "unasked")
    routes = {"m": {"targets": [engine.spec("vllm", **GOOD)]}}
    with gateway_process(table(routes), env={**ENV, "TRUNKLINE_ASK_WITHOUT_CREDENTIAL": "false"}) as started:
        eventually(lambda: len(engine.target.probes) > 3 or None, "it is probed")
        assert ask(started, chat("m"), started.issue().secret).status == 200
    assert anonymous(engine) == []
