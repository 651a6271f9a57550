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
    shown = said("tenants", "show", "acme")
    assert shown.pop("standing") and shown == second


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


def test_what_a_tenant_may_store_is_set_shown_and_cleared(said: Said, run: Run) -> None:
    one = said("tenants", "set", "t", "--storage", "bytes=20GiB", "--storage", "lines=100k")
    assert one["storage"] == {"bytes": 20 * 2**30, "lines": 100_000}
    assert "bytes: 21474836480" in run("tenants", "show", "t").stdout
    assert said("tenants", "set", "t", "--clear", "storage:bytes", "--storage", "days=7")["storage"] == {
        "lines": 100_000,
        "days": 7,
    }
    assert said("tenants", "set", "t", "--clear", "storage")["storage"] == {}


@pytest.mark.parametrize("option", ["rows=3", "bytes=many", "days=0", "bytes"])
def test_what_cannot_be_stored_is_named(refused: Refused, option: str) -> None:
    assert option.partition("=")[0] in refused("tenants", "set", "t", "--storage", option)
