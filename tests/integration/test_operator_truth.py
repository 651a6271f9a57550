"""An operator is told the truth: whose fault a failure is, what is wrong with the table, what a caller will meet."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Upstream, whole
from integration.client import ask, chat, eventually, record, samples, total
from integration.engine import Engine, table, where


def unknown(model: str) -> dict[str, object]:
    """As vLLM says it."""
    error = {"message": f"The model `{model}` does not exist.", "type": "NotFoundError", "param": None, "code": 404}
    return {"error": error}


@pytest.fixture(scope="module")
def fleet(upstream: Upstream) -> dict[str, Engine]:
    return {name: Engine(upstream, name) for name in ("named-wrong", "named-well", "alone-wrong", "unlisted")}


@pytest.fixture(scope="module")
def gateway(fleet: dict[str, Engine]) -> Iterator[GatewayProcess]:
    fleet["unlisted"].list_model(4096, "served")
    routes = {
        "pair": {
            "targets": [fleet["named-wrong"].spec("vllm", model="m1"), fleet["named-well"].spec("vllm", model="m1")],
            "policy": "round-robin",
        },
        "alone": {"targets": [fleet["alone-wrong"].spec("vllm", model="misspelt")]},
        "listed": {"targets": [fleet["unlisted"].spec("vllm", model="swerved")]},
    }
    with gateway_process(table(routes)) as started:
        yield started


@pytest.fixture(scope="module")
def key(gateway: GatewayProcess) -> str:
    return gateway.issue().secret


def said_of(gateway: GatewayProcess, target: str) -> str:
    listed = gateway.said("targets", "list", "--routing", str(gateway.routing))
    return next(each["why"] for each in listed if each["name"] == target)


def test_a_wrong_model_of_one_target_costs_no_caller_anything(
    gateway: GatewayProcess, key: str, fleet: dict[str, Engine]
) -> None:
    fleet["named-wrong"].script = whole(unknown("m1"), 404)
    replies = [ask(gateway, chat("pair"), key) for _ in range(4)]
    assert [(reply.status, where(reply)) for reply in replies] == [(200, "named-well")] * 4
    tried = [record(gateway, reply.header("x-request-id"))["attempts"] for reply in replies]
    assert ("named-wrong", "upstream_model") in {(each[0]["target"], each[0]["outcome"]) for each in tried}
    eventually(lambda: "'m1'" in said_of(gateway, "named-wrong") or None, "the list says it")
    assert "target named-wrong: it does not know the model 'm1'" in gateway.stderr()
    assert total(samples(gateway), "target_warning", target="named-wrong", about="model") == 1
    assert not said_of(gateway, "named-well")


def test_a_caller_is_not_blamed_for_a_name_that_the_table_wrote(
    gateway: GatewayProcess, key: str, fleet: dict[str, Engine]
) -> None:
    fleet["alone-wrong"].script = whole(unknown("misspelt"), 404)
    reply = ask(gateway, chat("alone"), key)
    assert (reply.status, reply.error["code"]) == (502, "upstream_model")
    assert "misspelt" not in reply.error["message"], "that is for the operator"
    fleet["alone-wrong"].script = None
    assert ask(gateway, chat("alone"), key).status == 200
    eventually(lambda: not said_of(gateway, "alone-wrong") or None, "it does know it now")


def test_a_model_that_the_engine_does_not_list_is_told_before_any_call(gateway: GatewayProcess) -> None:
    eventually(lambda: "lists no model 'swerved', but served" in said_of(gateway, "unlisted") or None, "it is told")
    assert "target unlisted: its engine lists no model 'swerved', but served" in gateway.stderr()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"detail": "Not Found"}, "Not Found"),
        ({"object": "error", "message": "no such path", "code": 404}, "no such path"),
        ({"detail": [{"loc": ["body"]}]}, "status 404"),
        ({"error": "gone"}, "status 404"),
    ],
)
def test_answers_are_in_our_envelope_whatever_the_target_says(
    gateway: GatewayProcess, key: str, fleet: dict[str, Engine], body: dict[str, object], words: str
) -> None:
    fleet["alone-wrong"].script = whole(body, 404)
    reply = ask(gateway, chat("alone"), key)
    fleet["alone-wrong"].script = None
    assert reply.status == 404 and words in reply.error["message"]
    assert set(reply.error) == {"message", "type", "param", "code"}


def test_weak_secrets_are_named_at_the_start_and_never_shown(fleet: dict[str, Engine]) -> None:
    weak = {
        "TRUNKLINE_PEPPERS": "1:short-pepper",
        "TRUNKLINE_ADMIN_HASH": hashlib.sha256(b"changeme").hexdigest(),
    }
    with gateway_process(table({"m": {"targets": [fleet["named-well"].spec()]}}), env=weak) as started:
        said = started.stderr()
        assert "TRUNKLINE_PEPPERS: pepper 1 has fewer than 16 characters" in said
        assert "TRUNKLINE_ADMIN_HASH is the hash of a word" in said and "short-pepper" not in said
        assert total(samples(started), "weak_secrets") == 2
