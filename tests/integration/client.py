"""The caller's side in these tests: whole calls through the standard library, and raw bytes where those matter."""

from __future__ import annotations

import http.client
import json
import secrets
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from harness.gateway_process import GatewayProcess
from prometheus_client.parser import text_string_to_metric_families

from gateway.store import LEASE_SECONDS

T = TypeVar("T")
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
CHAT = "/v1/chat/completions"
UNEXPIRED = 0.8 * LEASE_SECONDS
"""Seconds within which what is free was given back: a lease that nobody ends lasts longer."""


class Reply:
    """An answer as it came."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of OpenAI's envelope, whose shape is checked here for every test."""
        assert self.header("content-type") == "application/json", (self.status, self.headers, self.body)
        envelope = self.json()
        assert set(envelope) == {"error"}
        error: dict[str, Any] = envelope["error"]
        assert {"message", "type", "param", "code"} <= set(error)
        assert isinstance(error["message"], str) and error["message"]
        assert isinstance(error["type"], str)
        assert self.header("x-request-id")
        return error

    @property
    def data(self) -> list[bytes]:
        """The data of each event of a stream."""
        return [event[6:] for event in self.body.split(b"\n\n") if event.startswith(b"data: ")]

    @property
    def told(self) -> str:
        """All that its client was told."""
        return repr(self.headers) + self.body.decode("utf-8", "replace")

    def __repr__(self) -> str:
        return f"Reply({self.status}, {self.headers}, {self.body[:500]!r})"


def chat(model: str, **fields: Any) -> dict[str, Any]:
    """A chat body."""
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields}


def ask(
    gateway: GatewayProcess,
    body: dict[str, Any] | bytes | None,
    key: str | None = None,
    path: str = CHAT,
    *,
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> Reply:
    """One call on a connection of its own; anything but bytes is sent as JSON."""
    raw = json.dumps(body).encode() if isinstance(body, dict) else body
    sent = {"content-type": "application/json"} if raw is not None else {}
    if key is not None:
        sent["authorization"] = f"Bearer {key}"
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=50)
    try:
        connection.request(method, path, raw, {**sent, **(headers or {})})
        response = connection.getresponse()
        return Reply(response.status, response.getheaders(), response.read())
    finally:
        connection.close()


def get(gateway: GatewayProcess, path: str, key: str | None = None, **options: Any) -> Reply:
    return ask(gateway, None, key, path, method="GET", **options)


def elsewhere() -> dict[str, str]:
    """Headers of a caller whose address nobody else has: wrong keys are counted by address."""
    return {"x-forwarded-for": f"2001:db8:{secrets.token_hex(2)}:{secrets.token_hex(2)}::1"}


def request(
    body: dict[str, Any] | bytes, key: str, path: str = CHAT, *, length: int | None = None, more: bytes = b""
) -> bytes:
    """The bytes of a POST; `length` lies about the body, `more` is header lines."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nauthorization: Bearer {key}\r\n"
    announced = len(raw) if length is None else length
    return lines.encode() + more + b"content-length: %d\r\n\r\n" % announced + raw


class Wire:
    """A connection on which a test says and reads bytes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=40)
        self.seen = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def send_all_that_is_taken(self, data: bytes) -> None:
        """Send until the other side closes, as it may once it has answered."""
        with suppress(OSError):
            self.socket.sendall(data)

    def read_until(self, mark: bytes) -> bytes:
        """All that came so far, once `mark` has come."""
        while mark not in self.seen:
            piece = self.socket.recv(65536)
            assert piece, f"the connection ended after {self.seen[-500:]!r}"
            self.seen += piece
        return self.seen

    def all_that_comes(self, seconds: float = 0.5) -> bytes:
        """What comes until the other side closes, or says nothing for a while."""
        self.socket.settimeout(seconds)
        with suppress(OSError):
            while piece := self.socket.recv(65536):
                self.seen += piece
        return self.seen

    def answer(self) -> Reply:
        """The answer, whole; of its start nothing may have been read before."""
        response = http.client.HTTPResponse(self.socket)
        response.begin()
        return Reply(response.status, response.getheaders(), response.read())

    def leave(self) -> None:
        self.socket.close()

    def __del__(self) -> None:
        """A test that fails half-way leaves its connection to us; its failure is news enough."""
        self.socket.close()

    def reset(self) -> None:
        """Leave as a crashing client does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@contextmanager
def wire(gateway: GatewayProcess, first: bytes = b"") -> Iterator[Wire]:
    """A raw connection, on which `first` has been sent."""
    opened = Wire(gateway.port)
    try:
        opened.send(first)
        yield opened
    finally:
        opened.leave()


def eventually(look: Callable[[], T | None], what: str, seconds: float = 30) -> T:
    """What `look` finds, as soon as it finds something; `seconds` only guard against waiting for ever."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return found


def record(gateway: GatewayProcess, request_id: str | None) -> dict[str, Any]:
    """The log line of a call."""

    def look() -> dict[str, Any] | None:
        whole = gateway.stdout().rpartition("\n")[0]  # a line may be read while it is written
        lines = [line for line in whole.splitlines() if f'"{request_id}"' in line]
        return json.loads(lines[-1]) if lines else None

    return eventually(look, f"the record of {request_id}")


def samples(gateway: GatewayProcess) -> Samples:
    """Every sample of a scrape, by its name and labels. Workers tell each other once a second of what they count."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(gateway.metrics())
        for sample in family.samples
    }


def total(found: Samples, name: str, **labels: str) -> float:
    """The sum of the samples of this name that have these labels."""
    return sum(
        value for (sample, has), value in found.items() if sample == f"trunkline_{name}" and labels.items() <= has
    )
