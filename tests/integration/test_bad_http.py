"""What no HTTP library would send: raw bytes that must cost their sender only."""

from __future__ import annotations

import json

import pytest
from harness.gateway_process import GatewayProcess
from harness.upstream import Target
from integration.client import CHAT, ask, chat, get, request, wire


def post(key: str, *lines: str, body: bytes = b"", path: str = CHAT) -> bytes:
    """A POST with these header lines and no content-length of its own."""
    head = "\r\n".join([f"POST {path} HTTP/1.1", "host: x", f"authorization: Bearer {key}", *lines, "", ""])
    return head.encode("latin-1") + body


@pytest.fixture(autouse=True)
def _others_are_served(gateway: GatewayProcess, key: str) -> object:
    """After each of these tests another client is served as ever."""
    yield
    assert ask(gateway, chat("good"), key).status == 200
    assert "Traceback" not in gateway.stderr()


BODY = json.dumps(chat("solo")).encode()
MALFORMED: dict[str, bytes] = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100,
    "bad version": b"POST /v1/chat/completions HTTP/9.9\r\nhost: x\r\n\r\n",
    "space in name": b"GET /health HTTP/1.1\r\nho st: x\r\n\r\n",
    "NUL in value": b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: a\x00b\r\n\r\n",
    "bare CR in value": b"GET /health HTTP/1.1\r\nhost: x\r\nx-a: a\rb\r\n\r\n",
    "negative length": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
    "word as length": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: ten\r\n\r\n",
    "two lengths": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
    "huge length": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: " + b"9" * 40 + b"\r\n\r\n",
    "unknown coding": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: x\r\n\r\n",
    "bad chunk size": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n\r\n",
    "line of 1 MiB": b"GET /" + b"a" * 1024 * 1024 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    "1000 headers": b"GET /health HTTP/1.1\r\nhost: x\r\n"
    + b"".join(b"x-%d: 1\r\n" % i for i in range(1000))
    + b"\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_http_is_refused_or_dropped(gateway: GatewayProcess, name: str) -> None:
    with wire(gateway) as connection:
        connection.send_all_that_is_taken(MALFORMED[name])
        first = connection.all_that_comes()
    assert first == b"" or first.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), first[:200]


@pytest.mark.parametrize("size", [64 * 1024, 1024 * 1024])
def test_a_huge_header_is_refused(gateway: GatewayProcess, key: str, solo: Target, size: int) -> None:
    with wire(gateway) as connection:
        connection.send_all_that_is_taken(request(chat("solo"), key, more=b"x-a: " + b"a" * size + b"\r\n"))
        status = int(connection.all_that_comes()[9:12])
    assert 400 <= status < 500
    assert solo.calls == []


def test_a_body_shorter_than_announced_is_waited_for_and_then_refused(
    gateway: GatewayProcess, key: str, solo: Target
) -> None:
    with wire(gateway, request(BODY, key, length=len(BODY) + 10)) as connection:
        refused = connection.answer()  # after the table's bodies.timeout
    assert refused.status == 408
    assert refused.error["code"] == "body_timeout"
    assert solo.calls == []


def test_a_body_longer_than_announced_is_cut_and_refused(gateway: GatewayProcess, key: str, solo: Target) -> None:
    with wire(gateway, request(BODY, key, length=len(BODY) - 10)) as connection:
        refused = connection.answer()
    assert refused.status == 400
    assert solo.calls == []


def test_what_follows_a_body_is_no_part_of_it(gateway: GatewayProcess, key: str, solo: Target) -> None:
    with wire(gateway, request(BODY, key) + b"GARBAGE\r\n\r\n") as connection:
        assert connection.answer().status == 200
    assert [call.body for call in solo.calls] == [BODY]


