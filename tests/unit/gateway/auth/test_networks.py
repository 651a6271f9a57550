"""Networks and addresses as people write them."""

from __future__ import annotations

import pytest

from gateway.auth import networks
from gateway.auth.networks import address


def test_networks_are_read_and_written_in_one_way() -> None:
    found = networks([" 10.1.2.3/8", " ", "192.0.2.1 ", "2001:DB8::1/32"])
    assert [str(network) for network in found] == ["10.0.0.0/8", "192.0.2.1/32", "2001:db8::/32"]
    assert networks([""]) == ()


@pytest.mark.parametrize("text", ["10.0.0.0/33", "example.com", "10.0.0", "::/129", "*"])
def test_what_is_no_network_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/8") as caught:
        networks(["10.0.0.0/8", text])
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("", None),
        ("10.1.2.3:80", None),
        ("unix", None),
    ],
)
def test_addresses(text: str, found: str | None) -> None:
    assert (None if (seen := address(text)) is None else str(seen)) == found
