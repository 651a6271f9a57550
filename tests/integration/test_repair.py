"""`repair: retry`: an answer that is not the JSON that was asked for is asked for once more, and both are charged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import GOOD_STREAM, Gate, Script, Target, Upstream, answer, whole
from integration.client import CHAT, Reply, ask, chat, eventually, request, samples, wire

OBJECT = {"response_format": {"type": "json_object"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FITTING = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}
PRICE = {"input": 1.0, "output": 2.0}


@pytest.fixture(scope="module")
def repairing(upstream: Upstream) -> Iterator[GatewayProcess]:
    def route(name: str, backend: str, **fields: Any) -> dict[str, Any]:
        return {"targets": [{"name": f"json-{name}", "backend": backend, "url": upstream.target("json").url}], **fields}

    routes = {
        "m": route("m", "openai", repair="retry", price=PRICE),
        "native": route("native", "vllm", repair="retry"),
        "off": route("off", "openai"),
    }
    with gateway_process(json.dumps({"routes": routes})) as started:
        yield started


@pytest.fixture(scope="module")
def key(repairing: GatewayProcess) -> str:
    return repairing.issue().secret


@pytest.fixture
def target(upstream: Upstream) -> Target:
    found = upstream.target("json")
    found.restore()
    return found


def answers(target: Target, *texts: str) -> None:
    target.scripts = [whole(answer(text, prompt=5 + 10 * i, completion=2 + i)) for i, text in enumerate(texts)]


def line(gateway: GatewayProcess, reply: Reply | None = None, **fields: str) -> dict[str, Any]:
    if reply is not None:
        fields["request_id"] = reply.header("x-request-id") or ""
    found: dict[str, Any] = eventually(
        lambda: next(
            (each for each in gateway.records() if all(each.get(name) == value for name, value in fields.items())), None
        ),
        "its record",
    )
    return found


def counts(line: dict[str, Any]) -> tuple[int, int, str]:
    return line["usage"]["prompt_tokens"], line["usage"]["completion_tokens"], line["usage"]["source"]


@pytest.mark.parametrize(
    ("wish", "bad"),
    [
        (OBJECT, "Sure! {"),
        (OBJECT, '```json\n{"a": 1}\n```'),
        (OBJECT, "[1]"),
        (OBJECT, ""),
        (FITTING, '{"b": 1}'),
        (FITTING, "[]"),
        (FITTING, "[" * 100_000),
    ],
)
def test_what_does_not_fit_is_asked_for_once_more_and_both_are_charged(
    repairing: GatewayProcess, target: Target, key: str, wish: dict[str, Any], bad: str
) -> None:
    answers(target, bad, '{"a": 1}')
    reply = ask(repairing, chat("m", **wish), key)
    assert (reply.status, reply.header("x-trunkline-repair")) == (200, "retried")
    assert reply.json() == answer('{"a": 1}', prompt=15, completion=3)
    first, second = target.calls
    assert first.body == second.body
    told = line(repairing, reply)
    assert (counts(told), told["repair"], told["cost_micros"]) == ((20, 5, "upstream"), "repaired", 30)


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        (OBJECT, '{"a": 1}'),
        (FITTING, ' {"a": "not an integer"} '),
        ({}, "no JSON at all"),
        ({"response_format": {"type": "text"}}, "no JSON at all"),
        ({"response_format": "json_object"}, "a wish that nobody understands"),
        ({"response_format": {"type": "json_schema"}}, "a wish without a schema"),
    ],
)
def test_what_fits_or_was_not_asked_for_is_passed_on(
    repairing: GatewayProcess, target: Target, key: str, wish: dict[str, Any], text: str
) -> None:
    answers(target, text)
    reply = ask(repairing, chat("m", **wish), key)
    assert reply.json() == answer(text) and len(target.calls) == 1
    assert reply.header("x-trunkline-repair") is None and "repair" not in line(repairing, reply)


@pytest.mark.parametrize(
    "change",
    [
        {"finish_reason": "length"},
        {"message": {"role": "assistant", "content": None, "refusal": "No."}},
        {"message": {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}},
        {"message": "odd"},
    ],
)
def test_what_was_cut_off_or_is_no_text_is_passed_on(
    repairing: GatewayProcess, target: Target, key: str, change: dict[str, Any]
) -> None:
    told = answer("{")
    told["choices"][0] |= change
    target.script = whole(told)
    assert ask(repairing, chat("m", **OBJECT), key).json() == told and len(target.calls) == 1


def test_the_second_answer_is_passed_on_whatever_it_is(repairing: GatewayProcess, target: Target, key: str) -> None:
    answers(target, "no", "no again")
    reply = ask(repairing, chat("m", **OBJECT), key)
    assert (reply.status, reply.json()["choices"][0]["message"]["content"]) == (200, "no again")
    assert line(repairing, reply)["repair"] == "in_vain" and len(target.calls) == 2


@pytest.mark.parametrize("second", [whole({"error": {"message": "no"}}, 500), whole({"error": {"message": "x"}}, 400)])
def test_the_first_is_passed_on_if_there_is_no_second(
    repairing: GatewayProcess, target: Target, key: str, second: Script
) -> None:
    target.scripts = [whole(answer("no")), second]
    reply = ask(repairing, chat("m", **OBJECT), key)
    assert (reply.status, reply.json(), reply.header("x-trunkline-repair")) == (200, answer("no"), None)
    told = line(repairing, reply)
    assert (told["repair"], counts(told)) == ("failed", (5, 2, "upstream"))
    assert [each["outcome"] for each in told["attempts"]] == ["ok"]


def test_streams_and_other_routes_are_left_alone(repairing: GatewayProcess, target: Target, key: str) -> None:
    target.script = GOOD_STREAM
    assert ask(repairing, chat("m", stream=True, **OBJECT), key).data[-1] == b"[DONE]"
    target.script = whole(answer("no"))
    assert ask(repairing, chat("off", **OBJECT), key).json() == answer("no")
    assert len(target.calls) == 2


def test_other_dialects(repairing: GatewayProcess, target: Target, key: str) -> None:
    answers(target, "no", '{"a": 1}')  # translated
    body = {"input": "x", "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}}
    reply = ask(repairing, {"model": "m", **body}, key, "/v1/responses")
    assert reply.header("x-trunkline-repair") == "retried" and '{\\"a\\": 1}' in reply.body.decode()
    messages = {"model": "native", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    usage = {"input_tokens": 7, "output_tokens": 4}
    told = {"type": "message", "stop_reason": "end_turn", "content": [{"type": "text", "text": "no"}], "usage": usage}
    target.script = whole(told)
    wish = {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    reply = ask(repairing, messages | wish, key, "/v1/messages")
    assert reply.json() == told and counts(line(repairing, reply)) == (14, 8, "upstream")
    text = {"choices": [{"text": "no", "finish_reason": "stop", "index": 0}], "usage": {"prompt_tokens": 1}}
    target.script = whole(text)
    reply = ask(repairing, {"model": "m", "prompt": "x", **OBJECT}, key, "/v1/completions")
    assert line(repairing, reply)["repair"] == "in_vain"


def test_a_client_that_leaves_is_charged_for_the_first(repairing: GatewayProcess, target: Target, key: str) -> None:
    gate = Gate()
    target.scripts = [whole(answer("no", prompt=500, completion=300)), [gate]]
    with wire(repairing, request(chat("m", **OBJECT), key)):
        target.wait_for_calls(2)
    gate.open()
    told = line(repairing, repair="gone")
    assert told["outcome"] == "gone" and counts(told)[0] >= 500 and counts(told)[1] >= 300


def test_repairs_are_counted(repairing: GatewayProcess, target: Target, key: str) -> None:
    def seen() -> float:
        labels = frozenset({("route", "m"), ("outcome", "repaired")})
        return samples(repairing).get(("trunkline_repairs_total", labels), 0.0)

    before = seen()
    answers(target, "no", "{}")
    assert ask(repairing, chat("m", **OBJECT), key, CHAT).status == 200
    eventually(lambda: seen() == before + 1, "it is counted")
