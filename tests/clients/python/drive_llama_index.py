"""`llama-index-llms-openai-like`: chats and completions."""

import openai
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from outcomes import BAD_KEY, KEY, LIMITED_KEY, TOO_LONG, TOOL, URL, case, expect, failing, run
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


def chat(model="native", **more):
    options = {"api_key": KEY, "max_retries": 0, "timeout": 60, "is_chat_model": True, "context_window": 2048, **more}
    return OpenAILike(model=model, api_base=URL + "/v1", **options)


def said(text):
    return [ChatMessage(role="user", content=text)]


def get_weather(city: str) -> str:
    """Tells the weather in a city."""
    return f"Sunny in {city}"


@case("plain", "native", "translated", "tgi")
def plain(model):
    assert chat(model, max_tokens=8).chat(said("Say hello.")).message.content


@case("plain", "completions")
def completions(_):
    assert chat(is_chat_model=False, max_tokens=4).complete("Once upon").text


@case("stream", "native", "tgi")
def stream(model):
    assert [*chat(model, max_tokens=8).stream_chat(said("Say hello."))][-1].message.content


@case("tools", "whole", "stream")
def tools(which):
    model, tool = chat("engine", is_function_calling_model=True), FunctionTool.from_defaults(get_weather)
    if which == "whole":
        answer = model.chat_with_tools([tool], chat_history=said(TOOL))
    else:
        *_, answer = model.stream_chat_with_tools([tool], chat_history=said(TOOL))
    (call,) = model.get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Paris"})
    result = ChatMessage(role="tool", content="Sunny", additional_kwargs={"tool_call_id": call.tool_id})
    again = model.chat_with_tools([tool], chat_history=[*said(TOOL), answer.message, result])
    assert "Sunny" in again.message.content


@case("structured", "tools", "json_schema")
def structured(which):
    if which == "tools":
        model = chat("engine", is_function_calling_model=True)
    else:
        model = chat("native", max_tokens=200, should_use_structured_outputs=True)
    answer = model.as_structured_llm(Person).chat(said("Give a person as JSON."))
    assert answer.raw.name is not None


@case("401")
def bad_key():
    expect(openai.AuthenticationError, lambda: chat(api_key=BAD_KEY).chat(said("Hi")))


@case("404")
def unknown_model():
    expect(openai.NotFoundError, lambda: chat("no-such-model").chat(said("Hi")))


@case("400")
def too_long():
    expect(openai.BadRequestError, lambda: chat().chat(said(TOO_LONG)))


@case("429")
def limited():
    hasty = chat("engine", api_key=LIMITED_KEY)
    hasty.chat(said("Hi"))
    assert expect(openai.RateLimitError, lambda: hasty.chat(said("Hi"))).response.headers["retry-after"]


@case("retry", "503", "429")
def retry(status):
    assert chat("engine", max_retries=3).chat(said(failing(int(status)))).message.content


run("llama-index-llms-openai-like")
