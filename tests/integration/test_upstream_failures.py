"""A target that fails before its first byte: an honest status in the envelope, and nothing of what it said."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness.gateway_process import GatewayProcess
from harness.upstream import DONE, Act, Slowly, Target, event, head, stream, whole
from integration.cases import FAILURES, most_calls
from integration.client import Reply, ask, chat, eventually, record

SECRET = "secret-of-upstream"
Sheds = Callable[[], tuple[str, Target]]


def is_streamed(case: str) -> bool:
    return "stream" in case or "comment" in case


def check(reply: Reply, status: int, error_type: str, gateway: GatewayProcess) -> None:
    """The status in the envelope, with the request's id in the text and nothing of the target's text."""
    assert reply.status == status, reply
    assert reply.error["type"] == "server_error"
    request_id = reply.header("x-request-id")
    assert request_id in reply.error["message"]
    assert SECRET not in repr(reply)
    line = record(gateway, request_id)
    assert line["error_type"].startswith(error_type)
    assert (line["status"], line["outcome"]) == (status, "failed")


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_before_the_first_byte_has_its_status(
    gateway: GatewayProcess, key: str, hasty: Target, sheds: Sheds, case: str
) -> None:
    script, status, error_type = FAILURES[case]
    model, target = sheds() if status == 503 else ("hasty" if "hang" in case else "calm", hasty)
    target.script = script
    fields = {"stream": True} if is_streamed(case) else {}
    check(ask(gateway, chat(model, **fields), key), status, error_type, gateway)
    assert len(target.calls) in most_calls(case)  # there is no other target to try


@pytest.mark.parametrize("case", ["500", "503", "stream-hang", "eof", "reset", "html-200", "redirect"])
def test_a_stream_fails_with_the_same_status(
    gateway: GatewayProcess, key: str, hasty: Target, sheds: Sheds, case: str
) -> None:
    script, status, error_type = FAILURES[case]
    model, target = sheds() if status == 503 else ("hasty" if "hang" in case else "calm", hasty)
    target.script = script
    check(ask(gateway, chat(model, stream=True), key), status, error_type, gateway)


@pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["whole", "stream"])
def test_nobody_listens(gateway: GatewayProcess, key: str, fields: dict[str, bool]) -> None:
    check(ask(gateway, chat("dead", **fields), key), 502, "upstream_unreachable", gateway)


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_credential_is_the_gateways_fault(
    gateway: GatewayProcess, key: str, hasty: Target, status: int
) -> None:
    hasty.script = whole({"error": {"message": f"{SECRET}: Incorrect API key", "code": "x"}}, status)
    answer = ask(gateway, chat("calm"), key)
    check(answer, 502, "upstream_credential", gateway)
    assert "credential" in answer.error["message"]


def test_a_redirect_is_not_followed(gateway: GatewayProcess, key: str, hasty: Target, solo: Target) -> None:
    hasty.script = whole(b"", 307, location=f"{solo.url}/v1/chat/completions")
    check(ask(gateway, chat("calm"), key), 502, "upstream_", gateway)
    assert solo.calls == []


def test_a_busy_target_says_when_to_come_again(gateway: GatewayProcess, key: str, sheds: Sheds) -> None:
    """And is not asked before: from then on the gateway says it itself."""
    model, target = sheds()
    target.script = whole({"error": "x"}, 429, retry_after=7)
    answer = ask(gateway, chat(model), key)
    assert answer.status == 503
    assert answer.header("retry-after") == "7"
    answer = ask(gateway, chat(model), key)
    assert (answer.status, answer.error["type"]) == (429, "rate_limit_error")
    assert 5 <= int(answer.header("retry-after") or 0) <= 7
    assert len(target.calls) == 1


@pytest.mark.parametrize("value", ["-5", "nan", "inf", "soon", "1e9", "", "Wed, 21 Oct 2015 07:28:00 GMT", "\u00b2"])
def test_an_odd_retry_after_is_no_trouble(gateway: GatewayProcess, key: str, sheds: Sheds, value: str) -> None:
    model, target = sheds()
    target.script = whole({"error": "x"}, 429, retry_after=value)
    answer = ask(gateway, chat(model), key)
    assert answer.status == 503
    assert 0 <= int(answer.header("retry-after") or 0) <= 120


@pytest.mark.parametrize("status", [400, 404, 409, 413, 422])
def test_the_callers_fault_comes_in_the_targets_words(
    gateway: GatewayProcess, key: str, solo: Target, status: int
) -> None:
    said = b'{"error": {"message": "bad \\u00e9", "type": "BadRequestError", "param": "n", "code": 400}, "x": 1.0}'
    solo.script = whole(said, status)
    answer = ask(gateway, chat("solo"), key)
    assert (answer.status, answer.body) == (status, said)
    assert answer.header("x-should-retry") == "false"
    assert answer.header("x-request-id")
    assert len(solo.calls) == 1


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_4xx_that_is_no_json_is_worded_here(gateway: GatewayProcess, key: str, solo: Target, status: int) -> None:
    solo.script = whole(f"<html>{SECRET}</html>".encode(), status, "text/html")
    answer = ask(gateway, chat("solo"), key)
    assert 400 <= answer.status < 500
    assert answer.error["type"] == "invalid_request_error"
    assert SECRET not in repr(answer)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (b'{"error": {"message": "prompt too long", "code": 400, "param": "messages"}}', 400),
        (b'{"error": {"message": "' + SECRET.encode() + b'", "code": 500}}', 502),
        (b'{"error": {"message": "' + SECRET.encode() + b'"}}', 502),
        (b'{"error": "' + SECRET.encode() + b'"}', 502),
        (b'{"error": {"message": "' + SECRET.encode() + b'", "code": 503}}', 503),
        (b'{"error": {"message": "' + SECRET.encode() + b'", "code": 401}}', 502),
    ],
)
@pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["whole", "stream"])
def test_an_error_in_a_200_gets_a_real_status(
    gateway: GatewayProcess, key: str, hasty: Target, sheds: Sheds, error: bytes, status: int, fields: dict[str, bool]
) -> None:
    model, target = sheds() if status == 503 else ("calm", hasty)
    target.script = stream(b"data: " + error + b"\n\n", DONE) if fields else whole(error)
    answer = ask(gateway, chat(model, **fields), key)
    assert answer.status == status, answer
    assert SECRET not in repr(answer)
    assert answer.error["message"]
    assert b"[DONE]" not in answer.body


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b'"x"', b"{", b"\xff", b"[" * 100_000])
def test_a_200_that_is_no_answer_is_a_bad_reply(gateway: GatewayProcess, key: str, hasty: Target, body: bytes) -> None:
    hasty.script = whole(body)
    check(ask(gateway, chat("calm"), key), 502, "upstream_bad_reply", gateway)


def test_a_whole_answer_to_a_stream_is_a_bad_reply(gateway: GatewayProcess, key: str, hasty: Target) -> None:
    hasty.script = whole({"choices": []})
    check(ask(gateway, chat("calm", stream=True), key), 502, "upstream_bad_reply", gateway)


@pytest.mark.parametrize("first", [b"data: {malformed\n\n", b"data: [1]\n\n", b"data: \xff\n\n", b"data: hello\n\n"])
def test_a_first_event_that_is_nonsense_is_a_bad_reply(
    gateway: GatewayProcess, key: str, hasty: Target, first: bytes
) -> None:
    hasty.script = stream(first, event(finish="stop"), DONE)
    check(ask(gateway, chat("calm", stream=True), key), 502, "upstream_bad_reply", gateway)


def test_an_event_without_end_is_given_up_early(gateway: GatewayProcess, key: str, solo: Target) -> None:
    """Long before the time-outs of this route, which are minutes."""
    solo.script = stream(b"data: " + b"a" * 2 * 1024 * 1024, Act.STALL)
    check(ask(gateway, chat("solo", stream=True), key), 502, "policy_answer_too_large", gateway)
    assert solo.calls[0].closed.wait(30)


@pytest.mark.parametrize(
    "script",
    [
        [head(content_type="application/json", content_length=10), Act.STALL],
        [Slowly(b"HTTP/1.1 200 OK\r\n" + b"x-a: b\r\n" * 4000)],
        [Act.STALL],
    ],
    ids=["after the head", "endless head", "at once"],
)
@pytest.mark.parametrize("fields", [{}, {"stream": True}], ids=["whole", "stream"])
def test_a_hanging_target_is_left(
    gateway: GatewayProcess, key: str, hasty: Target, script: list[object], fields: dict[str, bool]
) -> None:
    hasty.script = script  # type: ignore[assignment]
    answer = ask(gateway, chat("hasty", **fields), key)
    assert answer.status in (502, 504)
    assert hasty.calls[0].closed.wait(30)


def test_failures_leave_nothing_in_flight(gateway: GatewayProcess) -> None:
    """Runs last in this file."""
    eventually(lambda: "trunkline_in_flight 0.0" in gateway.metrics(), "no call is in flight")
    assert "Traceback" not in gateway.stderr()
    assert "gateway_other" not in gateway.metrics()
