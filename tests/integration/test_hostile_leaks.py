"""What must not cross the gateway: credentials either way, headers of one hop, addresses that no table lists."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import zlib

import pytest
from harness.gateway_process import GatewayProcess
from harness.upstream import DONE, Target, Upstream, chunk, event, head, stream, usage_event, whole
from integration.client import CHAT, ask, chat, record, request, wire

HEADERS = {
    "server": "canary-server",
    "set_cookie": "session=canary-cookie",
    "x_trunkline_target": "canary-target",
    "x_trunkline_explain": "canary-explain",
    "x_forwarded_for": "canary-address",
    "x_ratelimit_remaining_requests": "424242",
    "proxy_authenticate": "canary-proxy",
    "www_authenticate": "canary-www",
    "connection": "x-hop, keep-alive",
    "x_hop": "canary-hop",
    "keep_alive": "timeout=99",
    "trailer": "x-late",
    "alt_svc": "h3=canary",
    "location": "http://canary/",
    "access_control_allow_origin": "canary",
    "x_echo_authorization": "Bearer canary-upstream",
    "strict_transport_security": "max-age=99",
}


@pytest.mark.parametrize("streamed", [False, True])
def test_a_targets_headers_stay_behind(
    guarded: GatewayProcess, guarded_key: str, guarded_target: Target, streamed: bool
) -> None:
    if streamed:
        guarded_target.script = stream(event("Hi"), event(finish="stop"), usage_event(), DONE, **HEADERS)
    else:
        guarded_target.script = whole({"choices": []}, **HEADERS)
    reply = ask(guarded, chat("m", stream=streamed), guarded_key)
    assert reply.status == 200
    assert "canary" not in reply.told
    assert "424242" not in reply.told
    ours = ("x-trunkline-", "x-ratelimit-", "x-request-id")
    names = {name.lower() for name, _ in reply.headers if not name.lower().startswith(ours)}
    framing = {"content-type", "content-length", "transfer-encoding", "cache-control", "x-accel-buffering"}
    assert names <= {*framing, "date", "server"}


@pytest.mark.parametrize("streamed", [False, True])
def test_a_clients_credentials_reach_no_target(
    guarded: GatewayProcess, guarded_key: str, guarded_target: Target, streamed: bool
) -> None:
    sent = {
        "x-api-key": guarded_key,
        "cookie": "session=client-canary",
        "proxy-authorization": "Basic client-canary",
        "x-forwarded-for": "client-canary",
        "forwarded": "for=client-canary",
        "x-trunkline-priority": "client-canary",
        "x-real-ip": "client-canary",
        "referer": "http://client-canary/",
        "origin": "http://client-canary",
        "baggage": "key=client-canary",
    }
    path = f"{CHAT}?api_key={guarded_key}&token=client-canary"
    assert ask(guarded, chat("m", stream=streamed), path=path, headers=sent).status == 200
    received = guarded_target.calls[0]
    assert received.path == CHAT
    assert "client-canary" not in repr(received.headers)
    assert guarded_key.split("_")[2][:20] not in repr(received.headers) + received.body.decode()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308, 300])
@pytest.mark.parametrize("streamed", [False, True])
def test_no_redirect_is_followed(
    guarded: GatewayProcess, guarded_key: str, guarded_target: Target, upstream: Upstream, status: int, streamed: bool
) -> None:
    trap = Trap()
    guarded_target.script = whole({}, status, location=f"http://127.0.0.1:{trap.port}/canary")
    reply = ask(guarded, chat("m", stream=streamed), guarded_key)
    assert reply.status == 502
    assert reply.header("location") is None
    assert f"{trap.port}" not in reply.told
    assert trap.close() == 0


class Trap:
    """A port on which nobody should ever call."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._calls = 0
        self._thread = threading.Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        try:
            while True:
                self._listener.accept()[0].close()
                self._calls += 1
        except OSError:
            return

    def close(self) -> int:
        """How often somebody did."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(30)
        return self._calls


def test_only_targets_of_the_table_are_called(
    guarded: GatewayProcess, guarded_key: str, guarded_target: Target
) -> None:
    """Whatever a request line, a Host header or a body names."""
    trap = Trap()
    there = f"127.0.0.1:{trap.port}"
    image = {"type": "image_url", "image_url": {"url": f"http://{there}/image.png"}}
    body = {"model": "m", "messages": [{"role": "user", "content": [image]}], "base_url": f"http://{there}"}
    raw = json.dumps(body).encode()
    for line, host in (
        (f"POST http://{there}{CHAT} HTTP/1.1", there),
        (f"POST http://u:p@{there}{CHAT} HTTP/1.1", "x"),
        (f"POST {CHAT} HTTP/1.1", there),
        (f"POST {CHAT} HTTP/1.1", f"x@{there}"),
        (f"POST //{there}{CHAT} HTTP/1.1", "x"),
        (f"POST {there} HTTP/1.1", "x"),
    ):
        more = f"x-forwarded-host: {there}\r\nx-original-url: http://{there}/\r\nforwarded: host={there}\r\n"
        rest = f"authorization: Bearer {guarded_key}\r\ncontent-length: {len(raw)}\r\nconnection: close\r\n\r\n"
        with wire(guarded, f"{line}\r\nhost: {host}\r\n{more}{rest}".encode() + raw) as connection:
            assert connection.answer().status in (200, 400, 404, 405)
    assert trap.close() == 0
    assert {call.header("host") for call in guarded_target.calls} == {guarded_target.url.split("/")[2]}
    assert all(call.body == raw for call in guarded_target.calls)  # the image is the target's to fetch, or not


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "GZIP", "identity, gzip"])
def test_a_compressed_body_is_refused_and_never_unpacked(
    guarded: GatewayProcess, guarded_key: str, guarded_target: Target, coding: str
) -> None:
    bomb = gzip.compress(json.dumps(chat("m")).encode() + b" " * 50_000_000)
    refused = ask(guarded, bomb, guarded_key, headers={"content-encoding": coding})
    assert (refused.status, refused.error["param"]) == (400, "content-encoding")
    assert guarded_target.calls == []


def test_a_compressed_body_without_a_word_is_no_json(guarded: GatewayProcess, guarded_key: str) -> None:
    assert ask(guarded, gzip.compress(json.dumps(chat("m")).encode()), guarded_key).status == 400


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate", "x-gzip"])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("status", [200, 400])
def test_a_compressed_answer_is_no_answer_and_never_unpacked(
    guarded: GatewayProcess, guarded_key: str, guarded_target: Target, coding: str, streamed: bool, status: int
) -> None:
    squeezed = zlib.compress(b" " * 10_000_000) if coding == "deflate" else gzip.compress(b" " * 10_000_000)
    if streamed and status == 200:
        start = head(content_type="text/event-stream", content_encoding=coding, transfer_encoding="chunked")
        guarded_target.script = [start, chunk(squeezed), b"0\r\n\r\n"]
    else:
        guarded_target.script = whole(squeezed, status, content_encoding=coding)
    reply = ask(guarded, chat("m", stream=streamed), guarded_key)
    assert (reply.status, reply.error["code"]) == (502, "upstream_bad_reply")
    assert record(guarded, reply.header("x-request-id"))["error_type"] == "upstream_bad_reply"
    assert guarded_target.calls[0].header("accept-encoding") == "identity"


@pytest.mark.parametrize("odd", ["application/json; x=\u2260", "application/json; x=\xff", "a\tb", "", "x" * 5000])
def test_a_targets_odd_content_type_is_no_bug_of_ours(
    guarded: GatewayProcess, guarded_key: str, guarded_target: Target, odd: str
) -> None:
    body = json.dumps({"choices": []}).encode()
    first = f"HTTP/1.1 200 OK\r\ncontent-type: {odd}\r\ncontent-length: {len(body)}\r\n\r\n"
    guarded_target.script = [first.encode("utf-8" if "\u2260" in odd else "latin-1") + body]
    reply = ask(guarded, chat("m"), guarded_key)
    assert reply.status == (200 if odd.isascii() else 502), reply
    assert "Traceback" not in guarded.stderr()


def test_a_call_on_the_same_connection_sees_nothing_of_the_one_before(
    guarded: GatewayProcess, guarded_key: str, guarded_target: Target
) -> None:
    with wire(guarded, request(chat("m"), guarded_key)) as connection:
        assert connection.answer().status == 200
        connection.send(b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        assert connection.answer().status == 401
