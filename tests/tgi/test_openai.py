"""Checks the OpenAI-like routes where TGI departs from OpenAI: what an adapter must rewrite."""

import json
from typing import Any

import pytest

chat_path, completions_path = "/v1/chat/completions", "/v1/completions"
message = {"role": "user", "content": "What is the weather in Paris?"}
city = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
weather = {"type": "function", "function": {"name": "get_weather", "description": "Tell it", "parameters": city}}


def chat(**more: Any) -> dict[str, Any]:
    return {"messages": [message], "max_tokens": 4, "temperature": 0, **more}


async def test_chat_answer(tgi):
    reply = await tgi.post(chat_path, chat())
    body, info = reply.json(), (await tgi.get("/info")).json()
    assert (body["id"], body["object"], body["model"]) == ("", "chat.completion", info["model_id"])
    assert body["system_fingerprint"] == f"{info['version']}-{info['docker_label'] or 'native'}"
    choice = body["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert (choice["finish_reason"], choice["logprobs"]) == ("length", None)
    assert body["usage"]["completion_tokens"] == 4
    assert body["usage"]["total_tokens"] == 4 + int(reply.headers["x-prompt-tokens"])


async def test_chat_stream_names_the_role_in_every_chunk_and_gives_usage_only_when_asked(tgi):
    plain = await tgi.post(chat_path, chat(stream=True))
    *chunks, done = plain.events
    assert done == "[DONE]"
    assert all(chunk["choices"][0]["delta"]["role"] == "assistant" for chunk in chunks)
    assert {(chunk["id"], chunk["object"], chunk["usage"]) for chunk in chunks} == {("", "chat.completion.chunk", None)}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "length"]
    asked = await tgi.post(chat_path, chat(stream=True, stream_options={"include_usage": True}))
    assert asked.events[-2]["choices"] == []
    assert asked.events[-2]["usage"]["completion_tokens"] == 4


async def test_unknown_model_is_an_adapter_and_echoed_in_chat_only(tgi):
    own = (await tgi.get("/info")).json()["model_id"]
    assert (await tgi.post(chat_path, chat(model="tgi"))).json()["model"] == own
    assert (await tgi.post(completions_path, {"prompt": "a", "max_tokens": 1, "model": "tgi"})).json()["model"] == own


@pytest.mark.standin_only
async def test_adapter_name_is_echoed(tgi):
    assert (await tgi.post(chat_path, chat(model="adapter"))).json()["model"] == "adapter"


@pytest.mark.parametrize(
    "more",
    [
        {"stop": "x"},
        {"logit_bias": {"1": 2}},
        {"stream": None},
        {"stream_options": None},
        {"max_completion_tokens": 5},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user"}]},
        {"tools": [{"type": "function", "function": {"name": "bare"}}]},
        {"response_format": {"type": "text"}},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": city}}},
    ],
    ids=lambda more: json.dumps(more)[:40],
)
async def test_openai_forms_it_refuses_in_plain_text(tgi, more):
    reply = await tgi.post(chat_path, chat(**more))
    assert (reply.status, reply.media) == (422, "text/plain")


async def test_a_field_written_twice_is_refused(tgi):
    body = json.dumps(chat()).replace('"max_tokens": 4', '"max_tokens": 4, "max_tokens": 4')
    reply = await tgi.post(chat_path, body)
    assert reply.status == 422
    assert "duplicate field `max_tokens`" in reply.text


async def test_top_p_of_one_is_invalid(tgi):
    reply = await tgi.post(chat_path, chat(top_p=1))
    assert (reply.status, reply.json()["error_type"]) == (422, "validation")


