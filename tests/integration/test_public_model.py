"""`public_model`: answers of every kind name the model as their client did, and say everything else as before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import DONE, Act, Target, Upstream, answer, event, stream, usage_event, whole
from integration.client import ask, chat

BACKENDS: Final = ("openai", "vllm", "sglang", "llamacpp", "tgi")
SERVED: Final = 'Served/"Name"'
PUBLIC: Final = "caf\u00e9/gpt:\\1"
"""An alias with signs that JSON escapes, and that a pattern would take for something else."""
SAID: Final = 'he said "model":"Served/\\"Name\\"" and \\"model\\": "Served"'
CHAT: Final = "/v1/chat/completions"


@pytest.fixture(scope="module")
def naming(upstream: Upstream) -> Iterator[GatewayProcess]:
    """A route for each backend, and "plain" without the setting."""

    def route(name: str, backend: str, **fields: Any) -> dict[str, Any]:
        spec = {"name": f"n-{name}", "backend": backend, "url": upstream.target(f"n-{name}").url, "model": SERVED}
        return {"targets": [spec], **fields}

    routes = {name: route(name, name, public_model=True, aliases=[f"{PUBLIC}-{name}"]) for name in BACKENDS}
    with gateway_process(json.dumps({"routes": routes | {"plain": route("plain", "openai")}})) as started:
        yield started


@pytest.fixture(scope="module")
def key(naming: GatewayProcess) -> str:
    return naming.issue().secret


def target(upstream: Upstream, name: str) -> Target:
    found = upstream.target(f"n-{name}")
    found.restore()
    return found


def events(reply_data: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(data) for data in reply_data if data != b"[DONE]"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_answer(naming: GatewayProcess, upstream: Upstream, key: str, backend: str) -> None:
    served = target(upstream, backend)
    told = answer(SAID) | {"model": SERVED, "x_new": {"model": "other"}}
    served.script = whole(told)
    for name in (backend, f"{PUBLIC}-{backend}"):
        reply = ask(naming, chat(name), key)
        assert reply.status == 200 and served.calls[-1].json()["model"] == SERVED
        assert reply.json() == told | {"model": name}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("together", [False, True])
def test_every_event_of_a_stream(
    naming: GatewayProcess, upstream: Upstream, key: str, backend: str, together: bool
) -> None:
    said = [event(content, model=SERVED) for content in ("", "a", SAID, "b", "c", "d")]
    said += [event(finish="stop", model=SERVED)]
    if backend != "tgi":
        said.insert(0, b": comment\n\n")
    last = event(choices=[], model=SERVED, usage={"prompt_tokens": 3, "completion_tokens": 2})
    whole_stream = [*said, last, DONE]
    target(upstream, backend).script = stream(*([b"".join(whole_stream)] if together else whole_stream))
    name = f"{PUBLIC}-{backend}"
    reply = ask(naming, chat(name, stream=True, stream_options={"include_usage": True}), key)
    found = events(reply.data)
    assert len(found) == 8 and {each["model"] for each in found} == {name}
    texts = [choice["delta"].get("content") for each in found for choice in each["choices"]]
    assert texts == ["", "a", SAID, "b", "c", "d", None]
    assert reply.body.endswith(DONE) and SERVED.encode() not in reply.body.replace(json.dumps(SAID).encode(), b"")


def test_other_endpoints(naming: GatewayProcess, upstream: Upstream, key: str) -> None:
    served = target(upstream, "vllm")
    vectors = {
        "object": "list",
        "model": SERVED,
        "data": [{"embedding": [0.5], "index": 0}],
        "usage": {"prompt_tokens": 1},
    }
    served.script = whole(vectors)
    assert ask(naming, {"model": "vllm", "input": "x"}, key, "/v1/embeddings").json() == vectors | {"model": "vllm"}
    other = target(upstream, "openai")  # whose answers are translated
    other.script = whole(answer("x") | {"model": SERVED})
    body = {"model": "openai", "max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]}
    assert ask(naming, body, key, "/v1/messages").json()["model"] == "openai"
    other.script = stream(event("x", model=SERVED), event(finish="stop", model=SERVED), usage_event(), DONE)
    told = ask(naming, body | {"stream": True}, key, "/v1/messages").body
    assert told.count(b'"model":"openai"') == 1 and b"Served" not in told


def test_what_names_no_model_and_what_is_not_asked_for_stays(
    naming: GatewayProcess, upstream: Upstream, key: str
) -> None:
    nameless = {name: value for name, value in answer("x").items() if name != "model"}
    target(upstream, "openai").script = whole(nameless)
    assert ask(naming, chat("openai"), key).json() == nameless
    raw = json.dumps(answer("x") | {"model": SERVED}, indent=2).encode()
    target(upstream, "plain").script = whole(raw)
    assert ask(naming, chat("plain"), key).body == raw
    target(upstream, "openai").script = whole(raw)
    assert ask(naming, chat("openai"), key).body == raw.replace(json.dumps(SERVED).encode(), b'"openai"')


def test_a_stream_that_breaks_off(naming: GatewayProcess, upstream: Upstream, key: str) -> None:
    target(upstream, "vllm").script = stream(event("a", model=SERVED), Act.CUT)
    reply = ask(naming, chat("vllm", stream=True), key)
    first, error = events(reply.data)
    assert first["model"] == "vllm" and "error" in error and usage_event() not in reply.body
