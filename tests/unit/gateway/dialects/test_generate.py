"""TGI's own language, for servers that complete prompts: what they are asked, and what becomes of their answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from harness.captures import GOLDEN, read_capture
from harness.translated import DONE, TARGET, Streamed, a_call, answer, ask, capabilities, cut, stream
from harness.translated import event as chat_event
from hypothesis import given
from hypothesis import strategies as st

from backends.api import RequestRefused, UpstreamFault
from gateway.core.errors import Disconnected, Rejected, UpstreamFailed
from gateway.upstream.failures import worded_refusal

ASKED: dict[str, Any] = {"inputs": "1 + 1", "parameters": {"max_new_tokens": 4}}
DETAILED: dict[str, Any] = {"inputs": "1 + 1", "parameters": {"max_new_tokens": 4, "details": True, "seed": 5}}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
TOLD = {"tokens": [" =", " 2"], "token_logprobs": [-0.5, None], "top_logprobs": [], "text_offset": [0, 2]}


def completion(**parameters: Any) -> dict[str, Any]:
    path, asked = ask("generate", {"inputs": "1 + 1", "parameters": parameters})
    assert path == "/v1/completions"
    return asked


def complete(*choices: dict[str, Any]) -> dict[str, Any]:
    told = [{"index": index, "finish_reason": "length", **choice} for index, choice in enumerate(choices)]
    return {"id": "c", "object": "text_completion", "created": 7, "model": "m", "choices": told, "usage": USAGE}


def event(text: str, finish: str | None = None, **more: Any) -> bytes:
    """One event of a completion's stream."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish, **more}
    return chat_event().replace(b'"choices": []', b'"choices": [' + json.dumps(choice).encode() + b"]")


COUNTED = chat_event(usage=USAGE)
WHOLE = event(" =") + event(" 2\u00e9") + event("", "stop") + COUNTED + DONE


def told(*events: bytes, asked: dict[str, Any] = ASKED, endpoint: str = "generate") -> Streamed:
    return stream(endpoint, {**asked, "stream": True}, [b"".join(events)])


def test_the_least_that_can_be_asked_draws_tokens_to_the_end_of_the_context() -> None:
    path, asked = ask("generate", {"inputs": "x"})
    assert path == "/v1/completions"
    assert asked == {"model": "served/name", "prompt": "x", "max_tokens": None, "temperature": 1.0}


@pytest.mark.parametrize(
    ("parameters", "asked"),
    [
        ({}, {"temperature": 0.0}),
        ({"temperature": 1.0}, {"temperature": 0.0}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"temperature": 0.5}, {"temperature": 0.5}),
        ({"top_p": 0.9, "top_k": 5, "seed": 7}, {"temperature": 1.0, "top_p": 0.9, "top_k": 5, "seed": 7}),
        ({"frequency_penalty": 0.5}, {"temperature": 0.0, "frequency_penalty": 0.5}),
        ({"repetition_penalty": 1.2}, {"temperature": 0.0, "repetition_penalty": 1.2, "repeat_penalty": 1.2}),
        ({"repetition_penalty": 1.0}, {"temperature": 0.0}),
        ({"truncate": 9}, {"temperature": 0.0, "truncate_prompt_tokens": 9}),
        ({"stop": ["\n"]}, {"temperature": 0.0, "stop": ["\n"], "include_stop_str_in_output": True}),
        ({"details": True}, {"temperature": 0.0, "logprobs": 1, "return_token_ids": True}),
        ({"best_of": 2, "do_sample": True}, {"temperature": 1.0, "n": 2, "logprobs": 1}),
        (
            {"grammar": {"type": "json", "value": {"type": "object"}}},
            {
                "temperature": 0.0,
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": {"type": "object"}},
                },
            },
        ),
        (
            {"grammar": {"type": "json_schema", "value": {"name": "n", "schema": {}}}},
            {
                "temperature": 0.0,
                "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}},
            },
        ),
        (
            {"grammar": {"type": "regex", "value": "[0-9]+"}},
            {"temperature": 0.0, "structured_outputs": {"regex": "[0-9]+"}},
        ),
    ],
)
def test_parameters(parameters: dict[str, Any], asked: dict[str, Any]) -> None:
    common = {"model": "served/name", "prompt": "1 + 1", "max_tokens": 4}
    assert completion(max_new_tokens=4, **parameters) == {**common, **asked}


