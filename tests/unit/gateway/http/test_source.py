"""Where a call came from: the peer, or what trusted proxies say of it, and never what a client made up."""

from __future__ import annotations

import pytest
from harness.client_connection import exchange

from gateway.auth import networks
from gateway.config.table import Bodies
from gateway.http.client import Client
from gateway.http.request import Request, source_of

PROXIES = networks(["10.0.0.0/8", "fd00::/8"])


def headers(*forwarded: str) -> list[tuple[bytes, bytes]]:
    return [(b"host", b"x")] + [(b"x-forwarded-for", line.encode("latin-1")) for line in forwarded]


@pytest.mark.parametrize(
    ("peer", "forwarded", "source"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # no proxy of ours: its header is made up
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1, 2.2.2.2, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["1.1.1.1", "198.51.100.1"], "198.51.100.1"),  # two lines are one list
        ("10.0.0.1", ["198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["10.9.9.9, 198.51.100.1,10.0.0.2 ,fd00::7"], "198.51.100.1"),
        ("fd00::1", ["2001:db8::5"], "2001:db8::5"),
        ("10.0.0.1", ["2001:DB8:0::5"], "2001:db8::5"),
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8::5]:4711"], "2001:db8::5"),
        ("10.0.0.1", ["[2001:db8::5]"], "2001:db8::5"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, \xff"], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1, junk, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),  # a client inside
        (None, ["198.51.100.1"], None),
        ("", ["198.51.100.1"], None),
        ("a socket", ["198.51.100.1"], "a socket"),
    ],
)
def test_where_a_call_came_from(peer: str | None, forwarded: list[str], source: str | None) -> None:
    assert source_of(None if peer is None else (peer, 1234), headers(*forwarded), PROXIES) == source


def test_without_proxies_it_is_the_peer() -> None:
    assert source_of(("10.0.0.1", 1234), headers("198.51.100.1")) == "10.0.0.1"
    assert source_of(None, []) is None


async def test_a_client_knows_its_source() -> None:
    request = Request()
    request.headers = headers("198.51.100.1")
    for proxies, source in (((), "10.0.0.1"), (PROXIES, "198.51.100.1")):
        connection, answer = exchange(request, ("10.0.0.1", 1234))
        client = Client(connection, request, answer, "embeddings", Bodies(), proxies)
        assert client.source == source
