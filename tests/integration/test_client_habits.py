"""What clients do: ids of their own, paths put together wrongly, names that only a pattern stands for."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Target, Upstream
from integration.client import CHAT, ask, chat, get, record


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[GatewayProcess]:
    """With a route that trusts clients' ids, and a pattern among its names."""
    routes = {
        name: {"targets": [{"name": f"habit-{name}", "backend": "openai", "url": upstream.target(f"h-{name}").url}]}
        for name in ("ours", "trusts")
    }
    routes["trusts"]["trust_request_id"] = True  # type: ignore[assignment]
    routes["ours"]["aliases"] = ["team/*"]  # type: ignore[assignment]
    with gateway_process(json.dumps({"routes": routes})) as started:
        yield started


@pytest.fixture(scope="module")
def key(gateway: GatewayProcess) -> str:
    return gateway.issue().secret


@pytest.fixture
def targets(upstream: Upstream) -> dict[str, Target]:
    found = {name: upstream.target(f"h-{name}") for name in ("ours", "trusts")}
    for target in found.values():
        target.restore()
    return found


@pytest.mark.parametrize("model", ["ours", "trusts"])
def test_a_clients_id_is_echoed_and_logged_and_sent_on_where_it_is_trusted(
    gateway: GatewayProcess, key: str, targets: dict[str, Target], model: str
) -> None:
    answer = ask(gateway, chat(model), key, headers={"x-request-id": f"their-{model}"})
    ours = answer.header("x-request-id")
    assert (answer.status, answer.header("x-client-request-id")) == (200, f"their-{model}")
    assert ours is not None and ours.startswith("tl-")
    (call,) = targets[model].calls
    assert call.header("x-request-id") == (f"their-{model}" if model == "trusts" else ours)
    assert record(gateway, ours)["client_request_id"] == f"their-{model}"


def test_an_error_echoes_the_id_too(gateway: GatewayProcess, key: str) -> None:
    answer = ask(gateway, chat("no such model"), key, headers={"x-request-id": "mine"})
    assert (answer.status, answer.header("x-client-request-id")) == (404, "mine")


@pytest.mark.parametrize("sent", ["a" * 129, "two words", "\u00fc"])
def test_an_id_that_is_none_is_overlooked(
    gateway: GatewayProcess, key: str, targets: dict[str, Target], sent: str
) -> None:
    answer = ask(gateway, chat("trusts"), key, headers={"x-request-id": sent})
    assert (answer.status, answer.header("x-client-request-id")) == (200, None)
    assert targets["trusts"].calls[0].header("x-request-id") == answer.header("x-request-id")


@pytest.mark.parametrize(
    "path", [CHAT + "/", "/" + CHAT, "/v1//chat/completions", "/v1" + CHAT, "//v1/v1" + CHAT + "//"]
)
def test_a_path_put_together_wrongly_is_served(
    gateway: GatewayProcess, key: str, targets: dict[str, Target], path: str
) -> None:
    assert ask(gateway, chat("ours"), key, path=path).status == 200
    assert [call.path for call in targets["ours"].calls] == [CHAT]


@pytest.mark.parametrize("path", ["/v1/models/", "//v1/models", "/v1/v1/models", "/v1/v1/models/ours/"])
def test_so_is_one_of_another_kind(gateway: GatewayProcess, key: str, path: str) -> None:
    assert get(gateway, path, key).status == 200


def test_a_key_sees_the_models_that_it_names_and_a_pattern_stands_for(gateway: GatewayProcess) -> None:
    narrow = gateway.issue(models=("team/a", "team/b", "other/c", "team/x*")).secret
    assert [model["id"] for model in get(gateway, "/v1/models", narrow).json()["data"]] == ["team/a", "team/b"]


def test_an_unknown_model_is_named(gateway: GatewayProcess) -> None:
    narrow = gateway.issue(models=("trusts",)).secret
    for name in ("nonsense", "ours"):
        assert f"'{name}' does not exist" in get(gateway, f"/v1/models/{name}", narrow).error["message"]
