"""`trunkline doctor` and `trunkline check --probe`: what is around a gateway, asked for real."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from harness.fake_backend import Fake, fake
from harness.redis_server import RedisServer, redis_server
from harness.redis_users import make_user

from gateway.cli import cli

NOBODY = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def server() -> Iterator[Fake]:
    with fake("vllm", "a") as made:
        yield made


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRUNKLINE_STATE", str(tmp_path / "keys.db"))
    monkeypatch.setenv("TRUNKLINE_PEPPERS", "1:a-pepper-of-more-than-16-characters")


def table(folder: Path, *targets: dict[str, Any], route: str = "any") -> str:
    file = folder / "routing.yaml"
    file.write_text(json.dumps({"routes": {route: {"targets": targets}}}))
    return str(file)


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def found(result: Result, what: str) -> list[tuple[str, str, str]]:
    told = json.loads(result.stdout)["found"]
    return [(each["verdict"], each["told"], each["next"]) for each in told if each["what"] == what]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    """Of its own: settings are changed here, and what is not allowed to a user stays in the server's log of it."""
    with redis_server() as server:
        yield server


def test_all_is_well(tmp_path: Path, server: Fake, redis: RedisServer) -> None:
    redis.ask("CONFIG", "SET", "appendonly", "yes")
    file = table(tmp_path, server.spec())
    result = run("doctor", file, "--redis-url", redis.url, "--json")
    told = json.loads(result.stdout)
    assert result.exit_code == 0 and told["ok"]
    assert not [each for each in told["found"] if each["verdict"] == "wrong"]
    (target,) = found(result, "target")
    assert "version 0.32.0; context 32768" in target[1]
    ((_, said, _),) = found(result, "clock")
    assert said.startswith("that of Redis is ")
    assert found(result, "Redis")[1:] == [
        ("ok", "maxmemory-policy is noeviction", ""),
        ("ok", "its user may do what a gateway does", ""),
    ]


def test_each_line_has_a_verdict_and_what_to_do(tmp_path: Path, server: Fake) -> None:
    file = table(tmp_path, server.spec(), {"name": "gone", "backend": "vllm", "url": NOBODY})
    result = run("doctor", file, "--redis-url", "redis://127.0.0.1:1/0")
    *lines, last = result.stdout.splitlines()
    assert result.exit_code == 1 and last.startswith("wrong: 2, ")
    assert {line.split()[0] for line in lines} <= {"ok", "warning", "wrong"}
    wrong = [line for line in lines if line.startswith("wrong")]
    assert "no answer from Redis" in wrong[0] and "is it started" in wrong[0]
    assert "gone" in wrong[1] and "unreachable; is the server up" in wrong[1]


def test_a_redis_that_evicts_and_forgets(tmp_path: Path, server: Fake) -> None:
    with redis_server() as redis:
        redis.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        result = run("doctor", table(tmp_path, server.spec()), "--redis-url", redis.url, "--json")
    assert result.exit_code == 1
    verdicts = {told: (verdict, more) for verdict, told, more in found(result, "Redis")}
    assert verdicts["maxmemory-policy is allkeys-lru: it may evict keys and counters"] == (
        "wrong",
        "set it to noeviction",
    )
    assert verdicts["it keeps no append-only file: a restart loses keys and limits"][0] == "warning"


@pytest.mark.parametrize(
    ("without", "told"), [("", ""), ("+xadd", "xadd on {tl}:ledger"), ("~{tl}:rate:*", "pexpire on {tl}:rate:*")]
)
def test_a_user_who_may_not(tmp_path: Path, server: Fake, redis: RedisServer, without: str, told: str) -> None:
    url = make_user(redis, "gateway", without=without)
    result = run("doctor", table(tmp_path, server.spec()), "--redis-url", url, "--json")
    denied = [said for verdict, said, _ in found(result, "Redis") if verdict == "wrong"]
    assert bool(denied) == bool(without)
    assert told in "".join(denied)
    assert redis.ask("KEYS", "{tl}*doctor*") == [], "it has changed nothing"


