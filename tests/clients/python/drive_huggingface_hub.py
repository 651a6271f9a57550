"""`huggingface_hub`'s inference client: generation as at a TGI, and chats."""

import json
import os

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError, UnknownError, ValidationError
from outcomes import BAD_KEY, KEY, LIMITED_KEY, TOOL, URL, case, expect, run

KEYS = {"tgi": os.environ["GATEWAY_TGI_KEY"], "llama.cpp": KEY}
PROMPT = "The capital of France is"
CITY = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Tells it", "parameters": CITY}}


def generator(key=KEY):
    return InferenceClient(URL, token=key, timeout=60)


def chat(key=KEY):
    return InferenceClient(base_url=URL + "/v1", api_key=key, timeout=60).chat.completions


@case("plain", *KEYS)
def plain(which):
    assert generator(KEYS[which]).text_generation(PROMPT, max_new_tokens=4)


@case("stream", *KEYS)
def stream(which):
    asked = {"max_new_tokens": 4, "stream": True, "details": True}
    client = generator(KEYS[which])  # it must outlive its stream
    seen = list(client.text_generation(PROMPT, **asked))
    assert seen[-1].details.generated_tokens == 4 and "".join(each.token.text for each in seen)


@case("plain", "chat native", "chat tgi")
def chat_plain(which):
    asked = [{"role": "user", "content": "Say hello."}]
    assert chat().create(model=which.split()[1], messages=asked, max_tokens=4).choices[0].message.content


@case("stream", "chat native", "chat tgi")
def chat_stream(which):
    asked = [{"role": "user", "content": "Say hello."}]
    client = InferenceClient(base_url=URL + "/v1", api_key=KEY, timeout=60)  # it must outlive its stream
    events = list(client.chat.completions.create(model=which.split()[1], messages=asked, max_tokens=4, stream=True))
    assert "".join(event.choices[0].delta.content or "" for event in events if event.choices)


@case("tools", "engine")
def tools(model):
    answer = chat().create(model=model, messages=[{"role": "user", "content": TOOL}], tools=[WEATHER])
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"


@case("structured", *KEYS)
def structured(which):
    grammar = {"type": "json", "value": CITY}
    asked = generator(KEYS[which])
    answer = asked.text_generation("A city as JSON:", max_new_tokens=60, grammar=grammar)
    assert json.loads(answer.removeprefix("A city as JSON:"))["city"] in ("Paris", "Rome")


@case("400", *KEYS)
def invalid(which):
    expect(ValidationError, lambda: generator(KEYS[which]).text_generation("word " * 20_000, max_new_tokens=4))


@case("401")
def bad_key():
    error = expect(UnknownError, lambda: generator(BAD_KEY).text_generation(PROMPT))  # it knows TGI's words only
    assert "key" in str(error)
    asked = [{"role": "user", "content": "Hi"}]
    error = expect(HfHubHTTPError, lambda: chat(BAD_KEY).create(model="native", messages=asked))
    assert error.response.status_code == 401


@case("404")
def unknown_model():
    asked = [{"role": "user", "content": "Hi"}]
    error = expect(HfHubHTTPError, lambda: chat().create(model="no-such-model", messages=asked))
    assert error.response.status_code == 404


@case("429")
def limited():
    asked = generator(LIMITED_KEY)
    asked.text_generation(PROMPT, max_new_tokens=4)
    expect(UnknownError, lambda: asked.text_generation(PROMPT, max_new_tokens=4))


run("huggingface_hub")
