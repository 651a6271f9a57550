"""Paths of engines that an operator passes on, and recordings, which come as forms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Act, Target, Upstream, stream, usage, whole
from integration.client import Reply, ask, get, record

from gateway.core.types import Limit

HEARD = b'{"text":"Hello","usage":{"type":"duration","seconds":3}}'
AUDIO = "/v1/audio/transcriptions"
NEWER = [
    "/v1/chat/completions/batch",
    "/v1/chat/completions/render",
    "/v1/chat/completions/derender",
    "/v1/completions/render",
    "/v2/embed",
    "/inference/v1/generate",
]
"""Paths of vLLM's that came later."""


@pytest.fixture(scope="module")
def open_paths(upstream: Upstream) -> Iterator[GatewayProcess]:
    def target(name: str, backend: str = "vllm", **fields: Any) -> dict[str, Any]:
        return {"name": name, "backend": backend, "url": upstream.target(name).url, **fields}

    routes = {
        "one": {"targets": [target("one", model="served")], "passes": ["/pooling", "/v1/systemone", "/version"]},
        "two": {"targets": [target("two")], "passes": ["/classify"]},
        "new": {
            "targets": [target("new", model="served")],
            "passes": NEWER,
            "forward_headers": ["x-data-parallel-rank"],
        },
        "ears": {"targets": [target("ears", "openai", endpoints=["audio/transcriptions"], model="whisper")]},
    }
    with gateway_process(json.dumps({"routes": routes, "default_route": "one"})) as started:
        yield started


@pytest.fixture(scope="module")
def caller(open_paths: GatewayProcess) -> str:
    return open_paths.issue().secret


def renewed(upstream: Upstream, name: str) -> Target:
    target = upstream.target(name)
    target.restore()
    return target


def test_a_listed_path_is_passed_on(open_paths: GatewayProcess, caller: str, upstream: Upstream) -> None:
    target = renewed(upstream, "one")
    said = {"data": [{"data": [0.5]}], "usage": usage(9, 0)}
    target.script = whole(said)
    reply = ask(open_paths, {"model": "one", "input": "Hi", "odd": [1.50]}, caller, "/pooling")
    assert (reply.status, reply.json()) == (200, said)
    assert (target.calls[0].path, target.calls[0].json()["model"]) == ("/pooling", "served")
    line = record(open_paths, reply.header("x-request-id"))
    assert (line["endpoint"], line["route"], line["usage"]["prompt_tokens"]) == ("passed", "one", 9)


@pytest.mark.parametrize("path", NEWER)
def test_what_engines_have_lately_can_be_listed(
    open_paths: GatewayProcess, caller: str, upstream: Upstream, path: str
) -> None:
    target = renewed(upstream, "new")
    said = b'{"choices": [ [{"token_ids":[1]}] ],"usage":{"prompt_tokens":4,"completion_tokens":3}}'
    target.script = whole(said)
    body = (
        b'{ "model":"new","token_ids":[1, 2],"messages":[[{"role":"user","content":"a"}]],"sampling_params":{"n":1.0}}'
    )
    sent = {"content-type": "application/json", "x-data-parallel-rank": "3"}
    reply = ask(open_paths, body, caller, path, headers=sent)
    assert (reply.status, reply.body) == (200, said)
    (call,) = target.calls
    assert (call.path, call.body) == (path, body.replace(b'"new"', b'"served"'))
    assert call.header("x-data-parallel-rank") == "3"
    used = record(open_paths, reply.header("x-request-id"))["usage"]
    assert (used["prompt_tokens"], used["completion_tokens"], used["source"]) == (4, 3, "upstream")


def test_an_answer_without_usage_is_counted_by_its_bytes(
    open_paths: GatewayProcess, caller: str, upstream: Upstream
) -> None:
    renewed(upstream, "one").script = whole(b"no JSON at all", content_type="text/plain")
    reply = ask(open_paths, {"model": "one"}, caller, "/v1/systemone")
    assert (reply.body, reply.header("content-type")) == (b"no JSON at all", "text/plain")
    assert record(open_paths, reply.header("x-request-id"))["usage"]["source"] == "estimated"


def test_a_path_can_be_got(open_paths: GatewayProcess, caller: str, upstream: Upstream) -> None:
    target = renewed(upstream, "one")
    reply = get(open_paths, "/version", caller)
    assert reply.status == 200
    assert (target.probes[-1].path, target.probes[-1].method, target.probes[-1].body) == ("/version", "GET", b"")


def test_all_else_is_not_there(open_paths: GatewayProcess, caller: str, upstream: Upstream) -> None:
    one, two = renewed(upstream, "one"), renewed(upstream, "two")
    assert ask(open_paths, {"model": "one"}, caller, "/invocations").status == 404
    assert ask(open_paths, {"model": "one"}, caller, "/pooling/more").status == 404
    other = ask(open_paths, {"model": "two"}, caller, "/pooling")
    assert (other.status, other.error["code"]) == (404, "endpoint_not_served")
    assert get(open_paths, "/pooling").status == 401
    assert ask(open_paths, {"model": "one"}, caller, "/pooling", method="DELETE").status == 405
    assert not one.calls and not two.calls


