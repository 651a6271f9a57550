"""The ways in which other routers have failed, as in test_failure_patterns.py: those that take a whole gateway."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Act, Upstream, event, stream, whole
from integration.client import ask, eventually, record, samples, total
from integration.engine import Engine, sent, served, table, talk, text, where


@pytest.fixture(scope="module")
def targets(upstream: Upstream) -> dict[str, Engine]:
    return {name: Engine(upstream, f"pattern-{name}") for name in ("a", "b", "c", "solo", "spare")}


@pytest.fixture
def gateway(targets: dict[str, Engine]) -> Iterator[GatewayProcess]:
    """Of its own for each test: breakers remember."""
    for engine in targets.values():
        engine.renew()
    three = [targets[name].spec("vllm") for name in "abc"]
    pair = [targets["solo"].spec("vllm"), targets["spare"].spec("vllm")]
    with gateway_process(table({"m": {"targets": three}, "pair": {"targets": pair}})) as started:
        yield started


def test_no_load_leaks_however_calls_end(gateway: GatewayProcess, targets: dict[str, Engine]) -> None:
    """vllm-project/router#179, sglang#15473: endings that forget to give load back leave one engine with 100 %."""
    token = gateway.issue().secret
    ways = [
        whole({}, 500),
        whole({"error": {"message": "no"}}, 400),
        [Act.RESET],
        stream(event("Hi"), Act.CUT),
        stream(event("Hi"), b'data: {"error": {"message": "no", "code": 500}}\n\n'),
        whole(b"nonsense"),
    ]
    for script in ways:
        for engine in targets.values():
            engine.script = script
        for streamed in (False, True):
            ask(gateway, talk("m", f"{script!r}", stream=streamed), token)
    for engine in targets.values():
        engine.script, engine.holding = None, 1
    with sent(gateway, [talk("pair", f"{n}", stream=n % 2 > 0) for n in range(8)], token):
        eventually(lambda: targets["solo"].running + targets["spare"].running == 8 or None, "all run")

    def nothing() -> bool | None:
        found = samples(gateway)
        return not any(total(found, f"target_{what}") for what in ("prefill_tokens", "waiting", "running")) or None

    eventually(nothing, "every count is back at 0")


def test_a_retry_goes_elsewhere_than_home(gateway: GatewayProcess, targets: dict[str, Engine]) -> None:
    """NeMo-RL#3613: each of five attempts picked the dead worker that the session was bound to, and then failed."""
    token = gateway.issue().secret
    home = served(gateway, talk("m", "Where is home?"), token)
    (dead,) = [engine for engine in targets.values() if engine.name == home]
    dead.script = [Act.RESET]
    for turn in range(2, 5):  # fewer than the breaker needs
        reply = ask(gateway, talk("m", "Where is home?", turn), token)
        assert reply.status == 200 and where(reply) != home
        attempts = [each["target"] for each in record(gateway, reply.header("x-request-id"))["attempts"]]
        assert attempts in ([home, where(reply)], [where(reply)])
    assert len(dead.calls) >= 2


@pytest.mark.parametrize("status", [400, 413, 422])
def test_client_errors_do_not_trip_the_breaker(
    gateway: GatewayProcess, targets: dict[str, Engine], status: int
) -> None:
    """vllm-project/router#148: one client with bad calls took all workers away from the others."""
    token = gateway.issue().secret
    for engine in targets.values():
        engine.script = whole({"error": {"message": "too long", "type": "BadRequestError", "code": status}}, status)
    for number in range(24):
        assert ask(gateway, talk("m", f"Bad {number}"), token).status == status
    for engine in targets.values():
        engine.script = None
    places = {served(gateway, talk("m", f"Good {number}"), token) for number in range(24)}
    assert len(places) == 3 and "is ejected" not in gateway.stderr()


def test_validation_dressed_as_a_failure_does_not_trip_the_breaker(
    gateway: GatewayProcess, targets: dict[str, Engine]
) -> None:
    """vllm-project/router#148: vLLM answered 500 to a prompt that was too long."""
    token = gateway.issue().secret
    said = {
        "error": {
            "message": "the prompt is longer than the maximum model length",
            "type": "BadRequestError",
            "code": 400,
        }
    }
    for engine in targets.values():
        engine.script = whole(said)
    for number in range(24):
        assert ask(gateway, talk("m", text(50, f"Long {number}")), token).status == 400
    assert "is ejected" not in gateway.stderr()


def test_a_dead_target_is_left_alone_and_others_are_not(gateway: GatewayProcess, targets: dict[str, Engine]) -> None:
    """The other side of it: five failures of its own do eject a target, and nobody else."""
    token = gateway.issue().secret
    targets["solo"].script = whole({}, 500)
    for number in range(24):
        assert ask(gateway, talk("pair", f"{number}"), token).status == 200
    assert len(targets["solo"].calls) <= 6
    assert "target pattern-solo is ejected" in gateway.stderr() and "pattern-spare is ejected" not in gateway.stderr()
