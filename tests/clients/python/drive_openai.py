"""`openai`: chats, responses, completions and embeddings."""

import json

import openai
from openai import OpenAI
from outcomes import BAD_KEY, KEY, LIMITED_KEY, TOO_LONG, TOOL, URL, case, expect, failing, run
from pydantic import BaseModel

ALL = ("native", "translated", "tgi")
SAY = [{"role": "user", "content": "Say hello."}]
client = OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0, timeout=60)
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"name": "get_weather", "description": "Tells the weather", "parameters": CITY}


class Person(BaseModel):
    name: str
    age: int


@case("plain", *ALL)
def plain(model):
    answer = client.chat.completions.create(model=model, messages=SAY, max_tokens=8, temperature=0.1)
    assert answer.choices[0].message.content and answer.usage.completion_tokens > 0


@case("stream", *ALL)
def stream(model):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    events = list(client.chat.completions.create(model=model, messages=SAY, max_tokens=8, **options))
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert events[-1].usage.completion_tokens > 0


@case("stream", "helper")
def stream_helper(_):
    with client.chat.completions.stream(model="engine", messages=SAY) as events:
        kinds = {event.type for event in events}
        assert {"chunk", "content.delta", "content.done"} <= kinds, kinds
        assert events.get_final_completion().choices[0].message.content


@case("plain", "completions")
def completions(_):
    assert client.completions.create(model="native", prompt="Once upon", max_tokens=4).choices[0].text


@case("plain", "responses native", "responses translated")
def responses(which):
    answer = client.responses.create(model=which.split()[1], input="Say hello.", max_output_tokens=16)
    assert answer.output_text and answer.usage.output_tokens > 0


@case("stream", "responses native", "responses translated", "responses tgi")
def responses_stream(which):
    with client.responses.stream(model=which.split()[1], input="Say hello.", max_output_tokens=16) as events:
        seen = list(events)
    kinds, last = [event.type for event in seen], seen[-1]
    assert kinds[0] == "response.created" and "response.output_text.delta" in kinds, kinds
    assert last.type in ("response.completed", "response.incomplete"), last
    assert last.response.output_text and last.response.usage.output_tokens > 0


@case("tools", "engine")
def tools(model):
    shown = [{"type": "function", "function": WEATHER}]
    asked = [{"role": "user", "content": TOOL}]
    message = client.chat.completions.create(model=model, messages=asked, tools=shown).choices[0].message
    (call,) = message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    asked += [message, {"role": "tool", "tool_call_id": call.id, "content": "Sunny"}]
    again = client.chat.completions.create(model=model, messages=asked, tools=shown)
    assert "Sunny" in again.choices[0].message.content


@case("tools", "stream engine", "stream tgi")
def tools_stream(which):
    shown = [{"type": "function", "function": {**WEATHER, "strict": True}}]
    asked = {
        "messages": [{"role": "user", "content": TOOL}],
        "tools": shown,
        "tool_choice": "required",
        "temperature": 0,
    }
    with client.chat.completions.stream(model=which.split()[1], max_tokens=200, **asked) as events:
        for _ in events:
            pass
        (call,) = events.get_final_completion().choices[0].message.tool_calls
    assert "city" in json.loads(call.function.arguments) and call.id.count("call") == 1


@case("tools", "responses engine")
def tools_responses(_):
    shown = [{"type": "function", **WEATHER, "strict": True}]
    asked = [{"role": "user", "content": TOOL}]
    first = client.responses.create(model="engine", input=asked, tools=shown)
    (call,) = [item for item in first.output if item.type == "function_call"]
    assert json.loads(call.arguments) == {"city": "Paris"}
    asked += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": "Sunny"}]
    assert "Sunny" in client.responses.create(model="engine", input=asked, tools=shown).output_text


@case("structured", *ALL)
def structured(model):
    asked = [{"role": "user", "content": "Give a person as JSON."}]
    answer = client.chat.completions.parse(
        model=model, messages=asked, response_format=Person, max_tokens=200, temperature=0
    )
    assert answer.choices[0].message.parsed.name is not None


@case("structured", "responses native", "responses translated")
def structured_responses(which):
    asked = {"input": "Give a person as JSON.", "text_format": Person, "max_output_tokens": 200}
    assert client.responses.parse(model=which.split()[1], **asked).output_parsed.name is not None


@case("embeddings", "native", "translated")
def embeddings(model):
    found = client.embeddings.create(model=model, input=["hello", "world"])
    assert len(found.data) == 2 and len(found.data[0].embedding) > 100


@case("401")
def bad_key():
    expect(openai.AuthenticationError, lambda: client.with_options(api_key=BAD_KEY).models.list())


@case("404")
def unknown_model():
    asked = {"messages": SAY, "model": "no-such-model"}
    error = expect(openai.NotFoundError, lambda: client.chat.completions.create(**asked), code="model_not_found")
    assert "no-such-model" in error.message and error.request_id


@case("400", "chat", "responses")
def too_long(which):
    if which == "chat":
        asked = [{"role": "user", "content": TOO_LONG}]
        error = expect(openai.BadRequestError, lambda: client.chat.completions.create(model="native", messages=asked))
    else:
        error = expect(openai.BadRequestError, lambda: client.responses.create(model="native", input=TOO_LONG))
    assert "context" in error.message


@case("429")
def limited():
    asked = {"model": "engine", "messages": SAY}
    hasty = client.with_options(api_key=LIMITED_KEY)
    hasty.chat.completions.create(**asked)
    error = expect(openai.RateLimitError, lambda: hasty.chat.completions.create(**asked))
    assert 0 < int(error.response.headers["retry-after"]) <= 120


@case("retry", "503", "429", "503 responses")
def retry(which):
    status, patient = int(which[:3]), client.with_options(max_retries=3)
    if "responses" in which:
        return patient.responses.create(model="engine", input=failing(status))
    asked = [{"role": "user", "content": failing(status)}]
    assert patient.chat.completions.create(model="engine", messages=asked).choices


@case("models")
def models():
    assert [model.id for model in client.models.list()] == ["native", "translated", "tgi", "engine"]


run("openai")
