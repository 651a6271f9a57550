"""A client that does not read what it is sent: little of it is kept, the target waits, and at last it is cut off."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest
from harness.gateway_process import GatewayProcess, Issued, gateway_process
from harness.upstream import DONE, Act, Script, Target, Upstream, answer, chunk, event, head, stream, whole
from integration.client import UNEXPIRED, Wire, ask, chat, eventually, record, request, samples, total

from gateway.core.types import Limit

READER_SECONDS = 2.0
KIB, MIB = 1024, 1024**2
TEXT = event("x" * 1000)


class Spring:
    """A target with endless events for its one call; `sent` counts the bytes that it has got rid of."""

    def __init__(self) -> None:
        self.sent = 0
        self.closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._flow, name="spring", daemon=True).start()

    def _flow(self) -> None:
        with suppress(OSError):
            while True:
                taken, _ = self._listener.accept()
                with taken, suppress(OSError):
                    if not taken.recv(65536).startswith(b"POST"):
                        continue
                    taken.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * KIB)
                    taken.sendall(head(content_type="text/event-stream", transfer_encoding="chunked"))
                    while True:
                        self.sent += taken.send(chunk(TEXT))
                if self.sent:
                    self.closed.set()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture(scope="module")
def spring() -> Iterator[Spring]:
    made = Spring()
    yield made
    made.close()


@pytest.fixture(scope="module")
def patient(upstream: Upstream, spring: Spring) -> Iterator[GatewayProcess]:
    """A gateway with little patience for readers."""
    routes = {
        name: {"targets": [{"name": name, "backend": "openai", "url": upstream.target(name).url}]}
        for name in ("slow", "brisk")
    }
    routes["spring"] = {"targets": [{"name": "spring", "backend": "openai", "url": f"http://127.0.0.1:{spring.port}"}]}
    with gateway_process(json.dumps({"routes": routes, "bodies": {"reader": f"{READER_SECONDS:g}s"}})) as started:
        yield started


@pytest.fixture
def slow(upstream: Upstream) -> Target:
    found = upstream.target("slow")
    found.restore()
    return found


@pytest.fixture
def single(patient: GatewayProcess) -> Issued:
    """A key for one call at a time."""
    return patient.issue(limit=Limit(concurrency=1))


def narrow(gateway: GatewayProcess, sent: bytes) -> Wire:
    """A client with hardly any room for what it is sent."""
    opened = Wire.__new__(Wire)
    opened.seen = b""
    opened.socket = socket.socket()
    opened.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.socket.settimeout(10)
    opened.socket.connect(("127.0.0.1", gateway.port))
    opened.send(sent)
    return opened


def connections(gateway: GatewayProcess) -> list[object]:
    """Those that clients have to the gateway, as its own process sees them."""
    worker = psutil.Process(gateway.process.pid).children()[0]
    return [
        one for one in worker.net_connections("tcp") if one.laddr.port == gateway.port and one.status == "ESTABLISHED"
    ]


def unchunked(answer: bytes) -> Iterator[bytes]:
    """The pieces of a chunked body."""
    _, _, rest = answer.partition(b"\r\n\r\n")
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if size == b"0":
            return
        yield rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]


def flood(size: int) -> Script:
    """A stream of about this size, all at once."""
    return stream(*[TEXT * 16] * (size // (16 * len(TEXT))), event(finish="stop"), DONE)


def unending(size: int) -> Script:
    """The same, after which nothing more comes."""
    return [*flood(size)[:-3], Act.STALL]


def test_a_stream_that_is_not_read_is_cut_off_and_all_is_given_back(
    patient: GatewayProcess, slow: Target, single: Issued
) -> None:
    slow.script = unending(8 * MIB)
    client = narrow(patient, request(chat("slow", stream=True), single.secret))
    began = time.monotonic()
    received = slow.wait_for_calls()
    assert ask(patient, chat("brisk"), single.secret).status == 429  # the slot is taken
    assert received.closed.wait(READER_SECONDS + 5)
    assert received.closed_at is not None
    assert received.closed_at - began > READER_SECONDS * 0.9
    eventually(lambda: ask(patient, chat("brisk"), single.secret).status == 200 or None, "a free slot", UNEXPIRED)
    line = record(patient, received.header("x-request-id"))
    assert (line["outcome"], line["status"], line["error_type"]) == ("gone", 499, "caller_too_slow")
    assert line["attempts"][-1]["outcome"] == "caller_too_slow"
    assert "abort" not in line  # it never left
    eventually(lambda: connections(patient) == [] or None, "the connection is reset")
    with pytest.raises(ConnectionResetError):
        while client.socket.recv(65536):
            pass


def test_the_target_waits_while_its_client_does_not_read(
    patient: GatewayProcess, spring: Spring, single: Issued
) -> None:
    """It has endless events ready, and gets rid of what the kernels take; the gateway holds next to nothing."""
    worker = psutil.Process(patient.process.pid).children()[0]
    ask(patient, chat("brisk"), patient.issue().secret)
    before = worker.memory_info().rss
    client = narrow(patient, request(chat("spring", stream=True), single.secret))
    peak = 0
    while not spring.closed.wait(0.05):
        peak = max(peak, worker.memory_info().rss)
    client.leave()
    assert peak - before < 2 * MIB
    assert spring.sent < 3 * MIB


def test_a_client_that_pauses_for_less_than_the_deadline_gets_every_byte(patient: GatewayProcess, slow: Target) -> None:
    slow.script = flood(MIB)
    client = narrow(patient, request(chat("slow", stream=True), patient.issue().secret))
    seen, pauses = bytearray(), 0
    while not seen.endswith(b"0\r\n\r\n"):
        if pauses < 3 and len(seen) > pauses * 100 * KIB:
            time.sleep(READER_SECONDS * 0.6)
            pauses += 1
        seen += client.socket.recv(16 * KIB)
    assert pauses == 3
    assert b"".join(unchunked(bytes(seen))) == TEXT * (16 * (MIB // (16 * len(TEXT)))) + event(finish="stop") + DONE


def test_a_large_whole_answer_comes_whole(patient: GatewayProcess, slow: Target) -> None:
    body = json.dumps(answer("y" * 5 * MIB)).encode()
    slow.script = whole(body)
    reply = ask(patient, chat("slow"), patient.issue().secret)
    assert (reply.status, reply.header("content-length")) == (200, f"{len(body)}")
    assert reply.body == body


def test_a_large_whole_answer_that_is_not_read_is_cut_off(patient: GatewayProcess, slow: Target) -> None:
    slow.script = whole(answer("y" * 8 * MIB))
    client = narrow(patient, request(chat("slow"), patient.issue().secret))
    received = slow.wait_for_calls()
    line = record(patient, received.header("x-request-id"))
    assert (line["outcome"], line["error_type"]) == ("gone", "caller_too_slow")
    eventually(lambda: connections(patient) == [] or None, "the connection is reset")
    size = 0
    with suppress(ConnectionResetError):
        while piece := client.socket.recv(65536):
            size += len(piece)
    assert size < MIB


def test_a_large_whole_answer_holds_its_slot_until_it_has_been_read(patient: GatewayProcess, slow: Target) -> None:
    """Else a client could have any number of them in the gateway's memory."""
    key = patient.issue(limit=Limit(concurrency=1)).secret
    slow.script = whole(answer("x" * 3 * MIB))
    wire = Wire(patient.port)
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)
    wire.send(request(chat("slow"), key))
    wire.read_until(b"xxxx")
    assert ask(patient, chat("brisk"), key).status == 429
    wire.read_until(b'"total_tokens"')
    assert ask(patient, chat("brisk"), key).status == 200
    wire.leave()


def test_a_target_is_not_blamed_for_its_slow_readers(patient: GatewayProcess, slow: Target) -> None:
    slow.script = unending(MIB)
    secret = patient.issue().secret
    clients = [narrow(patient, request(chat("slow", stream=True), secret)) for _ in range(12)]
    slow.wait_for_calls(12)
    for received in slow.calls:
        assert received.closed.wait(READER_SECONDS + 5)
    for client in clients:
        client.leave()
    slow.script = None
    assert ask(patient, chat("slow"), secret).status == 200
    counted = samples(patient)
    assert total(counted, "upstream_attempts_total", target="slow", outcome="caller_too_slow") >= 12
    assert total(counted, "in_flight") == 0


def test_others_are_served_meanwhile(patient: GatewayProcess, slow: Target) -> None:
    slow.script = unending(MIB)
    secret = patient.issue().secret
    clients = [narrow(patient, request(chat("slow", stream=True), secret)) for _ in range(20)]
    slow.wait_for_calls(20)
    with ThreadPoolExecutor(4) as others:
        statuses = list(others.map(lambda _: ask(patient, chat("brisk", stream=True), secret).status, range(40)))
    assert statuses == [200] * 40
    for client in clients:
        client.leave()