async def test_what_it_ignores_or_takes(tgi):
    content = [{"type": "text", "text": "Say hi."}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": content}]
    body = chat(n=3, user="someone", presence_penalty=0.5, logit_bias=[0.0], messages=messages)
    del body["max_tokens"]
    reply = await tgi.post(chat_path, {**body, "max_completion_tokens": 3, "stop": ["zzz"], "tools": None})
    assert reply.status == 200
    assert len(reply.json()["choices"]) == 1
    assert reply.json()["usage"]["completion_tokens"] <= 3


async def test_presence_penalty_becomes_an_impossible_repetition_penalty(tgi):
    reply = await tgi.post(chat_path, chat(presence_penalty=-2))
    assert reply.json()["error"] == "Input validation error: `repetition_penalty` must be strictly positive"


@pytest.mark.parametrize(
    "form",
    [
        {"type": "json_object", "value": city},
        {"type": "json", "value": city},
        {"type": "json_schema", "value": {"name": "place", "schema": city}},
        {"type": "regex", "value": '\\{"city": "[A-Z][a-z]{2,8}"\\}'},
    ],
    ids=lambda form: form["type"],
)
async def test_response_format_binds_the_answer(tgi, form):
    reply = await tgi.post(chat_path, chat(response_format=form, max_tokens=100))
    content = json.loads(reply.json()["choices"][0]["message"]["content"])
    assert isinstance(content["city"], str)
    assert reply.json()["choices"][0]["finish_reason"] == "stop"


async def test_response_format_and_tools_exclude_each_other(tgi):
    body = chat(tools=[weather], response_format={"type": "json", "value": city})
    for stream in (False, True):
        reply = await tgi.post(chat_path, {**body, "stream": stream})
        assert (reply.status, reply.json()["error_type"]) == (422, "tool_error")


async def test_choice_of_an_unknown_tool_is_an_error(tgi):
    choice = {"type": "function", "function": {"name": "other"}}
    reply = await tgi.post(chat_path, chat(tools=[weather], tool_choice=choice))
    assert reply.status == 422
    assert reply.json() == {"error": "Tool error: Tool with name other not found", "error_type": "tool_error"}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
async def test_forced_tool_call(tgi, choice):
    reply = await tgi.post(chat_path, chat(tools=[weather], tool_choice=choice, max_tokens=200))
    answer = reply.json()["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert answer["message"].get("content") is None
    (call,) = answer["message"]["tool_calls"]
    assert (call["id"], call["type"]) == ("0", "function")
    assert set(call["function"]) == {"name", "description", "arguments"}
    assert (call["function"]["name"], call["function"]["description"]) == ("get_weather", None)
    assert list(json.loads(call["function"]["arguments"])) == ["city"]


async def test_streamed_tool_call_starts_with_its_name_and_has_no_finish_reason(tgi):
    body = chat(tools=[weather], tool_choice="required", max_tokens=200, stream=True)
    reply = await tgi.post(chat_path, {**body, "stream_options": {"include_usage": True}})
    *chunks, last, done = reply.events
    assert done == "[DONE]"
    assert (last["choices"], last["usage"]["completion_tokens"] > 0) == ([], True)
    calls = [chunk["choices"][0]["delta"]["tool_calls"][0] for chunk in chunks]
    assert {(call["index"], call["id"], call["type"]) for call in calls} == {(0, "0", "function")}
    assert [call["function"]["name"] for call in calls] == ["get_weather"] + [None] * (len(calls) - 1)
    assert calls[0]["function"]["arguments"] == "{"
    assert list(json.loads("".join(call["function"]["arguments"] for call in calls))) == ["city"]
    assert {chunk["choices"][0]["finish_reason"] for chunk in chunks} == {None}


async def test_streamed_call_ids_count_on_from_the_conversation(tgi):
    old = {"id": "0", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    past = [{"role": "assistant", "tool_calls": [old]}, {"role": "tool", "content": "sunny", "tool_call_id": "0"}]
    body = chat(
        tools=[weather], tool_choice="required", max_tokens=200, stream=True, messages=[message, *past, message]
    )
    reply = await tgi.post(chat_path, body)
    assert reply.events[0]["choices"][0]["delta"]["tool_calls"][0]["id"] == "1"


@pytest.mark.parametrize("stream", [False, True])
async def test_auto_calls_a_tool_or_answers_again_without(tgi, stream):
    reply = await tgi.post(chat_path, chat(tools=[weather], stream=stream, max_tokens=200))
    assert reply.status == 200
    if stream:
        delta = reply.events[0]["choices"][0]["delta"]
        assert "tool_calls" in delta or "content" in delta
    else:
        answer = reply.json()["choices"][0]["message"]
        assert ("tool_calls" in answer) != (answer.get("content") is not None)


async def test_no_tool_is_called_when_none_may_be(tgi):
    reply = await tgi.post(chat_path, chat(tools=[weather], tool_choice="none"))
    assert "tool_calls" not in reply.json()["choices"][0]["message"]


async def test_content_beside_tool_calls_hides_them(tgi):
    old = {"id": "0", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
    kept, lost = [
        (await tgi.post("/chat_tokenize", {"messages": [message, {"role": "assistant", **extra, "tool_calls": [old]}]}))
        for extra in ({"content": None}, {"content": ""})
    ]
    assert "get_weather" in kept.json()["templated_text"]
    assert "get_weather" not in lost.json()["templated_text"]


async def test_logprobs_have_no_bytes(tgi):
    reply = await tgi.post(chat_path, chat(logprobs=True, top_logprobs=2))
    first = reply.json()["choices"][0]["logprobs"]["content"][0]
    assert set(first) == {"token", "logprob", "top_logprobs"}
    assert set(first["top_logprobs"][0]) == {"token", "logprob"}
    assert len(first["top_logprobs"]) == 2


async def test_chat_tokenize_shows_the_templated_text(tgi):
    body = (await tgi.post("/chat_tokenize", chat())).json()
    assert message["content"] in body["templated_text"]
    assert all(set(token) == {"id", "text", "start", "stop"} for token in body["tokenize_response"])


async def test_completion_answer(tgi):
    body = (await tgi.post(completions_path, {"prompt": "One, two,", "max_tokens": 3, "temperature": 0})).json()
    assert (body["id"], body["object"]) == ("", "text_completion")
    assert set(body["choices"][0]) == {"index", "text", "logprobs", "finish_reason"}
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 3


async def test_completions_of_several_prompts_carry_their_index(tgi):
    reply = await tgi.post(completions_path, {"prompt": ["One, two,", "A, B, C,"], "max_tokens": 2, "temperature": 0})
    body = reply.json()
    assert sorted(choice["index"] for choice in body["choices"]) == [0, 1]
    assert body["usage"]["completion_tokens"] == 4 == int(reply.headers["x-generated-tokens"])


@pytest.mark.parametrize(
    ("more", "kind"),
    [({"suffix": "x"}, "suffix not supported"), ({"prompt": ["x"] * 5}, "batch size exceeded")],
)
async def test_completion_wishes_it_refuses(tgi, more, kind):
    reply = await tgi.post(completions_path, {"prompt": "x", "max_tokens": 2, **more})
    assert (reply.status, reply.json()["error_type"]) == (422, kind)


async def test_completion_stop_must_be_a_list(tgi):
    assert (await tgi.post(completions_path, {"prompt": "x", "max_tokens": 2, "stop": "y"})).status == 422


async def test_completion_stream_has_empty_reasons_and_always_usage(tgi):
    body = {"prompt": "One, two,", "max_tokens": 3, "temperature": 0, "stream": True}
    *chunks, done = (await tgi.post(completions_path, body)).events
    assert done == "[DONE]"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == ["", "", "length"]
    assert ["usage" in chunk for chunk in chunks] == [False, False, True]


async def test_completion_stream_keeps_the_native_reason_that_the_whole_answer_translates(tgi):
    words = (await tgi.post("/chat_tokenize", {"messages": [{"role": "user", "content": "Hi"}]})).json()
    body = {"prompt": words["templated_text"], "max_tokens": 150, "temperature": 0}
    streamed = await tgi.post(completions_path, {**body, "stream": True})
    whole = await tgi.post(completions_path, body)
    native, translated = streamed.events[-2]["choices"][0], whole.json()["choices"][0]
    assert (native["finish_reason"], translated["finish_reason"]) in (("eos_token", "stop"), ("length", "length"))


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ({"inputs": "x", "parameters": {"max_new_tokens": 2}}, "list"),
        ({"messages": [message], "max_tokens": 2}, "chat.completion"),
        ({"prompt": "x", "max_tokens": 2}, "text_completion"),
    ],
)
async def test_invocations_take_any_of_the_three_bodies(tgi, body, shape):
    reply = (await tgi.post("/invocations", body)).json()
    assert shape == ("list" if isinstance(reply, list) else reply["object"])
    refused = await tgi.post("/invocations", {"nothing": 1})
    assert (refused.status, refused.media) == (422, "text/plain")
