"""One connection of many is reset, found by its ends."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from gateway.http.tcp_reset import Ends, ends_of, reset


def test_only_the_connection_that_is_meant_is_reset() -> None:
    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(3)]
        servers = [stack.enter_context(listener.accept()[0]) for _ in clients]
        meant = clients[1].getsockname()
        servers[1].sendall(b"x" * 100)
        assert reset({Ends("127.0.0.1", meant[1], port)}) == 1
        servers[1].close()
        with pytest.raises(ConnectionResetError):
            while clients[1].recv(10):
                pass
        for client, server in zip(clients[::2], servers[::2], strict=True):
            server.sendall(b"well")
            assert client.recv(4) == b"well"


def test_nothing_is_reset_by_half_of_its_ends() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, listener.accept()[0] as server:
            own = client.getsockname()[1]
            assert reset({Ends("127.0.0.1", own, port + 1), Ends("127.0.0.2", own, port)}) == 0
            server.sendall(b"well")
            assert client.recv(4) == b"well"


def test_the_ends_of_a_request() -> None:
    assert ends_of({"client": ("::ffff:10.0.0.1", 5), "server": ("10.0.0.2", 80)}) == Ends("10.0.0.1", 5, 80)
    for client, server in ((None, ("a", 1)), (("a", 1), None), (("", 0), ("a", 1)), (("a", 1), ("a.sock", None))):
        assert ends_of({"client": client, "server": server}) is None
