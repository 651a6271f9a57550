"""The admin listener: a process beside the gateway, on the same store, that takes other keys than the gateway does."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.redis_server import RedisServer
from harness.upstream import Target, Upstream
from integration.client import Reply, ask, chat, eventually, get, wire
from integration.client import request as call

from gateway.auth import mint
from gateway.auth.token import ADMIN


def administer(gateway: GatewayProcess, method: str, path: str, body: Any = None, *, key: str) -> Reply:
    """One call of the admin interface."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.admin_port, timeout=40)
    try:
        raw = None if body is None else json.dumps(body).encode()
        connection.request(method, "/admin/v1" + path, raw, {"authorization": f"Bearer {key}"})
        response = connection.getresponse()
        return Reply(response.status, response.getheaders(), response.read())
    finally:
        connection.close()


def said(gateway: GatewayProcess, method: str, path: str, body: Any = None, *, key: str) -> Any:
    """What a call says that works."""
    reply = administer(gateway, method, path, body, key=key)
    assert reply.status in (200, 201), reply
    return reply.json()


def one_time_token(gateway: GatewayProcess) -> str:
    return eventually(lambda: re.search(r"Bearer (tladm_\w+)", gateway.stderr()), "the one-time token is printed")[1]


def table(upstream: Upstream) -> str:
    target = upstream.target("admin")
    target.restore()
    return json.dumps({"routes": {"m": {"targets": [{"name": "admin", "backend": "openai", "url": target.url}]}}})


@pytest.fixture(scope="module", params=["file", "redis"])
def gateway(request: pytest.FixtureRequest, upstream: Upstream) -> Iterator[GatewayProcess]:
    """A gateway with an admin listener, on a state file and on a Redis of two workers."""
    with ExitStack() as stack:
        options: dict[str, Any] = {}
        if request.param == "redis":
            options = {"redis_url": request.getfixturevalue("redis").url, "workers": 2}
        yield stack.enter_context(gateway_process(table(upstream), admin=True, **options))


@pytest.fixture(scope="module")
def admin(gateway: GatewayProcess) -> str:
    """An admin key."""
    secret: str = gateway.said("admin", "create", "--name", "tests")["secret"]
    return secret


@pytest.fixture
def target(upstream: Upstream) -> Target:
    found = upstream.target("admin")
    found.restore()
    return found


ROOM = {"rpm": 1000}
"""A limit that is not reached: with one, every call asks the store, and so notices a change at once."""


def test_a_key_made_here_calls_there_until_it_is_revoked(gateway: GatewayProcess, admin: str, target: Target) -> None:
    made = said(gateway, "POST", "/keys", {"name": "k", "models": ["m"], "limit": ROOM}, key=admin)
    for _ in range(5):
        assert ask(gateway, chat("m"), made["secret"]).status == 200
    said(gateway, "DELETE", f"/keys/{made['id']}", key=admin)
    for _ in range(5):
        assert ask(gateway, chat("m"), made["secret"]).status == 401


def test_a_change_holds_for_the_very_next_call_of_every_worker(
    gateway: GatewayProcess, admin: str, target: Target
) -> None:
    made = said(gateway, "POST", "/keys", {"name": "k", "limit": ROOM}, key=admin)
    with ExitStack() as stack:
        connections = [stack.enter_context(wire(gateway)) for _ in range(8)]

        def statuses() -> list[int]:
            found = []
            for connection in connections:
                connection.send(call(chat("m"), made["secret"]))
                found.append(connection.answer().status)
            return found

        assert statuses() == [200] * 8
        said(gateway, "PATCH", f"/keys/{made['id']}", {"models": ["other"]}, key=admin)
        assert statuses() == [403] * 8
        said(
            gateway,
            "PATCH",
            f"/keys/{made['id']}",
            {"models": ["*"], "limit": {"rpm": None, "concurrency": 9}},
            key=admin,
        )
        # Who is refused does not come to ask the store: that more is allowed now must be heard of.
        eventually(lambda: statuses() == [200] * 8 or None, "every worker lets the key in again")
        said(gateway, "PATCH", f"/keys/{made['id']}", {"limit": {"rpm": 3}}, key=admin)
        assert statuses().count(429) >= 5, "what was used a moment ago under the old limit counts too"