def test_length_and_chunked_together_are_not_read_in_two_ways(gateway: GatewayProcess, key: str, solo: Target) -> None:
    smuggled = request(BODY, key)
    both = post(key, "content-length: 4", "transfer-encoding: chunked", body=b"0\r\n\r\n" + smuggled)
    with wire(gateway, both) as connection:
        answered = connection.all_that_comes()
    assert answered == b"" or answered.startswith(b"HTTP/1.1 4")
    assert solo.calls == []


def test_a_chunked_body_is_taken(gateway: GatewayProcess, key: str, solo: Target) -> None:
    pieces = b"".join(b"%x\r\n%b\r\n" % (1, BODY[i : i + 1]) for i in range(len(BODY))) + b"0\r\n\r\n"
    with wire(gateway, post(key, "transfer-encoding: chunked", body=pieces)) as connection:
        assert connection.answer().status == 200
    assert solo.calls[0].body == BODY


def test_expect_100_continue_is_answered(gateway: GatewayProcess, key: str, solo: Target) -> None:
    lines = (f"content-length: {len(BODY)}", "expect: 100-continue")
    with wire(gateway, post(key, *lines)) as connection:
        connection.read_until(b"100 Continue\r\n\r\n")
        connection.send(BODY)
        connection.read_until(b"HTTP/1.1 200")
    assert solo.calls[0].body == BODY


@pytest.mark.parametrize(
    "line",
    [
        "content-type: application/json\tx",
        "content-type: application/json\x7f",
        "content-type: \xe9",
        "content-type: " + "a" * 2000,
        "content-type:",
    ],
)
def test_an_odd_content_type_is_refused_or_harmless(gateway: GatewayProcess, key: str, solo: Target, line: str) -> None:
    with wire(gateway, post(key, line, f"content-length: {len(BODY)}", body=BODY)) as connection:
        answered = connection.answer()
    assert answered.status == 400
    assert solo.calls == []


@pytest.mark.parametrize("name", ["traceparent", "tracestate", "x-request-id", "user-agent", "accept"])
@pytest.mark.parametrize("value", ["a\tb", "\xe9\xff", "a" * 3000])
def test_odd_header_values_reach_no_target(
    gateway: GatewayProcess, key: str, solo: Target, name: str, value: str
) -> None:
    lines = (f"{name}: {value}", f"content-length: {len(BODY)}")
    with wire(gateway, post(key, *lines, body=BODY)) as connection:
        assert connection.answer().status == 200
    assert value not in repr(solo.calls[0].headers)
    assert all(text.isascii() and text.isprintable() for _, text in solo.calls[0].headers)


@pytest.mark.parametrize("path", [CHAT + "%0d%0ax-injected:1", "/v1/models/%0d%0ax-injected:1", "/%0d%0ax-injected:1"])
def test_no_header_is_injected_through_a_path(gateway: GatewayProcess, key: str, path: str) -> None:
    answered = get(gateway, path, key)
    assert answered.status == 404
    assert answered.header("x-injected") is None
    assert answered.error


@pytest.mark.parametrize("path", ["/v1//chat/completions", "/v1/chat/completions/", "/V1/chat/completions", "*"])
def test_odd_paths_are_no_server_errors(gateway: GatewayProcess, key: str, path: str) -> None:
    assert ask(gateway, chat("good"), key, path).status < 500


def test_many_calls_on_one_connection(gateway: GatewayProcess, key: str, solo: Target) -> None:
    with wire(gateway) as connection:
        for body, status in [(chat("solo"), 200), (b"nonsense", 400), (chat("gone"), 404), (chat("solo"), 200)] * 5:
            connection.send(request(body, key))
            assert connection.answer().status == status
    assert len(solo.calls) == 10


def test_two_calls_sent_at_once_are_answered_in_order(gateway: GatewayProcess, key: str, solo: Target) -> None:
    with wire(gateway, request(chat("solo"), key) + request(chat("solo", stream=True), key)) as connection:
        seen = connection.read_until(b"[DONE]")
    assert seen.count(b"HTTP/1.1 200") == 2
    assert seen.index(b"Hello") < seen.index(b"data: ")
    assert len(solo.calls) == 2
