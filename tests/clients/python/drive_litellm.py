"""`litellm` as a client: chats, responses, messages, embeddings, rerank's absence."""

import json

import litellm
from outcomes import BAD_KEY, KEY, LIMITED_KEY, TOO_LONG, TOOL, URL, case, expect, failing, run
from pydantic import BaseModel

SAY = [{"role": "user", "content": "Say hello."}]
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Tells it", "parameters": CITY}}
WAYS = ("openai/native", "openai/tgi", "hosted_vllm/native", "anthropic/translated")
litellm.suppress_debug_info = True


class Person(BaseModel):
    name: str
    age: int


def ask(model="openai/native", messages=SAY, **more):
    base = URL if model.startswith("anthropic") else URL + "/v1"
    options = {"api_base": base, "api_key": KEY, "max_retries": 0, "num_retries": 0, "timeout": 60, **more}
    return litellm.completion(model=model, messages=messages, **options)


@case("plain", *WAYS)
def plain(model):
    answer = ask(model, max_tokens=8)
    assert answer.choices[0].message.content and answer.usage.completion_tokens > 0


@case("plain", "responses")
def responses(_):
    options = {"api_base": URL + "/v1", "api_key": KEY, "max_output_tokens": 16}
    assert litellm.responses(model="openai/translated", input="Say hello.", **options).output


@case("stream", *WAYS)
def stream(model):
    pieces = list(ask(model, max_tokens=8, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert litellm.stream_chunk_builder(pieces).usage.completion_tokens > 0


@case("tools", "openai/engine", "anthropic/engine", "openai/engine stream", "anthropic/engine stream")
def tools(which):
    model, _, streamed = which.partition(" ")
    asked = [{"role": "user", "content": TOOL}]
    if streamed:
        first = litellm.stream_chunk_builder(list(ask(model, asked, tools=[WEATHER], max_tokens=100, stream=True)))
    else:
        first = ask(model, asked, tools=[WEATHER], max_tokens=100)
    message = first.choices[0].message
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    asked += [message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "Sunny"}]
    assert "Sunny" in ask(model, asked, tools=[WEATHER], max_tokens=100).choices[0].message.content


@case("structured", "openai/native", "openai/tgi")
def structured(model):
    asked = [{"role": "user", "content": "Give a person as JSON."}]
    answer = ask(model, asked, response_format=Person, max_tokens=200, temperature=0)
    assert Person.model_validate_json(answer.choices[0].message.content)


@case("embeddings")
def embeddings():
    found = litellm.embedding(model="openai/native", input=["a", "b"], api_base=URL + "/v1", api_key=KEY)
    assert len(found.data) == 2


@case("401", "openai/native", "anthropic/native")
def bad_key(model):
    expect(litellm.AuthenticationError, lambda: ask(model, api_key=BAD_KEY))


@case("404", "openai/none", "anthropic/none")
def unknown_model(model):
    expect(litellm.NotFoundError, lambda: ask(model))


@case("400", "openai/native", "anthropic/native")
def too_long(model):
    asked = [{"role": "user", "content": TOO_LONG}]
    expect((litellm.BadRequestError, litellm.ContextWindowExceededError), lambda: ask(model, asked))


@case("429")
def limited():
    ask("openai/engine", api_key=LIMITED_KEY)
    expect(litellm.RateLimitError, lambda: ask("openai/engine", api_key=LIMITED_KEY))


@case("retry", "503", "429")
def retry(status):
    asked = [{"role": "user", "content": failing(int(status))}]
    assert ask("openai/engine", asked, num_retries=3).choices


run("litellm")
