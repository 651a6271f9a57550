"""Recordings go on to their target while they come: nothing of them is held, sent twice, or sent on if it is odd."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Act, Upstream
from integration.client import Wire, eventually, record, wire

AUDIO = "/v1/audio/transcriptions"
HEARD = b'{"text":"Hello"}'
MARK = b"--frontier"
KIND = b"multipart/form-data; boundary=frontier"
END = b"\r\n--frontier--\r\n"
PIECE = b"\x00\xff\r\n--front" * 10_000
"""Of a recording."""


class Ear(threading.Thread):
    """A model server that tells what it hears as it hears it: each connection is a request, answered as scripted."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.heard: list[bytearray] = []
        self.ended: list[threading.Event] = []
        self.answers: list[bytes | Act] = []
        """Of the next requests, each sent when that many bytes have come."""
        self.seen = threading.Event()
        self.after = 10**9
        """Bytes after which it answers without waiting for the rest."""
        self.start()

    def run(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.hear, args=(connection,), daemon=True).start()

    def hear(self, connection: Any) -> None:
        first = connection.recv(65536)
        if first.startswith(b"GET"):
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
            connection.close()
            return
        heard, ended = bytearray(first), threading.Event()
        self.heard.append(heard)
        self.ended.append(ended)
        while not heard.endswith((END, END + b"\r\n0\r\n\r\n")) and len(heard) < self.after:
            data = connection.recv(65536)
            if not data:
                break
            heard += data
        else:
            answer = self.answers.pop(0) if self.answers else HEARD
            if isinstance(answer, bytes):
                kind = b"text/event-stream" if answer.startswith(b"data:") else b"application/json"
                head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"
                head %= kind, len(answer)
                if kind == b"text/event-stream":  # the second half when it was seen that the first goes on
                    connection.sendall(head + answer[:21])
                    self.seen.wait(30)
                    connection.sendall(answer[21:])
                else:
                    connection.sendall(answer if answer.startswith(b"HTTP") else head + answer)
                while connection.recv(65536):
                    pass
        connection.close()
        ended.set()


@pytest.fixture(scope="module")
def ears() -> list[Ear]:
    return [Ear(), Ear()]


@pytest.fixture(scope="module")
def listening(ears: list[Ear], upstream: Upstream) -> Iterator[GatewayProcess]:
    targets = [
        {"name": f"ear-{number}", "backend": "vllm", "url": ear.url, "model": "whisper"}
        for number, ear in enumerate(ears)
    ]
    table = {"routes": {"ears": {"targets": targets, "policy": "round-robin"}}, "bodies": {"request": 4 * 1024**2}}
    with gateway_process(json.dumps(table)) as started:
        yield started


@pytest.fixture(scope="module")
def key(listening: GatewayProcess) -> str:
    return listening.issue().secret


@pytest.fixture(autouse=True)
def renewed(ears: list[Ear]) -> None:
    for ear in ears:
        ear.heard, ear.ended, ear.answers, ear.after = [], [], [], 10**9


def field(name: str, value: str) -> bytes:
    return b'%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (MARK, name.encode(), value.encode())


def beginning(*fields: tuple[str, str]) -> bytes:
    """A form up to the first byte of its file."""
    head = b'%b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' % MARK
    return b"".join(field(*each) for each in fields) + head


def head(key: str, length: int | None) -> bytes:
    size = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
    lines = b"POST %b HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\ncontent-type: %b\r\n%b\r\n\r\n"
    return lines % (AUDIO.encode(), key.encode(), KIND, size)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def heard(ears: list[Ear]) -> list[bytearray]:
    return [each for ear in ears for each in ear.heard]


