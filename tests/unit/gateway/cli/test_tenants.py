"""`trunkline tenants`: what is set stays set, and tenants that only keys name are there too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

Run = Callable[..., Result]
Said = Callable[..., Any]
Refused = Callable[..., str]


def test_setting_again_leaves_the_rest_alone(said: Said) -> None:
    first = said("tenants", "set", "acme", "--rpm", "100", "--budget", "month:money=500", "--label", "owner=me")
    assert first["limit"] == {"rpm": 100, "budget": {"month": {"cost_micros": 500_000_000}}}
    second = said("tenants", "set", "acme", "--tpm", "1M", "--clear", "rpm")
    assert second["limit"] == {"tpm": 1_000_000, "budget": {"month": {"cost_micros": 500_000_000}}}
    assert (second["labels"], second["version"]) == ({"owner": "me"}, 2)
    assert said("tenants", "show", "acme") == second


def test_a_tenant_may_be_set_without_limits(said: Said) -> None:
    assert said("tenants", "set", "acme")["version"] == 1


def test_the_list_has_those_that_keys_name(said: Said, run: Run) -> None:
    said("tenants", "set", "b", "--rpm", "1")
    keys = [said("keys", "create", "--name", "k", "--tenant", "a") for _ in range(3)]
    run("keys", "revoke", keys[0]["id"])
    shown = [(each["id"], each["version"], each["keys"]) for each in said("tenants", "list")]
    assert shown == [("a", 0, 2), ("b", 1, 0)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("set", "a b"), "'a b'"),
        (("set", "a:b"), "'a:b'"),
        (("set", "a", "--rpm", "0"), "'0'"),
        (("set", "a", "--clear", "expires"), "a tenant has no expires"),
        (("set", "a", "--rpm", "1", "--clear", "rpm"), "set and cleared"),
        (("show", "nobody"), "there is no tenant 'nobody'"),
    ],
)
def test_what_cannot_be_is_named(refused: Refused, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused("tenants", *arguments)


def test_nothing_yet(run: Run) -> None:
    assert "trunkline tenants set" in run("tenants", "list").stdout
