"""Bodies that cannot be served: a clear 4xx in the envelope, and nothing of it is another call's concern."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Gate, Target, Upstream, answer, head
from integration.client import CHAT, ask, chat, get, request, wire

from gateway.core.types import Limit

MESSAGES = b'"messages":[{"role":"user","content":"Hi"}]'
MIB = 1024 * 1024
BAD: dict[str, tuple[bytes, str | None]] = {
    "empty": (b"", None),
    "text": (b"hello", None),
    "list": (b"[]", None),
    "string": (b'"model"', None),
    "number": (b"1", None),
    "null": (b"null", None),
    "cut": (b'{"model":"solo",' + MESSAGES, None),
    "two": (b'{"model":"solo",' + MESSAGES + b"}{}", None),
    "trailing comma": (b'{"model":"solo",' + MESSAGES + b",}", None),
    "single quotes": (b"{'model':'solo'}", None),
    "NaN": (b'{"model":"solo",' + MESSAGES + b',"temperature":NaN}', None),
    "Infinity": (b'{"model":"solo",' + MESSAGES + b',"temperature":-Infinity}', None),
    "raw NUL": (b'{"model":"solo",' + MESSAGES + b',"user":"a\x00b"}', None),
    "raw newline in string": (b'{"model":"solo","user":"a\nb",' + MESSAGES + b"}", None),
    "NUL outside": (b'{"model":"solo",' + MESSAGES + b"}\x00", None),
    "BOM": (b'\xef\xbb\xbf{"model":"solo",' + MESSAGES + b"}", None),
    "UTF-16": ('{"model":"solo"}'.encode("utf-16"), None),
    "invalid UTF-8": (b'{"model":"solo","messages":[{"role":"user","content":"\xff\xfe"}]}', None),
    "surrogate in UTF-8": (b'{"model":"solo","messages":[{"role":"user","content":"\xed\xa0\x80"}]}', None),
    "overlong UTF-8": (b'{"model":"solo","messages":[{"role":"user","content":"\xc0\xaf"}]}', None),
    "bad escape": (b'{"model":"solo","user":"\\x41",' + MESSAGES + b"}", None),
    "no model": (b"{" + MESSAGES + b"}", "model"),
    "empty object": (b"{}", "model"),
    "model null": (b'{"model":null,' + MESSAGES + b"}", "model"),
    "model empty": (b'{"model":"",' + MESSAGES + b"}", "model"),
    "model number": (b'{"model":7,' + MESSAGES + b"}", "model"),
    "model list": (b'{"model":["solo"],' + MESSAGES + b"}", "model"),
    "surrogate model": (b'{"model":"\\ud800",' + MESSAGES + b"}", "model"),
    "lone surrogate": (b'{"model":"solo","messages":[{"role":"user","content":"\\ud83d"}]}', "messages"),
    "surrogates swapped": (b'{"model":"solo","messages":[{"role":"user","content":"\\ude00\\ud83d"}]}', "messages"),
    "model NUL": (b'{"model":"solo\\u0000",' + MESSAGES + b"}", "model"),
    "model CR LF": (b'{"model":"solo\\r\\nx-injected: 1",' + MESSAGES + b"}", "model"),
    "model long": (b'{"model":"' + b"a" * 100_000 + b'",' + MESSAGES + b"}", "model"),
    "stream text": (b'{"model":"solo","stream":"yes",' + MESSAGES + b"}", "stream"),
    "stream number": (b'{"model":"solo","stream":1,' + MESSAGES + b"}", "stream"),
    "options text": (b'{"model":"solo","stream":true,"stream_options":"x",' + MESSAGES + b"}", "stream_options"),
    "no messages": (b'{"model":"solo"}', "messages"),
    "messages null": (b'{"model":"solo","messages":null}', "messages"),
    "messages text": (b'{"model":"solo","messages":"Hi"}', "messages"),
    "messages object": (b'{"model":"solo","messages":{}}', "messages"),
    "model twice": (b'{"model":"solo","model":"good",' + MESSAGES + b"}", None),
    "model twice, escaped": (b'{"model":"solo","mod\\u0065l":"good",' + MESSAGES + b"}", None),
    "same model twice": (b'{"model":"solo",' + MESSAGES + b',"model":"solo"}', None),
    "messages twice": (b'{"model":"solo",' + MESSAGES + b"," + MESSAGES + b"}", None),
    "stream twice": (b'{"model":"solo","stream":true,"stream":false,' + MESSAGES + b"}", None),
    "unknown twice": (b'{"x":1,"model":"solo",' + MESSAGES + b',"x":1}', None),
    "depth": (b'{"model":"solo","x":' + b"[" * 100_000 + b"]" * 100_000 + b"," + MESSAGES + b"}", None),
    "depth of objects": (b'{"model":"solo","x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}", None),
    "depth in messages": (b'{"model":"solo","messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
    "only opening": (b"[" * 1_000_000, None),
    "a million keys": (
        b'{"model":"solo",' + MESSAGES + b"," + b",".join(b'"k%d":1' % i for i in range(1_000_000)) + b"}",
        None,
    ),
}


@pytest.fixture
def bystander(gateway: GatewayProcess, key: str, upstream: Upstream) -> Iterator[None]:
    """Another client's call that is under way during the test, and that must end well."""
    target = upstream.target("good")
    target.restore()
    gate = Gate()
    body = json.dumps(answer("still here")).encode()
    target.script = [head(content_type="application/json", content_length=len(body)), gate, body]
    found = []
    thread = threading.Thread(target=lambda: found.append(ask(gateway, chat("good"), key)))
    thread.start()
    target.wait_for_calls()
    yield
    gate.open()
    thread.join(30)
    assert [(reply.status, reply.body) for reply in found] == [(200, body)]


