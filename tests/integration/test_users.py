"""For whom a call is made: a header that its key says is believed, in the record and the ledger, and none of others."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer
from harness.upstream import Upstream
from integration.client import ask, chat, eventually, record
from redis import Redis

SENT = {
    "X-OpenWebUI-User-Id": "8d967d73-99b8-40ff",
    "X-OpenWebUI-User-Name": "Ann%20Other",
    "X-OpenWebUI-User-Email": "ann@example.com",
    "X-OpenWebUI-User-Role": "user",
}
"""As Open WebUI names its user, where it is told to (`ENABLE_FORWARD_USER_INFO_HEADERS`)."""


@pytest.fixture(scope="module", params=["alone", "redis"])
def gateway(request: pytest.FixtureRequest, upstream: Upstream, redis: RedisServer) -> Iterator[GatewayProcess]:
    redis_url = redis.url if request.param == "redis" else None
    table = {"routes": {"m": {"targets": [{"name": "u", "backend": "openai", "url": upstream.target("users").url}]}}}
    with gateway_process(json.dumps(table), redis_url=redis_url) as started:
        yield started


def told(gateway: GatewayProcess, token: str, headers: dict[str, str]) -> tuple[str | None, str]:
    """The user in the record and in the ledger."""
    reply = ask(gateway, chat("m"), token, headers=headers)
    assert reply.status == 200
    call_id = reply.header("x-request-id")
    line = record(gateway, call_id)
    return line.get("user"), eventually(lambda: entered(gateway, call_id), f"{call_id} is in the ledger")[0]


def entered(gateway: GatewayProcess, call_id: str | None) -> tuple[str] | None:
    if gateway._store[0] == "--redis-url":
        with closing(Redis.from_url(gateway._store[1])) as client:
            entries = [json.loads(fields[b"entry"]) for _, fields in client.xrange("{tl}:ledger")]
        found = [entry for entry in entries if entry["call_id"] == call_id]
        return (found[0].get("user", ""),) if found else None
    with closing(sqlite3.connect(gateway._store[1].replace(".json", ".db"))) as connection:
        row: tuple[str] | None = connection.execute("SELECT user FROM calls WHERE call_id = ?", (call_id,)).fetchone()
        return row


def test_the_header_that_the_key_names_is_believed(gateway: GatewayProcess) -> None:
    by_id = gateway.issue(user_header="X-OpenWebUI-User-Id")
    assert by_id.record.user_header == "x-openwebui-user-id"
    assert told(gateway, by_id.secret, SENT) == ("8d967d73-99b8-40ff", "8d967d73-99b8-40ff")
    by_mail = gateway.issue(user_header="x-openwebui-user-email")
    assert told(gateway, by_mail.secret, SENT) == ("ann@example.com", "ann@example.com")
    assert told(gateway, by_mail.secret, {}) == (None, "")


def test_other_keys_headers_are_nobodys_word(gateway: GatewayProcess) -> None:
    assert told(gateway, gateway.issue().secret, SENT) == (None, "")


@pytest.mark.parametrize("name", ["x" * 257, "a\tb", "caf\xe9"], ids=["long", "unprintable", "no UTF-8"])
def test_what_is_no_name_is_not_written_down(gateway: GatewayProcess, name: str) -> None:
    assert told(gateway, gateway.issue(user_header="x-user").secret, {"x-user": name}) == (None, "")


def test_a_key_gets_and_loses_it_by_command(gateway: GatewayProcess) -> None:
    made: dict[str, Any] = gateway.key("--user-header", "X-User")
    assert made["user_header"] == "x-user"
    assert told(gateway, made["secret"], {"x-user": "ann"}) == ("ann", "ann")
    assert gateway.keys("update", made["id"], "--user-header", "")["user_header"] == ""


@pytest.mark.parametrize("header", ["Authorization", "x-api-key", "cookie", "two words", "x" * 129])
def test_headers_that_cannot_name_a_user(gateway: GatewayProcess, header: str) -> None:
    with pytest.raises(ValueError, match="user_header"):
        gateway.issue(user_header=header)
