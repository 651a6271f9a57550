"""A port is bound, or it is said in a line why not."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.process.sockets import CannotListen, bind


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def bound(stack: ExitStack, host: str, number: int = 1, port: int = 0) -> list[socket.socket]:
    """Sockets that are closed after the test; without a port, on one that is free."""
    if not port:
        (first,) = bind(host, 0, 1)
        port = first.getsockname()[1]
        first.close()
    found = bind(host, port, number)
    for each in found:
        stack.callback(each.close)
    return found


def refusal(host: str, port: int, number: int = 1) -> str:
    with pytest.raises(CannotListen) as told:
        bind(host, port, number)
    text = str(told.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1", "::"])
@pytest.mark.parametrize("number", [1, 3])
def test_a_bound_port_takes_connections_at_once(host: str, number: int, stack: ExitStack) -> None:
    if ":" in host and not _has_ipv6():
        pytest.skip("no IPv6 here")
    sockets = bound(stack, host, number)
    assert len(sockets) == number
    port = sockets[0].getsockname()[1]
    assert {each.getsockname()[1] for each in sockets} == {port}
    assert not any(each.get_inheritable() or each.getblocking() for each in sockets)
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    for _ in range(10):
        socket.create_connection((reached, port), timeout=10).close()


@pytest.mark.parametrize("theirs", [1, 2])
@pytest.mark.parametrize("ours", [1, 2])
def test_a_port_is_not_shared_with_another_gateway(theirs: int, ours: int, stack: ExitStack) -> None:
    port = bound(stack, "127.0.0.1", theirs)[0].getsockname()[1]
    for host in ("127.0.0.1", "0.0.0.0"):
        text = refusal(host, port, ours)
        assert text.startswith(f"cannot listen on {host}:{port}: the port is taken;")


def test_a_port_can_be_bound_again_after_connections_on_it(stack: ExitStack) -> None:
    (first,) = bind("127.0.0.1", 0, 1)
    address = first.getsockname()
    first.setblocking(True)
    with socket.create_connection(address) as client:
        accepted, _ = first.accept()
        accepted.close()
        first.close()
        assert client.recv(1) == b""
        for number in (1, 2):
            with ExitStack() as inner:
                bound(inner, *address[:1], number, address[1])


UNPRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


@pytest.mark.skipif(not UNPRIVILEGED.exists() or int(UNPRIVILEGED.read_text()) <= 80, reason="anybody may listen there")
def test_a_privileged_port() -> None:
    program = "import encodings.idna, os\nfrom gateway.process.sockets import bind\n"
    program += "os.getuid() or os.seteuid(65534)\nbind('127.0.0.1', 80, 1)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "CannotListen: cannot listen on 127.0.0.1:80: this user may not listen there; ports below" in done.stderr


def test_an_address_of_another_machine() -> None:
    for number in (1, 2):
        assert "does not have the address" in refusal("192.0.2.1", 8080, number)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 100, "x..y", "999.1.1.1"])
def test_a_name_that_nobody_has(host: str) -> None:
    assert re.match(rf"cannot listen on {re.escape(host)}:8080: there is no host of that name", refusal(host, 8080))


def test_an_ipv6_address_that_is_not_here_is_shown_as_in_a_url() -> None:
    assert refusal("2001:db8::1", 8080).startswith("cannot listen on [2001:db8::1]:8080: ")


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
