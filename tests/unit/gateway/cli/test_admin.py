"""`trunkline admin`: admin keys, the audit log, and the hash that needs no store."""

from __future__ import annotations

import getpass
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from gateway.auth import parse
from gateway.auth.token import ADMIN

Run = Callable[..., Result]
Said = Callable[..., Any]
Refused = Callable[..., str]


def test_an_admin_key_from_its_making_to_its_end(said: Said, run: Run, tmp_path: Path) -> None:
    key = said("admin", "create", "--name", "me", "--expires", "90d")
    key_id, secret = parse(key["secret"], ADMIN)
    assert key_id == key["id"]
    written = (tmp_path / "keys.db").read_bytes()
    assert key_id.encode() in written and secret.encode() not in written
    (listed,) = said("admin", "list")
    assert (listed["id"], listed["status"], listed["once"]) == (key_id, "active", False)
    assert listed["expires"] - listed["created"] == pytest.approx(90 * 86400, abs=1)
    assert "is revoked" in run("admin", "revoke", key_id).stdout
    assert said("admin", "list")[0]["status"] == "revoked"


def test_every_change_is_in_the_audit_log(said: Said, run: Run) -> None:
    key = said("keys", "create", "--name", "k", "--rpm", "5")
    said("keys", "update", key["id"], "--rpm", "6")
    said("tenants", "set", "acme", "--rpm", "7")
    run("keys", "rotate", key["id"])
    run("keys", "revoke", key["id"])
    admin = said("admin", "create", "--name", "me")
    run("admin", "revoke", admin["id"])

    entries = said("admin", "audit")
    assert {entry["actor"] for entry in entries} == {f"cli:{getpass.getuser()}"}
    assert [(entry["action"], entry["subject"]) for entry in reversed(entries)] == [
        ("key.create", f"key:{key['id']}"),
        ("key.update", f"key:{key['id']}"),
        ("tenant.set", "tenant:acme"),
        ("key.rotate", f"key:{key['id']}"),
        ("key.revoke", f"key:{key['id']}"),
        ("admin.create", f"admin:{admin['id']}"),
        ("admin.revoke", f"admin:{admin['id']}"),
    ]
    assert len(said("admin", "audit", "--count", "2")) == 2
    assert "limit.rpm: 5 -> 6" in run("admin", "audit").stdout


def test_the_hash_is_of_the_token_and_asks_no_store(said: Said, run: Run, tmp_path: Path) -> None:
    made = said("admin", "hash")
    parse(made["secret"], ADMIN)
    assert made["hash"] == hashlib.sha256(made["secret"].encode()).hexdigest()
    assert said("admin", "hash")["secret"] != made["secret"]
    assert "TRUNKLINE_ADMIN_HASH=" in run("admin", "hash").stdout
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_named(refused: Refused) -> None:
    assert "there is no admin key 'nobody'; `trunkline admin list` shows all" in refused("admin", "revoke", "nobody")
    assert "--name" in refused("admin", "create")
    assert "has passed" in refused("admin", "create", "--name", "me", "--expires", "0s")


def test_nothing_yet(run: Run) -> None:
    assert "trunkline admin create" in run("admin", "list").stdout
    assert "Nothing was changed" in run("admin", "audit").stdout


def test_serving_needs_a_port_and_a_sound_hash(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "routing.yaml"
    table.write_text(
        '{"routes": {"m": {"targets": [{"name": "a", "backend": "openai", "url": "http://127.0.0.1:9"}]}}}'
    )
    monkeypatch.delenv("TRUNKLINE_ADMIN_PORT", raising=False)
    assert "TRUNKLINE_ADMIN_PORT" in refused("admin", "serve", str(table))
    monkeypatch.setenv("TRUNKLINE_ADMIN_HASH", "tladm_not_a_hash")
    message = refused("admin", "serve", str(table), "--port", "1234")
    assert "TRUNKLINE_ADMIN_HASH" in message and "tladm_not_a_hash" not in message