def answer(connection: Wire) -> tuple[bytes, bytes]:
    """The head and the body of an answer that closes, or has a length."""
    seen = connection.read_until(b"\r\n\r\n")
    start, _, body = seen.partition(b"\r\n\r\n")
    length = int(start.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    while len(body) < length:
        body += connection.socket.recv(65536)
    return start, body


@pytest.mark.parametrize("chunked", [False, True])
def test_a_recording_goes_on_while_it_comes(
    listening: GatewayProcess, key: str, ears: list[Ear], chunked: bool
) -> None:
    first = beginning(("model", "ears"), ("language", "en"))
    whole = first + PIECE * 3 + END
    framed = chunk if chunked else bytes
    with wire(listening, head(key, None if chunked else len(whole)) + framed(first + PIECE)) as connection:
        eventually(lambda: heard(ears) and len(heard(ears)[0]) > len(PIECE), "the target has what has come so far")
        connection.send(framed(PIECE))
        eventually(lambda: len(heard(ears)[0]) > 2 * len(PIECE), "and goes on hearing")
        connection.send(framed(PIECE + END) + (b"0\r\n\r\n" if chunked else b""))
        start, body = answer(connection)
    assert start.startswith(b"HTTP/1.1 200") and body == HEARD
    (request,) = heard(ears)
    lines, _, sent = bytes(request).partition(b"\r\n\r\n")
    renamed = whole.replace(b"\r\n\r\nears\r\n", b"\r\n\r\nwhisper\r\n")
    if chunked:
        assert b"transfer-encoding: chunked" in lines and b"content-length" not in lines
        sent = unchunked(sent)
    else:
        assert b"content-length: %d" % len(renamed) in lines
    assert sent == renamed
    call_id = start.partition(b"x-request-id: ")[2].partition(b"\r")[0].decode()
    line = record(listening, call_id)
    assert (line["outcome"], line["endpoint"], line["usage"]["prompt_tokens"]) == (
        "answered",
        "audio/transcriptions",
        0,
    )


def unchunked(data: bytes) -> bytes:
    whole = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        whole, data = whole + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return whole


def test_a_wish_for_a_stream_may_stand_behind_the_recording(
    listening: GatewayProcess, key: str, ears: list[Ear]
) -> None:
    events = b'data: {"text":"Hi"}\n\ndata: [DONE]\n\n'
    for ear in ears:
        ear.answers = [events]
    first = beginning(("model", "ears"))
    rest = PIECE + b"\r\n" + field("stream", "true")[:-2] + END
    with wire(listening, head(key, len(first + rest)) + first) as connection:
        eventually(lambda: heard(ears), "the target hears")
        connection.send(rest)
        connection.read_until(b'"Hi"')
        for ear in ears:
            ear.seen.set()
        seen = connection.read_until(b"0\r\n\r\n")
    assert b"content-type: text/event-stream" in seen and b"data: [DONE]" in seen


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        (PIECE + b"\r\n" + field("model", "other")[:-2] + END, b"more than once"),
        (PIECE + b"\r\n--frontier-oops" + b"x" * 20, b"part of its content"),
        (PIECE, b"not whole"),
    ],
)
def test_what_turns_out_to_be_no_form_is_never_whole_at_the_target(
    listening: GatewayProcess, key: str, ears: list[Ear], rest: bytes, told: bytes
) -> None:
    first = beginning(("model", "ears"))
    with wire(listening, head(key, len(first + rest)) + first) as connection:
        eventually(lambda: heard(ears), "the target hears")
        connection.send(rest)
        start, body = answer(connection)
    assert start.startswith(b"HTTP/1.1 400") and told in body
    (ended,) = (each for ear in ears for each in ear.ended)
    assert ended.wait(30), "the target is told at once"
    assert not heard(ears)[0].endswith(END) and b"other" not in heard(ears)[0]


def test_one_that_is_too_large_is_cut_off(listening: GatewayProcess, key: str, ears: list[Ear]) -> None:
    first = beginning(("model", "ears"))
    with wire(listening, head(key, None) + chunk(first)) as connection:
        eventually(lambda: heard(ears), "the target hears")
        for _ in range(45):
            connection.send(chunk(PIECE))
        start, _ = answer(connection)
    assert start.startswith(b"HTTP/1.1 413")
    (ended,) = (each for ear in ears for each in ear.ended)
    assert ended.wait(30)


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 500 No\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", b"HTTP/1.1 503 No\r\n\r\n", Act.CUT]
)
def test_nothing_is_sent_twice(listening: GatewayProcess, key: str, ears: list[Ear], said: bytes | Act) -> None:
    for ear in ears:
        ear.answers = [said, said]
    first = beginning(("model", "ears"))
    with wire(listening, head(key, len(first + PIECE + END)) + first) as connection:
        eventually(lambda: heard(ears), "the target hears")
        connection.send(PIECE + END)
        start, _ = answer(connection)
    assert start.startswith((b"HTTP/1.1 502", b"HTTP/1.1 503")) and len(heard(ears)) == 1


def test_an_answer_before_the_end_is_passed_on(listening: GatewayProcess, key: str, ears: list[Ear]) -> None:
    refusal = b'{"error":{"message":"too long","type":"invalid_request_error"}}'
    for ear in ears:
        ear.after = len(PIECE)
        head_of = (
            b"HTTP/1.1 400 No\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            % len(refusal)
        )
        ear.answers = [head_of + refusal]
    first = beginning(("model", "ears"))
    with wire(listening, head(key, len(first + PIECE * 20 + END)) + first + PIECE * 2) as connection:
        eventually(lambda: heard(ears) and len(heard(ears)[0]) >= len(PIECE), "the target has heard enough")
        connection.send(PIECE)
        start, body = answer(connection)
    assert start.startswith(b"HTTP/1.1 400") and b"too long" in body


def test_a_client_that_leaves_leaves_nothing_behind(listening: GatewayProcess, key: str, ears: list[Ear]) -> None:
    first = beginning(("model", "ears"))
    with wire(listening, head(key, len(first + PIECE * 9)) + first + PIECE):
        eventually(lambda: heard(ears), "the target hears")
    (ended,) = (each for ear in ears for each in ear.ended)
    assert ended.wait(30)
    gone = [line for line in listening.records() if line["outcome"] == "gone"]
    assert eventually(lambda: gone or [each for each in listening.records() if each["outcome"] == "gone"], "its record")


def test_a_file_before_its_model_waits_here(listening: GatewayProcess, key: str, ears: list[Ear]) -> None:
    body = beginning() + PIECE + b"\r\n" + field("model", "ears")[:-2] + END
    with wire(listening, head(key, len(body)) + body[:-20]) as connection:
        connection.send(body[-20:])
        start, told = answer(connection)
    assert start.startswith(b"HTTP/1.1 200") and told == HEARD
    assert bytes(heard(ears)[0]).endswith(body.replace(b"\r\n\r\nears\r\n", b"\r\n\r\nwhisper\r\n"))