def test_a_key_without_limits_is_revoked_before_it_is_read_again(
    gateway: GatewayProcess, admin: str, target: Target
) -> None:
    """Its calls do not ask the store; each worker hears of the change."""
    made = said(gateway, "POST", "/keys", {"name": "k"}, key=admin)
    assert ask(gateway, chat("m"), made["secret"]).status == 200
    said(gateway, "DELETE", f"/keys/{made['id']}", key=admin)

    def refused() -> bool | None:
        return all(ask(gateway, chat("m"), made["secret"]).status == 401 for _ in range(8)) or None

    eventually(refused, "the key's end")


def test_a_tenants_limit_holds_for_all_its_keys(gateway: GatewayProcess, admin: str, target: Target) -> None:
    name = f"t{os.urandom(4).hex()}"
    # With a limit of their own: then admission compares the tenant's record too, and the change holds at once.
    body = {"name": "k", "tenant": name, "limit": {"rpm": 1000}}
    secrets = [said(gateway, "POST", "/keys", body, key=admin)["secret"] for _ in range(3)]
    assert ask(gateway, chat("m"), secrets[0]).status == 200
    said(gateway, "PUT", f"/tenants/{name}", {"limit": {"rpm": 4}}, key=admin)
    statuses = [ask(gateway, chat("m"), secret).status for secret in secrets * 3]
    assert sorted(statuses) == [200] * 4 + [429] * 5


def test_a_rotation_with_overlap(gateway: GatewayProcess, admin: str, target: Target) -> None:
    made = said(gateway, "POST", "/keys", {"name": "k", "limit": ROOM}, key=admin)
    assert ask(gateway, chat("m"), made["secret"]).status == 200
    renewed = said(gateway, "POST", f"/keys/{made['id']}/rotate", {"overlap_seconds": 3600}, key=admin)
    assert [ask(gateway, chat("m"), key["secret"]).status for key in (made, renewed)] == [200, 200]
    last = said(gateway, "POST", f"/keys/{made['id']}/rotate", {"overlap_seconds": 0}, key=admin)
    assert [ask(gateway, chat("m"), key["secret"]).status for key in (made, renewed, last)] == [401, 401, 200]


def test_neither_kind_of_key_does_the_others_work(gateway: GatewayProcess, admin: str, target: Target) -> None:
    virtual = said(gateway, "POST", "/keys", {"name": "k"}, key=admin)["secret"]
    assert administer(gateway, "GET", "/keys", key=virtual).status == 401
    assert ask(gateway, chat("m"), admin).status == 401
    assert get(gateway, "/v1/models", admin).status == 401
    assert target.calls == []


@pytest.mark.parametrize("path", ["/admin/v1/keys", "/admin/v1/admin-keys", "/admin", "/admin/v1/audit"])
def test_the_data_plane_has_no_admin_routes(gateway: GatewayProcess, admin: str, path: str) -> None:
    for method in ("GET", "POST"):
        reply = ask(gateway, {"name": "k"}, admin, path, method=method)
        assert reply.status == 404 and reply.error["code"] == "path_not_found"


def test_the_admin_listener_does_not_infer(gateway: GatewayProcess, admin: str) -> None:
    virtual = said(gateway, "POST", "/keys", {"name": "k"}, key=admin)["secret"]
    connection = http.client.HTTPConnection("127.0.0.1", gateway.admin_port, timeout=40)
    for path in ("/v1/chat/completions", "/v1/models", "/metrics"):
        # Without a body: who refuses at once does not wait for one, and closes the connection on which it comes.
        connection.request("POST", path, headers={"authorization": f"Bearer {virtual}"})
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["error"]["code"]) == (404, "path_not_found")
    connection.close()


