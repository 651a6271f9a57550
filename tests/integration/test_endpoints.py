"""What is served besides inference, and what holds for every answer."""

from __future__ import annotations

import re

import pytest
from harness.gateway_process import GatewayProcess
from harness.upstream import Target
from integration.client import CHAT, ask, chat, eventually, get

PLACES = ["/", "/health", "/ready", "/metrics", "/docs", "/docs/openapi.json", "/v1/models", "/v1/models/solo"]


def test_models_are_those_the_key_may_use(gateway: GatewayProcess) -> None:
    narrow = gateway.issue(models=("solo-*", "team/*", "good")).secret

    listed = get(gateway, "/v1/models", narrow)

    assert listed.status == 200
    assert listed.json()["object"] == "list"
    assert sorted(model["id"] for model in listed.json()["data"]) == ["good", "solo-alias", "team/solo:8b"]
    assert all(model["object"] == "model" for model in listed.json()["data"])


@pytest.mark.parametrize("path", ["team/solo:8b", "team%2Fsolo%3A8b", "team/solo%3a8b", "solo", "solo?x=1"])
def test_one_model_by_an_id_with_slashes_and_colons(gateway: GatewayProcess, key: str, path: str) -> None:
    found = get(gateway, f"/v1/models/{path}", key)

    assert found.status == 200
    assert found.json()["id"] == ("team/solo:8b" if path.startswith("team") else "solo")


@pytest.mark.parametrize("name", ["no-such-model", "good", "../solo", "solo/", "%00", "%ff", "a" * 5000])
def test_a_model_the_key_may_not_use_is_as_unknown_as_one_that_is_none(gateway: GatewayProcess, name: str) -> None:
    narrow = gateway.issue(models=("vllm",)).secret

    found = get(gateway, f"/v1/models/{name}", narrow)

    assert found.status in (404, 400)
    assert "vllm" in found.error["message"] or found.error["code"] != "model_not_found"
    assert "solo" not in found.error["message"].replace(name.rstrip("/"), "")


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/solo"])
def test_models_need_a_key(gateway: GatewayProcess, path: str) -> None:
    assert get(gateway, path).status == 401
    assert get(gateway, path).error["type"] == "authentication_error"


def test_health_and_ready(gateway: GatewayProcess) -> None:
    assert get(gateway, "/health").status == 200
    ready = get(gateway, "/ready")
    assert (ready.status, ready.json()["ready"]) == (200, True)

    def looked_at() -> dict[str, str] | None:
        """A gateway is ready before it has looked at every target: one that hangs must not keep it from serving."""
        targets: dict[str, str] = get(gateway, "/ready").json()["targets"]
        return targets if "unknown" not in targets.values() else None

    targets = eventually(looked_at, "no target is unknown any more")
    assert (targets["solo"], targets["dead"]) == ("up", "down")


@pytest.mark.parametrize("path", ["/", "/health"])
def test_head_is_no_error(gateway: GatewayProcess, path: str) -> None:
    answer = ask(gateway, None, path=path, method="HEAD")
    assert (answer.status, answer.body) == (200, b"")


def test_the_description_has_every_route(gateway: GatewayProcess) -> None:
    described = get(gateway, "/docs/openapi.json").json()

    assert {CHAT, "/v1/completions", "/v1/embeddings", "/v1/models", "/health", "/ready", "/metrics"} <= set(
        described["paths"]
    )
    assert any(path.startswith("/v1/models/{") for path in described["paths"])
    chat_call = described["paths"][CHAT]["post"]
    assert {"200", "400", "401", "403", "404", "413", "429", "502", "503", "504"} <= set(chat_call["responses"])


def test_the_documentation_asks_no_other_host(gateway: GatewayProcess) -> None:
    page = get(gateway, "/docs")

    assert page.status == 200
    text = page.body.decode()
    assert re.findall(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", text) == []
    assert b"://" not in get(gateway, "/docs/openapi.json").body
    parts = [part for part in re.findall(r"""(?:src|href)=["']([^"']+)""", text) if not part.startswith("data:")]
    assert parts
    for part in parts:
        assert part.startswith("/")
        assert get(gateway, part).status == 200


@pytest.mark.parametrize("path", [*PLACES, "/nothing", "/v1", "/v1/chat", "/docs/nothing", CHAT])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_every_answer_has_a_request_id(gateway: GatewayProcess, path: str, method: str) -> None:
    answer = ask(gateway, None, path=path, method=method)
    assert re.fullmatch(r"[\x21-\x7e]{8,80}", answer.header("x-request-id") or "")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("POST", "/v1/nothing", 404), ("GET", CHAT, 405), ("POST", "/v1/models", 405)],
)
def test_a_wrong_path_or_method_is_told_in_the_envelope(
    gateway: GatewayProcess, method: str, path: str, status: int
) -> None:
    answer = ask(gateway, None, path=path, method=method)
    assert answer.status == status
    assert answer.error["type"] in ("invalid_request_error", "not_found_error")


def test_query_strings_are_ignored(gateway: GatewayProcess, key: str, solo: Target) -> None:
    assert ask(gateway, chat("solo"), key, CHAT + "?api-version=2024-01-01&a=%00").status == 200
    assert solo.calls[0].path == CHAT


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat("solo")),
        ("/v1/completions", {"model": "solo", "prompt": "Hi"}),
        ("/v1/embeddings", {"model": "solo", "input": "Hi"}),
    ],
)
def test_each_endpoint_reaches_its_own(
    gateway: GatewayProcess, key: str, solo: Target, path: str, body: dict[str, object]
) -> None:
    answer = ask(gateway, body, key, path)
    assert answer.status == 200
    assert [call.path for call in solo.calls] == [path]
    assert answer.header("x-request-id") == solo.calls[0].header("x-request-id")