def test_what_clients_say_of_nothing_asks_for_nothing() -> None:
    nulls = dict.fromkeys(
        ("adapter_id", "best_of", "do_sample", "grammar", "repetition_penalty", "seed", "stop", "temperature", "top_k",
         "top_n_tokens", "top_p", "truncate", "typical_p", "frequency_penalty")
    )  # fmt: skip
    asked = completion(max_new_tokens=4, watermark=False, details=False, decoder_input_details=False, **nulls)
    assert asked == {"model": "served/name", "prompt": "1 + 1", "max_tokens": 4, "temperature": 0.0}


@pytest.mark.parametrize(
    ("asked", "param", "named"),
    [
        ({"inputs": None}, "inputs", "inputs"),
        ({"inputs": ["x"]}, "inputs", "text"),
        ({"inputs": "x", "parameters": {"max_new_tokens": "x"}}, "parameters", "max_new_tokens"),
        ({"inputs": "x", "parameters": {"watermark": True}}, "parameters", "watermark"),
        ({"inputs": "x", "parameters": {"typical_p": 0.5}}, "parameters", "typical_p"),
        ({"inputs": "x", "parameters": {"adapter_id": "a"}}, "parameters", "adapter_id"),
        ({"inputs": "x", "parameters": {"decoder_input_details": True}}, "parameters", "decoder_input_details"),
        ({"inputs": "x", "parameters": {"top_n_tokens": 2}}, "parameters", "top_n_tokens"),
        ({"inputs": "x", "parameters": {"grammar": {"type": "ebnf", "value": ""}}}, "parameters", "ebnf"),
        ({"inputs": "x", "parameters": {"best_of": 2}}, "parameters", "best_of"),
        ({"inputs": "x", "stream": True, "parameters": {"best_of": 2, "top_k": 3}}, "parameters", "best_of"),
    ],
)
def test_what_cannot_be_carried_is_refused_by_its_name(asked: dict[str, Any], param: str, named: str) -> None:
    with pytest.raises(RequestRefused, match=named) as refused:
        ask("generate", asked)
    assert refused.value.param == param


def test_a_whole_answer() -> None:
    said = complete({"text": " = 2"})
    assert answer("generate", ASKED, said) == {"generated_text": " = 2"}
    assert answer("generate/root", ASKED, said) == [{"generated_text": "1 + 1 = 2"}]
    shown = {**ASKED, "parameters": {"return_full_text": True}}
    hidden = {**ASKED, "parameters": {"return_full_text": False}}
    assert answer("generate", shown, said) == {"generated_text": "1 + 1 = 2"}
    assert answer("generate/root", hidden, said) == [{"generated_text": " = 2"}]


def test_details_tell_each_token() -> None:
    said = complete(
        {"text": " = 2", "logprobs": TOLD, "token_ids": [7, 8], "finish_reason": "stop", "stop_reason": "2"}
    )
    assert answer("generate", DETAILED, said) == {
        "generated_text": " = 2",
        "details": {
            "finish_reason": "stop_sequence",
            "generated_tokens": 2,
            "seed": 5,
            "prefill": [],
            "tokens": [
                {"id": 7, "text": " =", "logprob": -0.5, "special": False},
                {"id": 8, "text": " 2", "logprob": None, "special": False},
            ],
        },
    }


def test_details_of_a_server_that_does_not_know_ids_are_refused_by_name() -> None:
    for more in ({"logprobs": TOLD}, {"logprobs": None}):
        with pytest.raises(UpstreamFault, match="details") as fault:
            answer("generate", DETAILED, complete({"text": " = 2", **more}))
        assert fault.value.status == 400