@pytest.mark.parametrize("name", BAD)
@pytest.mark.usefixtures("bystander")
def test_a_bad_body_is_refused_and_costs_nobody_else_anything(
    gateway: GatewayProcess, key: str, solo: Target, name: str
) -> None:
    body, param = BAD[name]

    refused = ask(gateway, body, key)

    assert refused.status == 400
    assert refused.error["type"] == "invalid_request_error"
    assert refused.error["param"] == param
    assert refused.header("x-injected") is None
    assert len(refused.body) < 2000
    assert solo.calls == []


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"model": "solo"}, "prompt"),
        ("/v1/completions", {"model": "solo", "prompt": None}, "prompt"),
        ("/v1/embeddings", {"model": "solo"}, "input"),
        ("/v1/embeddings", {"input": "x"}, "model"),
    ],
)
def test_the_other_endpoints_name_their_missing_field(
    gateway: GatewayProcess, key: str, path: str, body: dict[str, object], param: str
) -> None:
    refused = ask(gateway, body, key, path)
    assert (refused.status, refused.error["param"]) == (400, param)


@pytest.mark.parametrize("escape", ["\\u0000", "\\u202e", "\\ud83d\\ude00", "\\r\\n"])
def test_odd_escapes_in_the_prompt_are_the_targets_matter(
    gateway: GatewayProcess, key: str, solo: Target, escape: str
) -> None:
    body = f'{{"model":"solo","messages":[{{"role":"user","content":"{escape}"}}]}}'.encode()
    assert ask(gateway, body, key).status == 200
    assert solo.calls[0].body == body


def test_an_unknown_model_is_named_with_those_the_key_may_use(gateway: GatewayProcess) -> None:
    narrow = gateway.issue(models=("solo*", "good")).secret

    refused = ask(gateway, chat("gpt-9"), narrow)

    assert refused.status == 404
    assert refused.error["type"] == "not_found_error"
    assert refused.error["code"] == "model_not_found"
    assert refused.error["param"] == "model"
    for name in ("gpt-9", "solo", "solo-alias", "good"):
        assert name in refused.error["message"]
    assert "vllm" not in refused.error["message"]
    assert refused.header("x-should-retry") == "false"


