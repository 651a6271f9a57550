"""Clients that never finish what they began to say are answered, and their connections are closed."""

from __future__ import annotations

import time

import pytest
from harness.gateway_process import GatewayProcess
from harness.upstream import Target
from integration.client import Wire, ask, chat, elsewhere, request

CLIENTS = 40


def closed(clients: list[Wire], seconds: float) -> int:
    """How many connections the gateway closed in time."""
    deadline = time.monotonic() + seconds
    return sum(_is_closed(client, max(0.01, deadline - time.monotonic())) for client in clients)


def _is_closed(client: Wire, seconds: float) -> bool:
    client.socket.settimeout(seconds)
    try:
        while piece := client.socket.recv(65536):
            client.seen += piece
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_bodies_that_do_not_come_are_given_up_and_their_connections_closed(
    gateway: GatewayProcess, key: str, solo: Target, framing: str
) -> None:
    raw = request(chat("solo"), key)[:-10]
    if framing == "chunks":
        raw = raw[: raw.index(b"content-length")] + b"transfer-encoding: chunked\r\n\r\n40\r\n{"
    clients = [Wire(gateway.port) for _ in range(CLIENTS)]
    for client in clients:
        client.send(raw)
    assert closed(clients, 40) == CLIENTS
    assert all(client.seen.startswith(b"HTTP/1.1 408") for client in clients)
    assert solo.calls == []


def test_a_body_that_trickles_is_given_up_in_the_end(gateway: GatewayProcess, key: str, solo: Target) -> None:
    """Each byte comes in time, and all of them together too late."""
    client = Wire(gateway.port)
    client.send(request(chat("solo"), key, length=10_000))
    client.socket.settimeout(0.2)
    began = time.monotonic()
    while True:
        client.send(b" ")
        try:
            client.seen += client.socket.recv(65536)
            break
        except TimeoutError:
            assert time.monotonic() - began < 40
    assert client.seen.startswith(b"HTTP/1.1 408")
    assert solo.calls == []


def test_a_body_too_large_closes_its_connection(gateway: GatewayProcess, key: str) -> None:
    clients = [Wire(gateway.port) for _ in range(CLIENTS)]
    for client in clients:
        client.send(request(b"{", key, length=10**9))
    assert closed(clients, 40) == CLIENTS
    assert all(client.seen.startswith(b"HTTP/1.1 413") for client in clients)


def test_who_says_nothing_after_a_refusal_is_let_go(gateway: GatewayProcess, key: str) -> None:
    """A wrong key with a body that never comes: answered at once, without waiting for the body."""
    clients = [Wire(gateway.port) for _ in range(CLIENTS)]
    for client in clients:
        lines = "".join(f"{name}: {value}\r\n" for name, value in elsewhere().items()).encode()
        client.send(request(chat("solo"), "wrong", length=1_000, more=lines))
    for client in clients:
        while b"\r\n\r\n" not in client.seen:
            client.seen += client.socket.recv(65536)
    assert {client.seen[9:12] for client in clients} == {b"401"}
    for client in clients:
        client.leave()
    assert ask(gateway, chat("good"), key).status == 200
