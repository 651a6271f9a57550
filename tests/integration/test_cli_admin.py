"""Commands as a person runs them: processes of their own, on a store that gateways are using."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from harness.gateway_process import TRUNKLINE, GatewayProcess
from harness.redis_server import RedisServer, free_port
from harness.upstream import Target
from integration.client import ask, chat, eventually

GOLDEN = Path(__file__).parents[1] / "golden"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TRUNKLINE, *arguments], capture_output=True, text=True, timeout=90, env={**os.environ, **environment}
    )


def test_limits_set_by_command_hold_in_a_running_gateway(gateway: GatewayProcess, solo: Target) -> None:
    key = gateway.keys("create", "--name", "k", "--tenant", "cli-tenant", "--rpm", "1000")
    assert ask(gateway, chat("solo"), key["secret"]).status == 200
    gateway.keys("update", key["id"], "--clear", "rpm", "--model-limit", "solo:concurrency=1", "--model", "solo")
    assert ask(gateway, chat("good"), key["secret"]).status == 403
    assert ask(gateway, chat("solo"), key["secret"]).status == 200
    gateway.said("tenants", "set", "cli-tenant", "--rpm", "2")
    statuses = [ask(gateway, chat("solo"), key["secret"]).status for _ in range(4)]
    assert statuses == [200, 200, 429, 429]


def test_an_endpoint_and_a_network_keep_a_key_to_themselves(gateway: GatewayProcess, solo: Target) -> None:
    key = gateway.keys("create", "--name", "k", "--endpoint", "embeddings")
    assert ask(gateway, chat("solo"), key["secret"]).status == 403
    key = gateway.keys("create", "--name", "k", "--source", "203.0.113.0/24")
    assert ask(gateway, chat("solo"), key["secret"]).status == 403
    key = gateway.keys("create", "--name", "k", "--source", "127.0.0.0/8")
    assert ask(gateway, chat("solo"), key["secret"]).status == 200


def test_commands_work_on_redis(redis: RedisServer) -> None:
    store = ("--redis-url", redis.url)
    made = run("keys", "create", "--name", "k", "--tenant", "on-redis", "--budget", "month:money=0.1", *store)
    assert made.returncode == 0, made.stderr
    listed = run("keys", "list", "--tenant", "on-redis", *store)
    assert made.stdout.split("_")[1] in listed.stdout and "0.1 money/month" in listed.stdout
    assert run("tenants", "set", "on-redis", "--rpm", "5", *store).returncode == 0
    assert "5 rpm" in run("tenants", "list", *store).stdout
    assert "tenant.set" in run("admin", "audit", *store).stdout


@pytest.mark.parametrize("command", [("keys", "list"), ("tenants", "list"), ("admin", "audit"), ("admin", "list")])
def test_a_store_that_is_not_there_is_told_in_a_sentence(command: tuple[str, str]) -> None:
    done = run(*command, "--redis-url", f"redis://127.0.0.1:{free_port()}/0")
    assert done.returncode == 1
    assert "Error: the key store cannot be used: " in done.stderr and "Traceback" not in done.stderr


TABLE = '{"routes": {"m": {"targets": [{"name": "a", "backend": "openai", "url": "http://127.0.0.1:9"}]}}}'


@pytest.mark.parametrize("name", ["keys.json", "keys.db"])
@pytest.mark.parametrize("command", [("keys", "list"), ("serve", "routing.yaml"), ("admin", "serve", "--port", "1234")])
def test_a_state_file_that_is_none_is_told_in_a_sentence(tmp_path: Path, command: tuple[str, ...], name: str) -> None:
    (tmp_path / "routing.yaml").write_text(TABLE)
    (tmp_path / name).write_text("{nonsense" * 100)
    words = [str(tmp_path / word) if word == "routing.yaml" else word for word in command]
    words += [str(tmp_path / "routing.yaml")] if command[0] == "admin" else []
    done = run(*words, "--state", str(tmp_path / name))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("Error: the key store cannot be used: ")]
    assert str(tmp_path / name) in said


def test_the_state_of_an_earlier_version_is_read_by_the_first_command(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "state", tmp_path / "state")
    store = ("--state", str(tmp_path / "state" / "keys.json"))
    first, second = run("keys", "list", "--json", *store), run("usage", "--from", "2026-11-22", "--json", *store)
    assert sorted(key["name"] for key in json.loads(first.stdout)) == ["Zoë's key ☃", "revoked", "rotated"]
    assert "keys.json was read: 3 keys" in first.stderr and second.stderr == ""
    assert json.loads(second.stdout)["total"]["calls"] == 60
    assert "key.rotate" in run("admin", "audit", *store).stdout


def test_an_admin_listener_alone(tmp_path: Path) -> None:
    table = tmp_path / "routing.yaml"
    table.write_text(TABLE)
    port = free_port()
    command = [*TRUNKLINE, "admin", "serve", str(table), "--port", str(port), "--state", str(tmp_path / "keys.json")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            assert any("trunkline admin create" in line for line in process.stderr), "the one-time token is printed"

            def lives() -> bool | None:
                with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=40) as answer:
                    return bool(answer.status == 200)
                return None

            eventually(lives, "it answers")
        finally:
            process.terminate()
    assert process.returncode == 0