def test_a_model_that_is_not_the_keys_is_forbidden(gateway: GatewayProcess, solo: Target) -> None:
    narrow = gateway.issue(models=("good",)).secret
    refused = ask(gateway, chat("solo"), narrow)
    assert refused.status == 403
    assert refused.error["type"] == "permission_error"
    assert refused.header("x-should-retry") == "false"
    assert solo.calls == []


@pytest.mark.usefixtures("bystander")
@pytest.mark.parametrize("announced", [21 * MIB, 10**15, 2**63, 10**30])
def test_an_announced_body_over_the_limit_is_refused_before_it_comes(
    gateway: GatewayProcess, key: str, announced: int
) -> None:
    with wire(gateway, request(b"{", key, length=announced)) as connection:
        refused = connection.answer()
    assert refused.status == 413 or (announced > 2**63 - 1 and 400 <= refused.status < 500)
    if refused.status == 413:
        assert str(20 * MIB) in refused.error["message"]


@pytest.mark.usefixtures("bystander")
def test_a_chunked_body_over_the_limit_is_refused(gateway: GatewayProcess, key: str, solo: Target) -> None:
    start = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ntransfer-encoding: chunked\r\n\r\n"
    for _ in range(3):
        with wire(gateway, start.encode()) as connection:
            connection.send_all_that_is_taken(b"%x\r\n%b\r\n" % (MIB, b" " * MIB) * 22)
            refused = connection.answer()
        if refused.status != 408:  # a busy machine may need more than the time that this gateway gives a body
            break
    assert refused.status == 413
    assert refused.error["code"] == "body_too_large"
    assert solo.calls == []


def test_a_body_at_the_limit_is_taken(gateway: GatewayProcess, key: str, solo: Target) -> None:
    body = json.dumps(chat("solo")).encode()
    body += b" " * (20 * MIB - len(body))
    assert ask(gateway, body, key).status == 200
    assert len(solo.calls[0].body) == 20 * MIB
    with wire(gateway) as connection:
        connection.send_all_that_is_taken(request(body + b" ", key))
        assert connection.answer().status == 413


def test_the_gateway_lives(gateway: GatewayProcess, key: str) -> None:
    """Runs last in this file."""
    assert get(gateway, "/health").status == 200
    assert gateway.process.poll() is None
    assert "Traceback" not in gateway.stderr()


def test_bodies_of_one_key_that_are_being_read_take_no_memory_from_others(upstream: Upstream) -> None:
    """Limits are checked when the body is there: until then it is the key's and the tenant's part that bounds it."""
    upstream.target("solo").restore()
    target = {"name": "b", "backend": "openai", "url": upstream.target("solo").url}
    bodies = {"request": "1MiB", "in_flight": "4MiB"}
    body = json.dumps(chat("m", padding="x" * 700_000)).encode()
    with gateway_process(json.dumps({"routes": {"m": {"targets": [target]}}, "bodies": bodies})) as gateway:
        greedy, other = gateway.issue(limit=Limit(concurrency=1)).secret, gateway.issue(tenant="other").secret
        raw = request(body, greedy, more=b"expect: 100-continue\r\n")
        with wire(gateway, raw[: -len(body)]) as first:
            first.read_until(b"100 Continue\r\n\r\n")  # from here on its body is being read
            first.seen = b""
            first.send(body[:-1000])
            with wire(gateway, raw[:200_000]) as second:
                refused = second.answer()
            assert (refused.status, refused.error["code"]) == (429, "too_many_bodies")
            assert ask(gateway, body, other).status == 200
            first.send(raw[-1000:])
            assert first.answer().status == 200
        assert ask(gateway, body, greedy).status == 200
