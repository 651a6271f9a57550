"""`keys delete` and `tenants delete`: what is deleted is not there to operators, and opens nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Said = Callable[..., Any]
Refused = Callable[..., str]


def test_a_deleted_key_is_not_there(said: Said, refused: Refused) -> None:
    key, other = (said("keys", "create", "--name", name, "--tenant", "acme") for name in "ab")
    buried = said("keys", "delete", key["id"])
    assert buried["status"] == "revoked" and buried["secrets"] == [] and buried["version"] == key["version"] + 1
    assert [each["id"] for each in said("keys", "list")] == [other["id"]]
    for command in (["show"], ["revoke"], ["rotate"], ["delete"], ["update", "--rpm", "5"]):
        assert "there is no key" in refused("keys", *command, key["id"])
    assert "401" in refused("explain", "--model", "m", "--key", key["id"])
    assert "401" in refused("explain", "--model", "m", "--key", key["secret"])
    assert said("admin", "audit")[0]["action"] == "key.delete"


def test_a_tenant_is_deleted_when_it_has_no_keys(said: Said, refused: Refused) -> None:
    said("tenants", "set", "acme", "--rpm", "5", "--label", "a=b")
    key = said("keys", "create", "--name", "k", "--tenant", "acme")
    assert "'acme' has 1 keys" in refused("tenants", "delete", "acme")
    said("keys", "delete", key["id"])
    assert said("tenants", "delete", "acme") == {"id": "acme", "version": 2}
    assert said("tenants", "list") == []
    for command in ("show", "delete"):
        assert "there is no tenant" in refused("tenants", command, "acme")
    anew = said("tenants", "set", "acme", "--tpm", "7")
    assert (anew["limit"], anew["labels"], anew["version"]) == ({"tpm": 7}, {}, 3)


def test_a_tenant_without_a_record_cannot_be_deleted(said: Said, refused: Refused) -> None:
    key = said("keys", "create", "--name", "k", "--tenant", "acme")
    said("keys", "revoke", key["id"])
    assert "there is no tenant" in refused("tenants", "delete", "acme")
