"""What the fake backend says in each dialect, read by the adapters that read real servers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends import sse
from backends.api import Gauged, Usage
from backends.registry import load
from gateway.faults.answer import DONE, Answer
from gateway.faults.backend import DIALECTS
from gateway.faults.openai import OpenAI, Served, State
from gateway.faults.wire import HttpRequest
from gateway.faults.words import ask, said

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def server(dialect: str, **served: Any) -> OpenAI:
    return DIALECTS[dialect](Served(**{"tokens": 5, **served}), State())


def get(it: OpenAI, path: str) -> Answer:
    return it.answer(HttpRequest("GET", path, {}, b""))


def post(it: OpenAI, path: str, body: dict[str, Any] | bytes) -> Answer:
    return it.answer(HttpRequest("POST", path, {}, body if isinstance(body, bytes) else json.dumps(body).encode()))


def chat(*contents: str, **fields: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)], **fields}


def events(answer: Answer) -> list[Any]:
    assert answer.streamed
    return [json.loads(sse.data(step)) for step in answer.steps if isinstance(step, bytes) and step != DONE]


def text_of(answer: Answer) -> str:
    """What was said, whole or streamed, in chat or completions."""
    if not answer.streamed:
        choice = json.loads(answer.body)["choices"][0]
        return str(choice["message"]["content"] if "message" in choice else choice["text"])
    choices = [choice for event in events(answer) for choice in event["choices"]]
    return "".join(choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_text_is_known_beforehand(dialect: str, path: str, streamed: bool) -> None:
    body = {**chat("Hi"), "prompt": "Hi", "stream": streamed}
    said = text_of(post(server(dialect), path, body))
    assert said == ("w1 w2 w3 w4 w5" if path == CHAT else " w1 w2 w3 w4 w5")
    assert text_of(post(server(dialect), path, {**body, "max_tokens": 2})).strip() == "w1 w2"


@pytest.mark.parametrize("streamed", [False, True])
def test_vllm_goes_on_with_the_last_message(streamed: bool) -> None:
    asked = chat("Hi", "w1 w2", continue_final_message=True, add_generation_prompt=False, stream=streamed)
    assert text_of(post(server("vllm"), CHAT, asked)) == " w3 w4 w5"
    assert text_of(post(server("vllm"), CHAT, {**asked, "max_tokens": 1})) == " w3"
    assert text_of(post(server("vllm"), CHAT, {**asked, "continue_final_message": False})) == "w1 w2 w3 w4 w5"
    assert text_of(post(server("openai"), CHAT, asked)) == "w1 w2 w3 w4 w5", "it does not know the field"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_raw_prompt_is_gone_on_with(dialect: str) -> None:
    assert text_of(post(server(dialect), TEXT, {"prompt": "Say: w1 w2 w3"})) == " w4 w5"
    assert text_of(post(server(dialect), TEXT, {"prompt": "Say: w1 w2 "})) == "w3 w4 w5"


def test_what_is_said_depends_on_the_end_of_the_text_only() -> None:
    assert [said(text) for text in ("", "w7", "a w12", "aw3", "w3.", "w3 ")] == [0, 7, 12, 0, 0, 3]
    assert (ask("p", "w16", 16, None).text, ask("p", "w16", 16, 5).finish) == ("", "stop")
    assert ask("p", "", 16, 3).finish == "length"


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_our_adapters_understand_it(dialect: str, path: str) -> None:
    """Whole and streamed, with the usage that was asked for, and an end that is told."""
    from backends.api import Call
    from backends.body import Body

    adapter = load(dialect)
    raw = json.dumps({**chat("a b"), "prompt": "a b", "stream": True, "stream_options": {"include_usage": True}})
    call = Call("1", path.removeprefix("/v1/"), "fake", Body(raw.encode()), stream=True)  # type: ignore[arg-type]
    opener = getattr(adapter, "open", None)
    reader = adapter if opener is None else opener(call)
    answer = post(server(dialect), path, raw.encode())
    chunks = [chunk for step in answer.steps if isinstance(step, bytes) for chunk in reader.chunk(call, step)]
    assert chunks[-1].done and any(chunk.finished for chunk in chunks)
    assert [chunk.usage for chunk in chunks if chunk.usage] == [Usage(2, 5)]
    plain = post(server(dialect), path, json.dumps({**chat("a b"), "prompt": "a b"}).encode())
    assert adapter.reply(call, plain.body).usage == Usage(2, 5)


def test_vllm_tells_an_end_by_the_limit_with_the_last_word() -> None:
    *_, last = events(post(server("vllm"), CHAT, chat("Hi", stream=True, max_tokens=2)))
    assert last["choices"][0]["delta"]["content"] == " w2" and last["choices"][0]["finish_reason"] == "length"
    *_, last = events(post(server("openai"), CHAT, chat("Hi", stream=True, max_tokens=2)))
    assert (last["choices"][0]["delta"], last["choices"][0]["finish_reason"]) == ({}, "length")


def test_tgi_has_its_quirks() -> None:
    it = server("tgi")
    spoken = events(post(it, CHAT, chat("Hi", stream=True)))
    assert {event["id"] for event in spoken} == {""}
    assert {event["choices"][0]["delta"]["role"] for event in spoken} == {"assistant"}
    spoken = events(post(it, TEXT, {"prompt": "Hi", "stream": True}))
    assert {event["choices"][0]["finish_reason"] for event in spoken[:-1]} == {""}
    assert spoken[-1]["choices"][0]["finish_reason"] == "eos_token" and spoken[-1]["usage"]["completion_tokens"] == 5
    assert post(it, "/v1/embeddings", {"input": "x"}).status == 404
    assert post(it, CHAT, chat("Hi", stop="x")).status == 422
    assert json.loads(get(it, "/info").body)["router"]
    templated = json.loads(post(it, "/chat_tokenize", chat("Hi", "w1")).body)["templated_text"]
    assert templated.index("Hi") < templated.index("w1")


def test_tgi_generates() -> None:
    it = server("tgi")
    whole = post(it, "/generate", {"inputs": "Say: w1", "parameters": {"max_new_tokens": 2, "details": True}})
    said = json.loads(whole.body)
    assert said["generated_text"] == " w2 w3" and said["details"]["finish_reason"] == "length"
    assert ("x-generated-tokens", "2") in whole.headers
    spoken = events(post(it, "/generate_stream", {"inputs": "Say:"}))
    assert "".join(event["token"]["text"] for event in spoken) == " w1 w2 w3 w4 w5" == spoken[-1]["generated_text"]
    assert [event["generated_text"] for event in spoken[:-1]] == [None] * 4
    assert isinstance(json.loads(post(it, "/", {"inputs": "a"}).body), list)


@pytest.mark.parametrize("dialect", ["vllm", "tgi"])
def test_load_is_told(dialect: str) -> None:
    it, adapter = server(dialect), load(dialect)
    it.state.running = 3
    assert isinstance(adapter, Gauged)
    gauges = adapter.gauges(get(it, "/metrics").body.decode())
    assert gauges is not None and (gauges.running, gauges.waiting, gauges.asleep) == (3, 0, False)


def test_vllm_sleeps_and_wakes() -> None:
    it, adapter = server("vllm"), load("vllm")

    def asleep() -> bool:
        gauges = adapter.gauges(get(it, "/metrics").body.decode())
        assert gauges.asleep == json.loads(get(it, "/is_sleeping").body)["is_sleeping"]
        return bool(gauges.asleep)

    assert not asleep()
    assert post(it, "/sleep?level=1", b"").status == 200 and asleep()
    assert post(it, "/wake_up", b"").status == 200 and not asleep()


def test_vllm_tells_what_it_is() -> None:
    it, adapter = server("vllm", models=("a", "b"), context=100), load("vllm")
    facts = adapter.facts({path: get(it, path).body for path in adapter.fact_paths}, "a")
    assert (facts.context, facts.models, facts.version) == (100, ("a", "b"), "0.32.0")
    assert json.loads(post(it, "/tokenize", {"prompt": "one two"}).body)["count"] == 2


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"[]", 400),
        ({"model": "a"}, 400),
        (chat("Hi", model="c"), 404),
        (chat("Hi", stream_options={}), 400),
        (chat("Hi", max_tokens=1000), 400),
        (chat("Hi", continue_final_message=True, add_generation_prompt=True), 400),
    ],
)
def test_vllm_refuses_what_is_wrong(body: Any, status: int) -> None:
    answer = post(server("vllm", models=("a",), context=100), CHAT, body)
    assert answer.status == status == json.loads(answer.body)["error"]["code"]


def test_unknown_paths_and_methods() -> None:
    assert get(server("vllm"), "/nothing").status == 404
    assert get(server("vllm"), CHAT).status == 405


def test_choices_speak_by_turns_and_prompts_each_get_one() -> None:
    spoken = events(post(server("vllm"), CHAT, chat("Hi", n=2, stream=True)))
    assert [event["choices"][0]["index"] for event in spoken] == [0, 1] * 7
    choices = json.loads(post(server("vllm"), TEXT, {"prompt": ["a", "b w4"]}).body)["choices"]
    assert [choice["text"] for choice in choices] == [" w1 w2 w3 w4 w5", " w5"]


@pytest.mark.parametrize("dialect", ["openai", "vllm"])
def test_embeddings(dialect: str) -> None:
    said = json.loads(post(server(dialect), "/v1/embeddings", {"input": ["one two", "three"]}).body)
    assert len(said["data"]) == 2 and said["usage"]["prompt_tokens"] == 3
