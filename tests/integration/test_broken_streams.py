"""A stream that does not end well ends in an error event, and never in `[DONE]`."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from harness.gateway_process import GatewayProcess
from harness.upstream import DONE, END, Act, Script, Slowly, Target, chunk, event, head, stream
from integration.client import ask, chat, record

GOLDEN = Path(__file__).parents[1] / "golden" / "vllm"
SECRET = "secret-of-upstream"
ERROR = f'data: {{"error": {{"message": "{SECRET}", "type": "InternalServerError", "code": 500}}}}\n\n'.encode()
HI = event("Hi")
BROKEN: dict[str, tuple[Script, str]] = {
    "end without finish": (stream(HI), "upstream_disconnected"),
    "cut": (stream(HI, Act.CUT), "upstream_disconnected"),
    "reset": (stream(HI, Act.RESET), "upstream_disconnected"),
    "cut in a chunk": ([*stream(HI, end=False), b"ff\r\ndata: {", Act.CUT], "upstream_disconnected"),
    "cut in an event": (stream(HI, event("x")[:-9], Act.CUT), "upstream_disconnected"),
    "end in an event": (stream(HI, event(finish="stop"), b"data: {"), "upstream_disconnected"),
    "end without length": ([head(content_type="text/event-stream"), HI, Act.CUT], "upstream_disconnected"),
    "stall": (stream(HI, Act.STALL), "upstream_timeout"),
    "stall in an event": (stream(HI, b"data: {", Act.STALL), "upstream_timeout"),
    "error": (stream(HI, ERROR), "upstream_failed"),
    "error and done": (stream(HI, ERROR, DONE), "upstream_failed"),
    "error and done at once": (stream(HI + ERROR + DONE), "upstream_failed"),
    "error after finish": (stream(HI, event(finish="stop"), ERROR, DONE), "upstream_failed"),
    "named error event": (stream(HI, b"event: error\n" + ERROR, DONE), "upstream_failed"),
    "malformed event": (stream(HI, b"data: {malformed\n\n", DONE), "upstream_bad_reply"),
    "malformed and done at once": (stream(HI + b'data: {"choices": 7}\n\n' + DONE), "upstream_bad_reply"),
    "deep event": (stream(HI, b"data: {" + b'"a":[' * 1 + b"[" * 100_000 + b"\n\n", DONE), "upstream_bad_reply"),
    "endless event": (stream(HI, b"data: " + b"a" * 2 * 1024 * 1024, b"\n\n", DONE), "policy_answer_too_large"),
    "HTML inside": (stream(HI, b"<html>502 Bad Gateway</html>"), "upstream_disconnected"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_stream_ends_in_an_error_event(gateway: GatewayProcess, key: str, hasty: Target, case: str) -> None:
    hasty.script, error_type = BROKEN[case]

    answer = ask(gateway, chat("pausing" if "stall" in case else "calm", stream=True), key)

    assert answer.status == 200
    assert answer.body.startswith(HI)
    assert b"[DONE]" not in answer.body
    error = json.loads(answer.data[-1])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "server_error"
    assert answer.header("x-request-id") in error["message"]
    assert SECRET not in repr(answer)
    line = record(gateway, answer.header("x-request-id"))
    assert line["outcome"] == "broke"
    assert line["error_type"].startswith(error_type)
    assert len(hasty.calls) == 1


def test_broken_framing_is_no_clean_end(gateway: GatewayProcess, key: str, hasty: Target) -> None:
    hasty.script = [*stream(HI, end=False), b"zz\r\n\r\n", END]
    answer = ask(gateway, chat("calm", stream=True), key)
    assert answer.status in (200, 502)
    assert b"[DONE]" not in answer.body
    assert b'"code":"upstream_' in answer.body


def test_the_callers_fault_in_a_stream_is_told(gateway: GatewayProcess, key: str, hasty: Target) -> None:
    fault = b'data: {"error": {"message": "too long", "type": "BadRequestError", "code": 400}}\n\n'
    hasty.script = stream(HI, fault, DONE)
    answer = ask(gateway, chat("calm", stream=True), key)
    assert "too long" in json.loads(answer.data[-1])["error"]["message"]
    assert b"[DONE]" not in answer.body


def test_vllms_engine_dies_in_a_stream(gateway: GatewayProcess, key: str, hasty: Target) -> None:
    """As recorded from vLLM, which says `[DONE]` after the error."""
    *_, literal = (GOLDEN / "vllm-engine-killed-mid-stream.txt").read_text().splitlines()
    recorded: bytes = ast.literal_eval(literal).encode()
    hasty.script = [*stream(HI, end=False), recorded, END]

    answer = ask(gateway, chat("calm", stream=True), key)

    assert b"EngineCore" not in answer.body
    assert b"[DONE]" not in answer.body
    assert json.loads(answer.data[-1])["error"]["code"] == "upstream_failed"


@pytest.mark.parametrize("begun", [True, False])
def test_comments_are_no_answer(gateway: GatewayProcess, key: str, hasty: Target, begun: bool) -> None:
    """TGI's router sends them also while its engine hangs."""
    comment = chunk(b":\n\n")
    hasty.script = stream(*([event("Once")] if begun else []), Slowly(comment * 3000, len(comment)), Act.STALL)
    reply = ask(gateway, chat("pausing" if begun else "hasty", stream=True), key)
    if begun:
        assert reply.status == 200 and b"upstream_timeout" in reply.data[-1]
    else:
        assert (reply.status, reply.error["code"]) == (504, "upstream_timeout")


def test_nothing_is_tried_again_once_a_byte_has_gone(gateway: GatewayProcess, key: str, hasty: Target) -> None:
    hasty.scripts = [stream(HI, Act.CUT)]
    answer = ask(gateway, chat("calm", stream=True), key)
    assert answer.body.count(HI) == 1
    assert len(hasty.calls) == 1


@pytest.mark.parametrize("tail", [[Act.STALL], [chunk(DONE)], [Act.CUT]], ids=["stall", "more", "cut"])
def test_done_is_the_end_whatever_the_connection_does_then(
    gateway: GatewayProcess, key: str, hasty: Target, tail: list[object]
) -> None:
    hasty.script = [*stream(HI, event(finish="stop"), DONE, end=False), *tail]  # type: ignore[list-item]
    answer = ask(gateway, chat("calm", stream=True), key)
    assert answer.body == HI + event(finish="stop") + DONE
    assert record(gateway, answer.header("x-request-id"))["outcome"] == "answered"