def test_passed_calls_are_under_the_keys_limits(open_paths: GatewayProcess, upstream: Upstream) -> None:
    renewed(upstream, "one").script = whole({})
    limited = open_paths.issue(limit=Limit(rpm=1)).secret
    statuses = [ask(open_paths, {"model": "one"}, limited, "/pooling").status for _ in range(2)]
    narrow = open_paths.issue(endpoints=("chat/completions",)).secret
    assert (statuses, ask(open_paths, {"model": "one"}, narrow, "/pooling").status) == ([200, 429], 403)


@pytest.mark.parametrize("broken", [False, True])
def test_a_passed_stream_ends_where_it_ends(
    open_paths: GatewayProcess, caller: str, upstream: Upstream, broken: bool
) -> None:
    target = renewed(upstream, "one")
    sent = b'event: odd\ndata: {"a": 1}\n\ndata: {"b": 2}\n\n'
    target.script = stream(sent, *([Act.CUT] if broken else []))
    reply = ask(open_paths, {"model": "one", "stream": True}, caller, "/pooling")
    assert reply.body.startswith(sent)
    assert (b"upstream_disconnected" in reply.body) == broken
    assert broken or reply.body == sent


def form(*fields: tuple[str, str], file: bytes = b"RIFF\x00\xff\r\n--x", last: bool = True) -> tuple[bytes, str]:
    """A form with these fields and a file, before or behind them."""
    mark = b"--frontier"
    texts = [
        b'%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (mark, name.encode(), value.encode())
        for name, value in fields
    ]
    audio = (
        b'%b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n%b\r\n'
        % (mark, file)
    )
    parts = [*texts, audio] if last else [audio, *texts]
    return b"".join(parts) + mark + b"--\r\n", "multipart/form-data; boundary=frontier"


def listen(gateway: GatewayProcess, key: str, body: bytes, kind: str) -> Reply:
    return ask(gateway, body, key, AUDIO, headers={"content-type": kind})


@pytest.mark.parametrize("last", [True, False])
def test_a_recording_goes_on_with_only_its_model_changed(
    open_paths: GatewayProcess, caller: str, upstream: Upstream, last: bool
) -> None:
    target = renewed(upstream, "ears")
    target.script = whole(HEARD)
    body, kind = form(("model", "ears"), ("language", "en"), file=b"\x00" * 300_000 + b"\r\n--front", last=last)
    reply = listen(open_paths, caller, body, kind)
    assert (reply.status, reply.body) == (200, HEARD)
    sent = target.calls[0]
    assert (sent.path, sent.header("content-type")) == (AUDIO, kind)
    assert sent.body == body.replace(b"\r\n\r\nears\r\n", b"\r\n\r\nwhisper\r\n")
    used = record(open_paths, reply.header("x-request-id"))["usage"]
    assert (used["prompt_tokens"], used["completion_tokens"]) == (0, 0)


def test_a_recording_as_a_stream(open_paths: GatewayProcess, caller: str, upstream: Upstream) -> None:
    events = b'data: {"type":"transcript.text.delta","delta":"Hi"}\n\ndata: [DONE]\n\n'
    renewed(upstream, "ears").script = stream(events)
    reply = listen(open_paths, caller, *form(("model", "ears"), ("stream", "true")))
    assert (reply.status, reply.body) == (200, events)


def test_other_texts_than_json_are_answers(open_paths: GatewayProcess, caller: str, upstream: Upstream) -> None:
    renewed(upstream, "ears").script = whole(b"1\n00:00 --> 00:01\nHello\n", content_type="text/plain")
    reply = listen(open_paths, caller, *form(("model", "ears"), ("response_format", "srt")))
    assert reply.body.startswith(b"1\n")


BODY, KIND = form(("model", "ears"))


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"model": "ears"}', "application/json"),
        (b"", KIND),
        (BODY, "multipart/form-data"),
        (BODY[:-20], KIND),
        (form(("model", "ears"), ("model", "one"))[0], KIND),
        (BODY.replace(b'name="model"', b"name"), KIND),
        (form(("model", "ears"), ("prompt", "x" * 70_000))[0], KIND),
        (b"preamble\r\n" + BODY, KIND),
    ],
)
def test_what_is_no_form_is_refused(
    open_paths: GatewayProcess, caller: str, upstream: Upstream, body: bytes, kind: str
) -> None:
    target = renewed(upstream, "ears")
    reply = listen(open_paths, caller, body, kind)
    assert (reply.status, reply.error["type"]) == (400, "invalid_request_error")
    assert not target.calls


def test_a_recording_that_is_too_large_is_refused(open_paths: GatewayProcess, caller: str) -> None:
    body, kind = form(("model", "ears"), file=b"\x00" * (21 * 1024 * 1024))
    assert listen(open_paths, caller, body[:1000], kind).status == 400
    headers = {"content-type": kind, "content-length": f"{len(body)}"}
    assert ask(open_paths, None, caller, AUDIO, headers=headers).status == 413