def test_the_likeliest_of_several_is_the_answer() -> None:
    asked = {"inputs": "x", "parameters": {"best_of": 2, "do_sample": True}}
    worse = {"text": "worse", "logprobs": {"tokens": ["worse"], "token_logprobs": [-3.0]}, "token_ids": [1]}
    better = {
        "text": "better",
        "logprobs": {"tokens": ["bet", "ter"], "token_logprobs": [-2.0, -2.0]},
        "token_ids": [2, 3],
    }
    assert answer("generate", asked, complete(worse, better)) == {"generated_text": "better"}
    asked["parameters"]["details"] = True  # type: ignore[index]
    details = answer("generate", asked, complete(worse, better))["details"]
    (other,) = details["best_of_sequences"]
    assert details["generated_tokens"] == 2
    assert (other["generated_text"], other["generated_tokens"], other["tokens"][0]["id"]) == ("worse", 1, 1)


def test_what_real_servers_said() -> None:
    llamacpp = read_capture(GOLDEN / "llamacpp" / "llamacpp-completions-batch-logprobs.txt").body
    tokens = answer("generate", DETAILED, llamacpp)["details"]["tokens"]
    assert all(token["id"] > 0 and token["logprob"] < 0 for token in tokens)
    vllm = read_capture(GOLDEN / "vllm" / "vllm-completions.txt").body
    assert set(answer("generate", ASKED, vllm)) == {"generated_text"}
    got = told(read_capture(GOLDEN / "vllm" / "vllm-completions-stream.txt").body)
    assert got.done and got.events[-1][1]["generated_text"] == " Paris.\n\nThe" and len(got.events) == 5


def test_the_events_of_a_stream() -> None:
    token = {"id": -1, "logprob": None, "special": False}
    assert [value for _, value in told(WHOLE).events] == [
        {"index": 1, "token": {**token, "text": " ="}, "generated_text": None, "details": None},
        {"index": 2, "token": {**token, "text": " 2\u00e9"}, "generated_text": None, "details": None},
        {
            "index": 3,
            "token": {**token, "text": "", "special": True},
            "generated_text": " = 2\u00e9",
            "details": None,
        },
    ]
    assert told(WHOLE, endpoint="generate/root").events[-1][1]["generated_text"] == "1 + 1 = 2\u00e9"


def test_details_of_a_stream() -> None:
    both = event(" = 2", "length", logprobs=TOLD, token_ids=[7, 8])
    events = [value for _, value in told(both, COUNTED, DONE, asked=DETAILED).events]
    assert [value["token"]["id"] for value in events] == [7, 8]
    assert events[0]["generated_text"] is None and events[1]["generated_text"] == " = 2"
    assert events[1]["details"] == {"finish_reason": "length", "generated_tokens": 2, "seed": 5, "input_length": 3}


@given(st.lists(st.integers(0, len(WHOLE)), max_size=40))
def test_any_blocks_make_the_same_text(places: list[int]) -> None:
    got = stream("generate", {**ASKED, "stream": True}, cut(WHOLE, places))
    assert got.done and got.data == told(WHOLE).data


@pytest.mark.parametrize(
    ("end", "failure"),
    [
        (b"", Disconnected),
        (DONE, Disconnected),
        (b'data: {"error":{"message":"EngineCore","code":500}}\n\n' + DONE, UpstreamFailed),
        (event("", "abort") + DONE, UpstreamFailed),
        (event("", "stop") + b"data: {", Disconnected),
    ],
)
def test_a_stream_that_ends_badly_has_no_end(end: bytes, failure: type[Exception]) -> None:
    got = told(event(" ="), end)
    assert isinstance(got.failure, failure) and not got.done
    assert [value["generated_text"] for _, value in got.events] == [None]


def test_a_refusal_is_told_in_words() -> None:
    said = b'{"error":{"message":"max_tokens is too large","type":"BadRequestError","param":"max_tokens","code":400}}'
    refused = worded_refusal(a_call("generate", ASKED), TARGET, capabilities("generate"), 400, said)
    assert isinstance(refused, Rejected)
    assert (refused.status, refused.message, refused.body) == (422, "max_tokens is too large", None)
