"""`anthropic`: messages."""

import anthropic
from anthropic import Anthropic
from outcomes import BAD_KEY, KEY, LIMITED_KEY, TOO_LONG, TOOL, URL, case, expect, failing, run
from pydantic import BaseModel

ALL = ("native", "translated", "tgi")
SAY = {"max_tokens": 8, "messages": [{"role": "user", "content": "Say hello."}]}
client = Anthropic(base_url=URL, api_key=KEY, max_retries=0, timeout=60)
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"name": "get_weather", "description": "Tells the weather", "input_schema": CITY}


class Person(BaseModel):
    name: str
    age: int


@case("plain", *ALL)
def plain(model):
    answer = client.messages.create(model=model, **SAY)
    assert answer.content[0].text and answer.usage.output_tokens > 0
    assert answer.stop_reason in ("max_tokens", "end_turn"), answer.stop_reason


@case("plain", "bearer")
def bearer(_):
    with Anthropic(base_url=URL, auth_token=KEY, max_retries=0) as other:
        assert other.messages.create(model="native", **SAY).content


@case("stream", *ALL)
def stream(model):
    with client.messages.stream(model=model, **SAY) as events:
        assert "".join(events.text_stream)
        final = events.get_final_message()
    assert final.usage.output_tokens > 0 and final.stop_reason in ("max_tokens", "end_turn")


@case("tools", "engine", "engine stream")
def tools(which):
    asked = [{"role": "user", "content": TOOL}]

    def ask():
        options = {"model": "engine", "max_tokens": 100, "messages": asked, "tools": [WEATHER]}
        if "stream" not in which:
            return client.messages.create(**options)
        with client.messages.stream(**options) as events:
            return events.get_final_message()

    first = ask()
    assert first.stop_reason == "tool_use", first
    (call,) = [block for block in first.content if block.type == "tool_use"]
    assert call.input == {"city": "Paris"}
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Sunny"}
    asked += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    assert "Sunny" in ask().content[0].text


@case("structured", "translated")
def structured(model):
    asked = {"max_tokens": 200, "messages": [{"role": "user", "content": "Give a person as JSON."}]}
    answer = client.messages.parse(model=model, output_format=Person, **asked)
    assert answer.parsed_output.name is not None


@case("plain", "count_tokens")
def count_tokens(_):
    assert client.messages.count_tokens(model="native", messages=SAY["messages"]).input_tokens > 0


@case("401")
def bad_key():
    asked = client.with_options(api_key=BAD_KEY).messages
    expect(anthropic.AuthenticationError, lambda: asked.create(model="native", **SAY), status_code=401)


@case("404")
def unknown_model():
    error = expect(anthropic.NotFoundError, lambda: client.messages.create(model="no-such-model", **SAY))
    assert error.body["error"]["type"] == "not_found_error" and error.request_id


@case("400", *ALL)
def too_long(model):
    asked = {"max_tokens": 8, "messages": [{"role": "user", "content": TOO_LONG}]}
    error = expect(anthropic.BadRequestError, lambda: client.messages.create(model=model, **asked))
    assert error.body["error"]["type"] == "invalid_request_error"


@case("429")
def limited():
    hasty = client.with_options(api_key=LIMITED_KEY)
    hasty.messages.create(model="engine", **SAY)
    error = expect(anthropic.RateLimitError, lambda: hasty.messages.create(model="engine", **SAY))
    assert 0 < int(error.response.headers["retry-after"]) <= 120


@case("retry", "503", "429")
def retry(status):
    patient = client.with_options(max_retries=3)
    asked = {"max_tokens": 8, "messages": [{"role": "user", "content": failing(int(status))}]}
    assert patient.messages.create(model="engine", **asked).content


@case("models")
def models():
    assert [model.id for model in client.models.list()] == ["native", "translated", "tgi", "engine"]


run("anthropic")
