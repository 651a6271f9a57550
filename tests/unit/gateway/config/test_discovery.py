"""Targets behind a name: what may be written, and what becomes of it once addresses are known."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.config import Mistakes, Table, parse_table
from gateway.config.discovery import discovered, expanded, first_url, reported

HEADLESS = "vllm.models.svc:8000"


def table(*targets: str, fallback: str = "", more: str = "") -> Table:
    listed = "\n".join(f"      - {{backend: vllm, {each}}}" for each in targets)
    tiers = f"    fallback:\n      - {{backend: vllm, {fallback}}}\n" if fallback else ""
    return parse_table(f"routes:\n  m:\n    targets:\n{listed}\n{tiers}{more}", "t.yaml", {})[0]


def said(*targets: str, **options: Any) -> str:
    with pytest.raises(Mistakes) as found:
        table(*targets, **options)
    return "\n".join(map(str, found.value.found))


def test_each_address_is_a_target_with_all_that_is_said_of_them() -> None:
    found = table(
        f"name: v, discover: {{dns: '{HEADLESS}'}}, model: q, weight: 2, max_inflight: 9",
        "name: w, url: 'http://w'",
        fallback="name: f, tier: 3, discover: {dns: 'f:80'}",
    )
    assert [each.dns for each in discovered(found)] == [HEADLESS, "f:80"]
    route = expanded(found, {HEADLESS: ["10.0.0.1", "fd00::2"], "f:80": ["10.0.0.9"]}).routes["m"]
    assert [(each.name, each.url) for each in route.targets] == [
        ("v@10.0.0.1", "http://10.0.0.1:8000"),
        ("v@fd00::2", "http://[fd00::2]:8000"),
        ("w", "http://w"),
    ]
    for each in route.targets[:2]:
        assert (each.model, each.weight, each.max_inflight, each.discover) == ("q", 2, 9, None)
    ((fallback),) = route.fallback
    assert (fallback.name, fallback.url, fallback.tier) == ("f@10.0.0.9", "http://10.0.0.9:80", 3)


def test_without_an_address_the_target_is_at_its_name() -> None:
    found = table(f"name: v, discover: {{dns: '{HEADLESS}'}}")
    for known in ({}, {HEADLESS: ()}):
        (target,) = expanded(found, known).routes["m"].targets
        assert (target.name, target.url, target.discover) == ("v", f"http://{HEADLESS}", None)
    assert first_url(found.routes["m"].targets[0]) == f"http://{HEADLESS}"


def test_certificates_are_for_the_name() -> None:
    found = table(
        f"name: v, discover: {{dns: '{HEADLESS}'}}, tls: {{}}",
        "name: w, discover: {dns: 'w:443'}, tls: {server_name: other}",
    )
    one, other = expanded(found, {HEADLESS: ["10.0.0.1"], "w:443": ["10.0.0.2"]}).routes["m"].targets
    assert (one.url, one.tls and one.tls.server_name) == ("https://10.0.0.1:8000", "vllm.models.svc")
    assert (other.url, other.tls and other.tls.server_name) == ("https://10.0.0.2:443", "other")


def test_a_table_that_discovers_nothing_stays_the_same_one() -> None:
    found = table("name: w, url: 'http://w'")
    assert expanded(found, {HEADLESS: ["10.0.0.1"]}) is found


def test_names_that_gateways_report_tell_the_addresses() -> None:
    found = table(f"name: v, discover: {{dns: '{HEADLESS}'}}", "name: w, url: 'http://w'")
    names = ["v@10.0.0.2", "v@10.0.0.1", "w", "w@10.0.0.3", "v", "v@fd00::1", "other@10.0.0.4"]
    assert reported(found, names) == {HEADLESS: ["10.0.0.1", "10.0.0.2", "fd00::1"]}


@pytest.mark.parametrize("dns", ["vllm", "vllm:", ":8000", "vllm:0", "vllm:65536", "http://vllm:8000", "vl lm:80"])
def test_a_name_needs_a_port_and_nothing_else(dns: str) -> None:
    assert "t.yaml:4:" in said(f"name: v, discover: {{dns: '{dns}'}}")
    assert "expected a name and a port, such as vllm-headless.models.svc:8000" in said(
        f"name: v, discover: {{dns: '{dns}'}}"
    )


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("name: v, discover: {dns: '10.0.0.1:8000'}", "is one address: write it as 'url'"),
        ("name: v, discover: {dns: 'a:1'}, url: 'http://a'", "needs one of 'url', 'launch' and 'discover'"),
        ("name: v", "needs one of 'url', 'launch' and 'discover'"),
        ("name: v, discover: {dns: 'a:1'}, canary: 0.1", "'canary' is a part for one server"),
        ("name: v, discover: {dsn: 'a:1'}", "unknown key 'dsn'"),
    ],
)
def test_what_cannot_be_is_told(target: str, told: str) -> None:
    assert told in said(target, "name: w, url: 'http://w'")


def test_names_of_addresses_are_nobody_elses() -> None:
    told = said("name: v, discover: {dns: 'a:1'}", "name: 'v@10.0.0.1', url: 'http://w'")
    assert "names that begin with 'v@' are those of its addresses" in told
    table("name: v, url: 'http://v'", "name: 'v@10.0.0.1', url: 'http://w'")


def test_the_same_name_twice_is_the_same_servers_twice() -> None:
    told = said("name: v, discover: {dns: 'a:1'}", "name: w, discover: {dns: 'a:1'}")
    assert "it is the same server and model as 'v'" in told


def test_a_shadow_is_one_server() -> None:
    shadow = "    shadow: {share: 0.5, target: {name: s, backend: vllm, discover: {dns: 'a:1'}}}\n"
    assert "a shadow is one server" in said("name: w, url: 'http://w'", more=shadow)
