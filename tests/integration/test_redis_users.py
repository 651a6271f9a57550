"""Each process with the user of Redis that docs/security.md gives its role: all of it works, and nothing is refused."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import openai
import pytest
import redis as redis_py
from click.testing import CliRunner
from harness.gateway_process import TRUNKLINE, GatewayProcess, gateway_process
from harness.redis_flavours import flavours
from harness.redis_server import RedisServer, free_port, redis_server
from harness.redis_users import PASSWORD, make_user, refused
from harness.upstream import Upstream
from integration.client import ask, chat, eventually
from integration.engine import Engine, table

from gateway.cli.group import cli

HERE = dict(flavours())
LIMITS = ("--rpm", "900", "--tpm", "1M", "--itpm", "1M", "--otpm", "1M", "--concurrency", "9")
BUDGETS = [f"{period}:{spent}=10000000" for period in ("day", "week", "month") for spent in ("tokens", "money")]
FAULTS = re.compile("does not allow|never retrieved|Traceback|NOPERM", re.IGNORECASE)


@pytest.fixture(params=[name for name in ("redis-6.2", "valkey-9") if name in HERE])
def own(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with redis_server(binary=HERE[request.param]) as server:
        yield server


def command(url: str, *words: str, env: dict[str, str] | None = None) -> Any:
    """What a command says in JSON that works with this user."""
    done = CliRunner().invoke(cli, [*words, "--redis-url", url, "--json"], env=env)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def calls(gateway: GatewayProcess, key: str, admin_key: str) -> None:
    """What callers do."""
    assert ask(gateway, chat("m"), key).status == 200
    assert ask(gateway, chat("m", stream=True), key).status == 200
    assert ask(gateway, chat("m"), key, headers={"x-trunkline-explain": admin_key}).status == 200
    assert ask(gateway, chat("m"), key[:-1] + ("a" if key[-1] != "a" else "b")).status == 401
    assert ask(gateway, chat("none"), key).status == 404
    assert ask(gateway, chat("m", max_tokens=2_000_000), key).status in (400, 429)


def test_each_role_works_with_its_user_and_asks_for_nothing_else(own: RedisServer, upstream: Upstream) -> None:
    gateway_url, admin, reader = (make_user(own, role) for role in ("gateway", "admin", "reader"))
    engine = Engine(upstream, "guarded-redis")
    routes = table({"m": {"targets": [engine.spec("vllm", max_inflight=50)]}})
    with gateway_process(routes, redis_url=gateway_url, workers=2) as gateway:
        routing = ("--routing", str(gateway.routing))
        command(admin, "tenants", "set", "team", "--rpm", "10000")
        options = [word for budget in BUDGETS for word in ("--budget", budget)]
        made = command(admin, "keys", "create", "--name", "n", "--tenant", "team", *LIMITS, *options)
        admin_key = command(admin, "admin", "create", "--name", "a")
        calls(gateway, made["secret"], admin_key["secret"])
        own.ask("SCRIPT", "FLUSH")
        own.ask("DEL", "{tl}:complete")  # the budgets are rebuilt
        calls(gateway, made["secret"], admin_key["secret"])
        eventually(lambda: command(reader, "usage")["total"]["calls"] >= 4 or None, "the ledger is written")
        eventually(lambda: command(reader, "targets", "list", *routing)[0]["state"] == "up" or None, "gateways report")
        command(reader, "keys", "list")
        command(reader, "keys", "show", made["id"])
        command(reader, "tenants", "list")
        command(reader, "tenants", "show", "team")
        command(reader, "admin", "list")
        command(reader, "admin", "audit")
        assert command(reader, "explain", "--model", "m", "--key", made["id"], *routing)["picked"] == engine.name
        command(admin, "keys", "update", made["id"], "--rpm", "800")
        rotated = command(admin, "keys", "rotate", made["id"])
        command(admin, "targets", "drain", engine.name, *routing)
        eventually(lambda: ask(gateway, chat("m"), rotated["secret"]).status == 503 or None, "the drain is heard of")
        command(admin, "targets", "undrain", engine.name, *routing)
        eventually(lambda: ask(gateway, chat("m"), rotated["secret"]).status == 200 or None, "and that it is over")
        command(admin, "keys", "revoke", made["id"])
        assert ask(gateway, chat("m"), rotated["secret"]).status == 401
        command(admin, "admin", "revoke", admin_key["id"])
        assert gateway.stop() == 0
        assert not FAULTS.search(gateway.stderr()), gateway.stderr()
    assert refused(own) == []


def test_a_gateway_that_writes_keys_has_the_rules_of_both(own: RedisServer, upstream: Upstream) -> None:
    """One that has the admin interface, and one that hashes keys anew under another pepper."""
    url, engine = make_user(own, "gateway", "admin"), Engine(upstream, "guarded-redis")
    routes = table({"m": {"targets": [engine.spec()]}})
    old, both = {"TRUNKLINE_PEPPERS": f"1:{'a' * 32}"}, {"TRUNKLINE_PEPPERS": f"2:{'b' * 32},1:{'a' * 32}"}
    made = command(url, "keys", "create", "--name", "n", env=old)
    with gateway_process(routes, redis_url=url, env=both, admin=True) as gateway:
        assert ask(gateway, chat("m"), made["secret"]).status == 200
        hashed = eventually(
            lambda: "key.rehash" in {each["action"] for each in command(url, "admin", "audit")} or None, "it is hashed"
        )
        assert hashed
        assert gateway.stop() == 0
        assert not FAULTS.search(gateway.stderr()), gateway.stderr()
    assert refused(own) == []


def test_a_gateway_that_cannot_hash_keys_anew_serves_and_says_why(own: RedisServer, upstream: Upstream) -> None:
    if "6.2" in str(own.ask("INFO", "server")["redis_version"]):
        pytest.skip("it cannot tell reading from writing")
    url, engine = make_user(own, "gateway"), Engine(upstream, "guarded-redis")
    old, both = {"TRUNKLINE_PEPPERS": f"1:{'a' * 32}"}, {"TRUNKLINE_PEPPERS": f"2:{'b' * 32},1:{'a' * 32}"}
    made = command(make_user(own, "admin"), "keys", "create", "--name", "n", env=old)
    with gateway_process(table({"m": {"targets": [engine.spec()]}}), redis_url=url, env=both) as gateway:
        assert [ask(gateway, chat("m"), made["secret"]).status for _ in range(3)] == [200] * 3
        eventually(lambda: "the script put" in gateway.stderr() or None, "it says so")
        assert gateway.stderr().count("does not allow") == 1
        assert gateway.stop() == 0


def test_a_gateway_that_may_not_count_says_so_once_and_counts_alone(own: RedisServer, upstream: Upstream) -> None:
    engine = Engine(upstream, "guarded-redis")
    made = command(own.url, "keys", "create", "--name", "n", "--rpm", "900")
    url = make_user(own, "gateway", without="~{tl}:rate:*")
    with gateway_process(table({"m": {"targets": [engine.spec()]}}), redis_url=url) as gateway:
        assert [ask(gateway, chat("m"), made["secret"]).status for _ in range(5)] == [200] * 5
        said = gateway.stderr()
        lines = [line for line in said.splitlines() if "has the rules of each role" in line]
        assert [re.search(r"the script (\w+)", line)[1] for line in lines] == ["admit", "settle"]  # type: ignore[index]
        assert all("{tl}:rate:*" in line for line in lines) and PASSWORD not in said
        make_user(own, "gateway")  # the operator has read it
        eventually(
            lambda: (ask(gateway, chat("m"), made["secret"]) and "limits are shared again" in gateway.stderr()) or None,
            "it counts with the others again",
        )
        assert gateway.stderr().count("limits are counted in this gateway only") == 1
        assert gateway.stop() == 0


def test_the_consumer_of_the_ledger_has_what_it_needs(own: RedisServer) -> None:
    url = make_user(own, "ledger")
    own.ask("HSET", "{tl}:usage:2026-11-22", "calls|k|t|r", 1)
    own.ask("ZADD", "{tl}:usage", 0, "2026-11-22")
    with redis_py.Redis.from_url(url, decode_responses=True) as client:
        client.xgroup_create("{tl}:ledger", "billing", "0", mkstream=True)
        own.ask("XADD", "{tl}:ledger", "*", "entry", "{}")
        ((_, ((number, _),)),) = client.xreadgroup("billing", "worker-1", {"{tl}:ledger": ">"}, count=5)
        assert client.xack("{tl}:ledger", "billing", number) == 1
        assert client.xinfo_groups("{tl}:ledger")[0]["name"] == "billing"
        assert client.zrangebylex("{tl}:usage", "-", "+") == ["2026-11-22"]
        assert client.hgetall("{tl}:usage:2026-11-22") == {"calls|k|t|r": "1"}
        assert client.hgetall("{tl}:targets") == {}
        with pytest.raises(redis_py.exceptions.NoPermissionError):
            client.xadd("{tl}:ledger", {"entry": "{}"})
    asked = {each["object"] for each in refused(own)}
    assert asked - {"client"} == {"xadd"}, "what clients say of themselves is theirs"


def test_the_admin_interface_alone_has_what_it_needs(own: RedisServer, tmp_path: Path, upstream: Upstream) -> None:
    url, routing, port = make_user(own, "admin"), tmp_path / "routing.yaml", free_port()
    routing.write_text(table({"m": {"targets": [Engine(upstream, "guarded-redis").spec()]}}))
    admin_key = command(url, "admin", "create", "--name", "a")["secret"]
    words = ["admin", "serve", str(routing), "--port", str(port), "--redis-url", url]
    with (tmp_path / "err").open("wb") as err:
        process = subprocess.Popen([*TRUNKLINE, *words], stderr=err)

    def administer(method: str, path: str, body: Any = None) -> Any:
        raw = None if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {admin_key}", "content-type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/admin/v1{path}", raw, headers, method=method)
        with urllib.request.urlopen(request, timeout=40) as answer:
            return json.load(answer)

    def answered() -> Any:
        with suppress(OSError):
            return administer("GET", "/keys")
        assert process.poll() is None, (tmp_path / "err").read_text()

    try:
        eventually(answered, "it serves")
        made = administer("POST", "/keys", {"name": "n", "limit": {"rpm": 10}})
        administer("PATCH", f"/keys/{made['id']}", {"limit": {"rpm": 20}})
        administer("DELETE", f"/keys/{made['id']}")
        for path in ("/targets", "/tenants", "/audit", "/usage", "/admin-keys"):
            administer("GET", path)
    finally:
        process.terminate()
        process.wait()
    said = (tmp_path / "err").read_text()
    assert not FAULTS.search(said), said
    assert refused(own) == []


def test_a_gateway_that_stores_files_has_two_roles(own: RedisServer, tmp_path: Path, upstream: Upstream) -> None:
    url, engine = make_user(own, "gateway", "batches"), Engine(upstream, "guarded-redis")
    made = command(make_user(own, "admin"), "keys", "create", "--name", "n", "--rpm", "900")
    own.ask("ACL", "LOG", "RESET")
    line = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": chat("m")}
    with (
        gateway_process(
            table({"m": {"targets": [engine.spec()]}}), redis_url=url, env={"TRUNKLINE_FILES": str(tmp_path)}
        ) as gateway,
        openai.OpenAI(api_key=made["secret"], base_url=f"{gateway.url}/v1", max_retries=0) as ours,
    ):
        file = ours.files.create(file=("lines.jsonl", json.dumps(line).encode()), purpose="batch")
        batch = ours.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        ended = lambda: ours.batches.retrieve(batch.id).status == "completed" or None  # noqa: E731
        eventually(ended, "the batch is done", 60)
        assert [each.id for each in ours.batches.list()] == [batch.id]
        done = ours.batches.retrieve(batch.id)
        assert done.output_file_id is not None and b'"custom_id":"1"' in ours.files.content(done.output_file_id).read()
        ours.files.delete(file.id)
        assert gateway.stop() == 0
        assert not FAULTS.search(gateway.stderr()), gateway.stderr()
    assert refused(own) == []
