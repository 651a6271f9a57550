"""A target that quotes the credential which it was sent does not give it away to clients."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Target, Upstream, event, stream, whole
from integration.client import Reply, ask, chat, get

SECRET = 'sk-canary/with"odd\\signs'


@pytest.fixture(scope="module")
def guarded(upstream: Upstream) -> Iterator[GatewayProcess]:
    """Its target gets a credential with signs that JSON escapes."""
    spec = {"name": "guarded", "backend": "vllm", "url": upstream.target("guarded").url, "api_key": "${GUARDED}"}
    route = {"targets": [spec], "retry": {"attempts": 1}}
    with gateway_process(json.dumps({"routes": {"m": route}}), env={"GUARDED": SECRET}) as started:
        yield started


@pytest.fixture(scope="module")
def guarded_key(guarded: GatewayProcess) -> str:
    return guarded.issue().secret


@pytest.fixture
def target(upstream: Upstream) -> Target:
    found = upstream.target("guarded")
    found.restore()
    return found


def told(reply: Reply) -> str:
    return repr(reply.headers) + reply.body.decode("utf-8", "replace")


QUOTES = {
    "400": whole({"error": {"message": f"got Authorization: Bearer {SECRET}", "code": 400}}, 400),
    "400, slashes escaped": whole(json.dumps({"message": f"Bearer {SECRET}"}).replace("/", "\\/").encode(), 400),
    "404": whole({"object": "error", "message": f"no such model for {SECRET}", "code": 404}, 404),
    "422": whole({"detail": [{"input": {"authorization": f"Bearer {SECRET}"}}]}, 422),
    "400 in a 200": whole({"error": {"message": f"bad request by {SECRET}", "code": 400}}),
    "error event": stream(b"data: " + json.dumps({"error": {"message": SECRET, "code": 400}}).encode() + b"\n\n"),
    "late error event": stream(
        event("a"), b"data: " + json.dumps({"error": {"message": SECRET, "code": 400}}).encode() + b"\n\n"
    ),
    "401": whole({"error": {"message": f"wrong key {SECRET}"}}, 401),
    "500": whole({"error": {"message": f"crash with {SECRET}"}}, 500),
    "text": whole(f"Bearer {SECRET}".encode(), 400, "text/plain"),
}


@pytest.mark.parametrize("name", QUOTES)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_target_that_quotes_our_credential_does_not_give_it_away(
    guarded: GatewayProcess, guarded_key: str, target: Target, name: str, streamed: bool
) -> None:
    target.script = QUOTES[name]
    reply = ask(guarded, chat("m", stream=streamed), guarded_key)
    assert target.calls[0].header("authorization") == f"Bearer {SECRET}"
    text = told(reply)
    for spelling in (SECRET, json.dumps(SECRET)[1:-1], json.dumps(SECRET)[1:-1].replace("/", "\\/"), "sk-canary"):
        assert spelling not in text
    assert "sk-canary" not in guarded.stdout() + guarded.stderr() + guarded.metrics()
    assert "sk-canary" not in told(get(guarded, "/ready"))


def test_other_words_of_a_target_still_reach_its_client(
    guarded: GatewayProcess, guarded_key: str, target: Target
) -> None:
    said = {"object": "error", "message": "temperature must be at most 2", "type": "BadRequestError", "code": 400}
    target.script = whole(said, 400)
    assert "temperature must be at most 2" in told(ask(guarded, chat("m"), guarded_key))
