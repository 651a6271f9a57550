"""`pydantic-ai`: agents over chats, responses and messages."""

from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from outcomes import BAD_KEY, KEY, LIMITED_KEY, TOO_LONG, TOOL, URL, case, expect, failing, run
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

WAYS = ("chat", "responses", "messages")
SHORT = {"max_tokens": 16}


class Person(BaseModel):
    name: str
    age: int


def agent(way="chat", model="native", key=KEY, retries=0, **more):
    if way == "messages":
        client = AsyncAnthropic(base_url=URL, api_key=key, max_retries=retries)
        made = AnthropicModel(model, provider=AnthropicProvider(anthropic_client=client))
    else:
        client = AsyncOpenAI(base_url=URL + "/v1", api_key=key, max_retries=retries)
        kind = OpenAIChatModel if way == "chat" else OpenAIResponsesModel
        made = kind(model, provider=OpenAIProvider(openai_client=client))
    return Agent(made, **more)


@case("plain", *WAYS)
def plain(way):
    answer = agent(way, "translated").run_sync("Say hello.", model_settings=SHORT)
    assert answer.output and answer.usage.output_tokens > 0


@case("stream", *WAYS)
def stream(way):
    with agent(way, "translated").run_stream_sync("Say hello.", model_settings=SHORT) as answer:
        assert "".join(answer.stream_text(delta=True))


@case("tools", *WAYS)
def tools(way):
    asked = []

    def get_weather(city: str) -> str:
        """Tells the weather in a city."""
        asked.append(city)
        return "Sunny"

    answer = agent(way, "engine", tools=[get_weather]).run_sync(TOOL)
    assert asked == ["Paris"] and "Sunny" in answer.output


@case("structured", *(f"{way} tool" for way in WAYS), "chat native", "responses native")
def structured(which):
    way, kind = which.split()
    output, model = (ToolOutput(Person), "engine") if kind == "tool" else (NativeOutput(Person), "native")
    made = agent(way, model, output_type=output)
    assert made.run_sync("Give a person.", model_settings={"max_tokens": 200, "temperature": 0}).output.name


@case("401")
def bad_key():
    expect(ModelHTTPError, lambda: agent(key=BAD_KEY).run_sync("Hi"), status_code=401)


@case("404")
def unknown_model():
    expect(ModelHTTPError, lambda: agent(model="no-such-model").run_sync("Hi"), status_code=404)


@case("400")
def too_long():
    expect(ModelHTTPError, lambda: agent().run_sync(TOO_LONG), status_code=400)


@case("429")
def limited():
    agent(model="engine", key=LIMITED_KEY).run_sync("Hi")
    expect(ModelHTTPError, lambda: agent(model="engine", key=LIMITED_KEY).run_sync("Hi"), status_code=429)


@case("retry", "503", "429")
def retry(status):
    assert agent(model="engine", retries=3).run_sync(failing(int(status))).output


run("pydantic-ai-slim")