def test_settings_that_are_misspelt(tmp_path: Path, server: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUNKLINE_SOMETHING_ELSE", "1")
    result = run("doctor", table(tmp_path, server.spec()), "--json")
    assert "TRUNKLINE_SOMETHING_ELSE is no setting" in str(found(result, "settings"))
    monkeypatch.setenv("TRUNKLINE_REDIS_ULR", "redis://x")
    result = run("doctor", table(tmp_path, server.spec()), "--json")
    assert result.exit_code == 1 and "TRUNKLINE_REDIS_URL meant" in str(found(result, "settings"))


def test_what_a_gateway_refuses_to_start_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Fake) -> None:
    monkeypatch.setenv("TRUNKLINE_WORKERS", "2")
    monkeypatch.setenv("TRUNKLINE_ADMIN_HASH", "abc")
    result = run("doctor", table(tmp_path, server.spec()), "--json")
    wrong = [said for verdict, said, _ in found(result, "settings") if verdict == "wrong"]
    assert result.exit_code == 1 and len(wrong) == 2
    assert "64 hexadecimal digits" in wrong[0] and "needs TRUNKLINE_REDIS_URL" in wrong[1]


def test_few_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Fake) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    ((verdict, told, more),) = found(run("doctor", table(tmp_path, server.spec()), "--json"), "open files")
    assert verdict == "warning" and "1024 open" in told and "LimitNOFILE" in more


def test_a_table_with_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "routing.yaml").write_text("routs: {}")
    result = run("doctor", str(tmp_path / "routing.yaml"), "--json")
    assert result.exit_code == 1 and "did you mean 'routes'?" in str(found(result, "table"))


def test_check_asks_each_target(tmp_path: Path, server: Fake) -> None:
    file = table(
        tmp_path,
        server.spec(name="good"),
        server.spec(name="below", url=server.url + "/v2"),
        server.spec(name="named", model="nobody"),
        {"name": "gone", "backend": "vllm", "url": NOBODY},
        {"name": "ours", "backend": "llamacpp", "launch": {"model": "embedded"}},
    )
    result = run("check", file, "--probe", "--json")
    targets = {each["target"]: each for each in json.loads(result.stdout)["targets"]}
    assert result.exit_code == 1 and list(targets) == ["good", "below", "named", "gone", "ours"]
    assert targets["good"]["context"] == 32768 and targets["good"]["version"] == "0.32.0"
    assert [targets[name]["why"] for name in ("below", "gone")] == ["status 404", "unreachable"]
    assert "lists no model 'nobody'" in targets["named"]["why"] and targets["named"]["verdict"] == "wrong"
    assert targets["ours"]["verdict"] == "ok" and "not asked" in targets["ours"]["why"]
    lines = run("check", file, "--probe").stdout.splitlines()
    assert len([line for line in lines if line.startswith(("ok ", "warning ", "wrong "))]) == 5


def test_a_name_that_the_server_does_not_know_is_warned_of(tmp_path: Path, server: Fake) -> None:
    listed = json.loads(run("check", table(tmp_path, server.spec()), "--probe", "--json").stdout)["targets"][0]
    (name,) = listed["models"]
    result = run("check", table(tmp_path, server.spec(), route="another"), "--probe", "--json")
    (told,) = json.loads(result.stdout)["targets"]
    assert result.exit_code == 0 and told["verdict"] == "warning"
    assert "lists no model 'another', which it is asked for" in told["why"] and name in told["why"]
    result = run("check", table(tmp_path, server.spec(), route=name), "--probe", "--json")
    assert json.loads(result.stdout)["targets"][0]["verdict"] == "ok"


class _Closed(BaseHTTPRequestHandler):
    """Healthy, and lets nobody in."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 401)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_credential_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_KEY", "a-credential-of-before")
    with ThreadingHTTPServer(("127.0.0.1", 0), _Closed) as closed:
        thread = threading.Thread(target=closed.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{closed.server_address[1]}"
        file = table(tmp_path, {"name": "closed", "backend": "vllm", "url": url, "api_key": "${ENGINE_KEY}"})
        result = run("check", file, "--probe")
        closed.shutdown()
        thread.join()
    (line,) = [line for line in result.stdout.splitlines() if "closed" in line]
    assert result.exit_code == 1
    assert line.startswith("wrong") and "credential refused; is 'api_key' the one" in line
