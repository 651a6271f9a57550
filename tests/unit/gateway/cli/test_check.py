"""`trunkline check`: a table examined without starting anything."""

from __future__ import annotations

import json
import socket
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gateway.cli import cli

GOOD = "routes:\n  one: {targets: [{name: a, backend: vllm, url: 'http://a'}]}\n"


def check(folder: Path, text: str, *options: str) -> Result:
    file = folder / "routing.yaml"
    file.write_text(text)
    return CliRunner().invoke(cli, ["check", str(file), *options])


def test_a_good_table_has_a_hash_by_which_a_gateway_tells_it(tmp_path: Path) -> None:
    expected = sha256(GOOD.encode()).hexdigest()[:12]
    result = check(tmp_path, GOOD)
    assert result.exit_code == 0
    assert "1 routes, 1 targets" in result.stdout and f"hash {expected}" in result.stdout
    said = json.loads(check(tmp_path, GOOD, "--json").stdout)
    assert said == {"ok": True, "mistakes": [], "config_hash": expected}


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_bad_table_has_none(tmp_path: Path, options: list[str]) -> None:
    result = check(tmp_path, "routes: {one: {targets: []}}", *options)
    assert result.exit_code == 1
    assert "has no targets" in result.output and "hash" not in result.output


def test_a_name_of_several_servers_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(socket.AF_INET, 1, 6, "", (f"10.0.0.{number}", 0)) for number in (1, 2)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    result = check(tmp_path, GOOD)
    assert result.exit_code == 0 and "2 addresses (10.0.0.1, 10.0.0.2)" in result.stderr
    (said,) = json.loads(check(tmp_path, GOOD, "--json").stdout)["mistakes"]
    assert said["warning"] and said["line"] == 2


def test_where_files_lie_is_told_and_that_a_folder_must_be_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRUNKLINE_FILES", str(tmp_path / "files"))
    result = check(tmp_path, GOOD)
    assert f"files and batches: {tmp_path / 'files'}" in result.output and "all hosts" not in result.output
    monkeypatch.setenv("TRUNKLINE_REDIS_URL", "redis://127.0.0.1:1/0")
    assert "all hosts that share this Redis must see the same folder" in check(tmp_path, GOOD).output
    monkeypatch.setenv("TRUNKLINE_FILES", "s3://bucket/files")
    assert "all hosts" not in check(tmp_path, GOOD).output
    monkeypatch.setenv("TRUNKLINE_FILES", "http://host/files")
    result = check(tmp_path, GOOD)
    assert result.exit_code == 1 and "s3://" in result.output