def test_the_command_line_and_the_interface_see_the_same(gateway: GatewayProcess, admin: str) -> None:
    made = said(gateway, "POST", "/keys", {"name": "k", "limit": {"rpm": 5}}, key=admin)
    shown = gateway.keys("show", made["id"])
    assert shown == said(gateway, "GET", f"/keys/{made['id']}", key=admin)
    changed = gateway.keys("update", made["id"], "--rpm", "6")
    again = said(gateway, "GET", f"/keys/{made['id']}", key=admin)
    assert {name: again[name] for name in changed} == changed
    newest = said(gateway, "GET", "/audit?count=2", key=admin)["data"]
    assert newest == gateway.said("admin", "audit", "--count", "2")
    assert [entry["actor"].partition(":")[0] for entry in newest] == ["cli", "admin"]


def test_what_was_used_is_told(gateway: GatewayProcess, admin: str, target: Target) -> None:
    made = said(gateway, "POST", "/keys", {"name": "k"}, key=admin)
    for _ in range(3):
        assert ask(gateway, chat("m"), made["secret"]).status == 200

    def three() -> bool | None:
        rows = said(gateway, "GET", "/usage?by=key,model", key=admin)["data"]
        return any((row["key"], row["model"], row["calls"]) == (made["id"], "m", 3) for row in rows) or None

    eventually(three, "the ledger has the calls")


