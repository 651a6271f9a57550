"""`trunkline init`: a table by what servers say of themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from harness.fake_backend import fake

from backends.api import Facts
from gateway.cli.init import Server, table_of
from gateway.config import load_table, parse_table

NOBODY = "http://127.0.0.1:1"


@pytest.mark.parametrize("kind", ["vllm", "tgi", "openai"])
def test_a_table_of_a_server(run: Callable[..., Result], tmp_path: Path, kind: str) -> None:
    file = tmp_path / "routing.yaml"
    with fake(kind) as server:
        result = run("init", f"127.0.0.1:{server.port}/v1/", "--output", str(file))
        assert result.exit_code == 0, result.output
        ((_, _, target),) = load_table(file)[0].targets()
        assert (target.backend, target.url) == (kind, server.url)
        assert run("check", str(file), "--probe").exit_code == 0
        again = run("init", server.url, "--output", str(file))
        assert again.exit_code == 1 and "--force writes over it" in again.stderr
        assert run("init", server.url, "--output", str(file), "--force").exit_code == 0
        assert run("init", server.url, "--output", "-").stdout == file.read_text()


def test_servers_of_one_model_are_targets_of_one_route(run: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "routing.yaml"
    with fake("vllm") as one, fake("vllm") as other:
        assert run("init", one.url, other.url, one.url, "--output", str(file)).exit_code == 0
        (route,) = load_table(file)[0].routes.values()
        assert [target.url for target in route.targets] == [one.url, other.url]


def test_a_server_that_is_not_there_is_named_and_nothing_is_written(run: Callable[..., Result], tmp_path: Path) -> None:
    file = tmp_path / "routing.yaml"
    with fake("vllm") as server:
        result = run("init", server.url, NOBODY, server.url + "/elsewhere", "--output", str(file))
    assert result.exit_code == 1 and not file.exists()
    one, other = result.stderr.splitlines()
    assert one.startswith(f"Error: {NOBODY} is unreachable") and "lists no models" in other


@pytest.mark.parametrize("typed", ["ftp://x", "http://", "http://a:b", "http://a?x=1", "http://user:secret@a"])
def test_what_is_no_url(refused: Callable[..., str], typed: str) -> None:
    (line,) = refused("init", typed).splitlines()
    assert "URL" in line and "secret" not in line


def test_a_credential_is_a_variable(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "routing.yaml"
    with fake("vllm") as server:
        result = run("init", server.url, "--credential", "ENGINE_KEY", "--output", str(file))
        assert result.exit_code == 1 and "ENGINE_KEY is not set" in result.stderr
        monkeypatch.setenv("ENGINE_KEY", "a-secret-of-an-engine")
        assert run("init", server.url, "--credential", "ENGINE_KEY", "--output", str(file)).exit_code == 0
    text = file.read_text()
    assert "a-secret" not in text and 'api_key: "${ENGINE_KEY}"' in text
    assert load_table(file)[0]


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-7B", "true", "1.5", "a: b", 'odd "name"', "llama3:8b", "#x"])
def test_any_name_of_a_model_makes_a_table(model: str) -> None:
    servers = [
        Server(f"http://h{number}:80", "openai", Facts(models=(model, "another"), loras=("l",))) for number in (1, 2)
    ]
    table, _ = parse_table(table_of(servers), "t")
    assert list(table.routes) == [model, "another"] and table.routes[model].loras
