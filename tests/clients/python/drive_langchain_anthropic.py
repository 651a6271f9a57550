"""`langchain-anthropic`: messages."""

import anthropic
from langchain_anthropic import ChatAnthropic
from outcomes import BAD_KEY, KEY, LIMITED_KEY, TOO_LONG, TOOL, URL, case, expect, failing, run
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


def chat(model="native", **more):
    options = {"api_key": KEY, "max_retries": 0, "timeout": 60, "max_tokens": 16, **more}
    return ChatAnthropic(model=model, base_url=URL, **options)


def get_weather(city: str) -> str:
    """Tells the weather in a city."""
    return f"Sunny in {city}"


@case("plain", "native", "translated", "tgi")
def plain(model):
    answer = chat(model).invoke("Say hello.")
    assert answer.text and answer.usage_metadata["output_tokens"] > 0


@case("stream", "native", "translated", "tgi")
def stream(model):
    whole = None
    for piece in chat(model).stream("Say hello."):
        whole = piece if whole is None else whole + piece
    assert whole.text and whole.usage_metadata["output_tokens"] > 0


@case("tools", "whole", "stream")
def tools(which):
    model = chat("engine").bind_tools([get_weather])
    asked = [("user", TOOL)]
    if which == "stream":
        first = None
        for piece in model.stream(asked):
            first = piece if first is None else first + piece
    else:
        first = model.invoke(asked)
    (call,) = first.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    result = {"role": "tool", "tool_call_id": call["id"], "content": get_weather(**call["args"])}
    assert "Sunny in Paris" in model.invoke([*asked, first, result]).text


@case("structured", "tools", "json_schema")
def structured(which):
    way = {"tools": ("function_calling", "engine"), "json_schema": ("json_schema", "translated")}[which]
    model = chat(way[1], max_tokens=200).with_structured_output(Person, method=way[0])
    assert model.invoke("Give a person as JSON.").name is not None


@case("401")
def bad_key():
    expect(anthropic.AuthenticationError, lambda: chat(api_key=BAD_KEY).invoke("Hi"))


@case("404")
def unknown_model():
    expect(anthropic.NotFoundError, lambda: chat("no-such-model").invoke("Hi"))


@case("400")
def too_long():
    expect(anthropic.BadRequestError, lambda: chat().invoke(TOO_LONG))


@case("429")
def limited():
    hasty = chat("engine", api_key=LIMITED_KEY)
    hasty.invoke("Hi")
    assert expect(anthropic.RateLimitError, lambda: hasty.invoke("Hi")).response.headers["retry-after"]


@case("retry", "503", "429")
def retry(status):
    assert chat("engine", max_retries=3).invoke(failing(int(status))).text


run("langchain-anthropic")