def children(pid: int, word: str) -> list[int]:
    """Children of a process whose command line holds a word."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and word in (entry / "cmdline").read_text().replace("\0", " "):
                found.append(int(entry.name))
    return found


def answers(gateway: GatewayProcess, key: str) -> bool | None:
    try:
        return administer(gateway, "GET", "/keys", key=key).status == 200 or None
    except OSError:
        return None


def test_its_death_is_not_the_gateways_and_it_comes_back(upstream: Upstream, target: Target) -> None:
    with gateway_process(table(upstream), admin=True) as gateway:
        admin = gateway.said("admin", "create", "--name", "tests")["secret"]
        virtual = said(gateway, "POST", "/keys", {"name": "k"}, key=admin)["secret"]
        (pid,) = children(gateway.process.pid, "admin serve")
        os.kill(pid, signal.SIGKILL)
        assert ask(gateway, chat("m"), virtual).status == 200
        eventually(lambda: "the admin listener ended with code -9" in gateway.stderr() or None, "that is noticed")
        eventually(lambda: answers(gateway, admin), "the admin listener is back")
        (successor,) = children(gateway.process.pid, "admin serve")
        everyone = [successor, *children(successor, "admin serve")]
        assert gateway.stop() == 0
        assert not [pid for pid in everyone if Path(f"/proc/{pid}").exists()]


def test_it_does_not_outlive_a_gateway_that_is_killed(upstream: Upstream) -> None:
    with gateway_process(table(upstream), admin=True) as gateway:
        (pid,) = children(gateway.process.pid, "admin serve")
        everyone = [pid, *children(pid, "admin serve")]
        gateway.process.kill()
        gateway.process.wait()
        eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in everyone) or None, "it ended")


def test_it_is_off_unless_it_is_asked_for(upstream: Upstream) -> None:
    with gateway_process(table(upstream)) as gateway:
        assert children(gateway.process.pid, "admin serve") == []
        assert "admin interface" not in gateway.stderr()


def test_the_one_time_token_begins_it_all(upstream: Upstream) -> None:
    with gateway_process(table(upstream), admin=True) as gateway:
        once = one_time_token(gateway)
        assert administer(gateway, "GET", "/keys", key=once).status == 401
        assert administer(gateway, "POST", "/keys", {"name": "k"}, key=once).status == 401
        made = said(gateway, "POST", "/admin-keys", {"name": "me"}, key=once)
        assert administer(gateway, "POST", "/admin-keys", {"name": "you"}, key=once).status == 401
        assert said(gateway, "GET", "/keys", key=made["secret"])["data"] == []

        (pid,) = children(gateway.process.pid, "admin serve")
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: answers(gateway, made["secret"]), "the admin listener is back")
        assert gateway.stderr().count("Bearer tladm_") == 1, "another start makes no other token"
        assert "tladm_" not in gateway.stdout()


def test_the_printed_command_works_as_it_stands(upstream: Upstream) -> None:
    with gateway_process(table(upstream), admin=True) as gateway:
        one_time_token(gateway)
        command = re.search(r"^  (curl .*?)\n\n", gateway.stderr(), re.DOTALL | re.MULTILINE)
        assert command is not None
        done = subprocess.run(["sh", "-c", f"{command[1]} -s"], capture_output=True, text=True, timeout=40, check=True)
        assert said(gateway, "GET", "/keys", key=json.loads(done.stdout)["secret"])["data"] == []


def test_the_hash_lets_its_key_in_for_good(upstream: Upstream) -> None:
    token = mint(ADMIN)[1]
    digest = hashlib.sha256(token.encode()).hexdigest()
    with gateway_process(table(upstream), admin=True, env={"TRUNKLINE_ADMIN_HASH": digest}) as gateway:
        made = said(gateway, "POST", "/admin-keys", {"name": "me"}, key=token)
        said(gateway, "DELETE", f"/admin-keys/{made['id']}", key=token)
        assert administer(gateway, "GET", "/keys", key=made["secret"]).status == 401
        assert administer(gateway, "GET", "/keys", key=mint(ADMIN)[1]).status == 401
        assert administer(gateway, "GET", "/keys", key=digest).status == 401
        assert [entry["actor"] for entry in said(gateway, "GET", "/audit", key=token)["data"]] == ["bootstrap"] * 2
        assert "Bearer" not in gateway.stderr(), "no token is made where there is a hash"


def test_secrets_are_in_no_log(upstream: Upstream, target: Target) -> None:
    with gateway_process(table(upstream), admin=True, env={"TRUNKLINE_LOG_LEVEL": "debug"}) as gateway:
        once = one_time_token(gateway)
        admin = said(gateway, "POST", "/admin-keys", {"name": "me"}, key=once)["secret"]
        made = said(gateway, "POST", "/keys", {"name": "k"}, key=admin)
        secrets = [admin, made["secret"]]
        secrets.append(said(gateway, "POST", f"/keys/{made['id']}/rotate", {}, key=admin)["secret"])
        administer(gateway, "POST", "/keys", {"name": made["secret"], "nam": "x"}, key=admin)
        administer(gateway, "GET", f"/keys/{made['secret']}", key=admin)
        gateway.stop()
        logged = gateway.stderr().replace(once, "") + gateway.stdout()
        for secret in secrets:
            assert secret.split("_")[2][:20] not in logged


def test_without_redis_it_starts_and_says_so_and_recovers(upstream: Upstream, redis: RedisServer) -> None:
    """It is up before the store is: the one-time token comes when the store answers."""
    with RedisAway() as away, gateway_process_unready(table(upstream), away.server.url) as gateway:
        eventually(lambda: unready(gateway), "the admin listener answers")
        assert administer(gateway, "GET", "/keys", key=mint(ADMIN)[1]).status == 503
        assert "Bearer" not in gateway.stderr()
        away.server.restart()
        made = said(gateway, "POST", "/admin-keys", {"name": "me"}, key=one_time_token(gateway))
        assert said(gateway, "GET", "/keys", key=made["secret"])["data"] == []


class RedisAway:
    """A Redis that is not there yet."""

    def __enter__(self) -> RedisAway:
        from harness.redis_server import redis_server

        self._stack = ExitStack()
        self.server = self._stack.enter_context(redis_server())
        self.server.stop()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class gateway_process_unready:
    """A gateway that is not waited for."""

    def __init__(self, text: str, redis_url: str) -> None:
        self._text, self._redis_url = text, redis_url

    def __enter__(self) -> GatewayProcess:
        import tempfile

        self._folder = tempfile.TemporaryDirectory()
        self.gateway = GatewayProcess(
            self._text, Path(self._folder.name), redis_url=self._redis_url, workers=1, env={}, admin=True
        )
        return self.gateway

    def __exit__(self, *_: object) -> None:
        self.gateway.stop()
        self._folder.cleanup()


def unready(gateway: GatewayProcess) -> bool | None:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.admin_port, timeout=40)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200 or None
    except OSError:
        return None
    finally:
        connection.close()
