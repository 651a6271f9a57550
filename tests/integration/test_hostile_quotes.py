"""A target that quotes the credential which it was sent does not give it away to clients."""

from __future__ import annotations

import json

import pytest
from harness.gateway_process import GatewayProcess
from harness.upstream import Target, event, stream, whole
from integration.cases import SECRET
from integration.client import ask, chat, get

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
    guarded: GatewayProcess, guarded_key: str, guarded_target: Target, name: str, streamed: bool
) -> None:
    guarded_target.script = QUOTES[name]
    reply = ask(guarded, chat("m", stream=streamed), guarded_key)
    assert guarded_target.calls[0].header("authorization") == f"Bearer {SECRET}"
    text = reply.told
    for spelling in (SECRET, json.dumps(SECRET)[1:-1], json.dumps(SECRET)[1:-1].replace("/", "\\/"), "sk-canary"):
        assert spelling not in text
    assert "sk-canary" not in guarded.stdout() + guarded.stderr() + guarded.metrics()
    assert "sk-canary" not in get(guarded, "/ready").told


def test_other_words_of_a_target_still_reach_its_client(
    guarded: GatewayProcess, guarded_key: str, guarded_target: Target
) -> None:
    said = {"object": "error", "message": "temperature must be at most 2", "type": "BadRequestError", "code": 400}
    guarded_target.script = whole(said, 400)
    assert "temperature must be at most 2" in ask(guarded, chat("m"), guarded_key).told
