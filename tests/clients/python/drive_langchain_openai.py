"""`langchain-openai`: chats, chats by way of responses, embeddings."""

import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from outcomes import BAD_KEY, KEY, LIMITED_KEY, TOO_LONG, TOOL, URL, case, expect, failing, run
from pydantic import BaseModel


class Person(BaseModel):
    name: str
    age: int


def chat(model="native", **more):
    options = {"api_key": KEY, "max_retries": 0, "timeout": 60, "temperature": 0, **more}
    return ChatOpenAI(model=model, base_url=URL + "/v1", **options)


def get_weather(city: str) -> str:
    """Tells the weather in a city."""
    return f"Sunny in {city}"


@case("plain", "native", "tgi", "responses")
def plain(which):
    if which == "responses":
        answer = chat("translated", use_responses_api=True, max_tokens=16).invoke("Say hello.")
    else:
        answer = chat(which, max_tokens=8).invoke("Say hello.")
    assert answer.text and answer.usage_metadata["output_tokens"] > 0


@case("stream", "native", "tgi", "responses")
def stream(which):
    if which == "responses":
        model = chat("translated", use_responses_api=True, max_tokens=16)
    else:
        model = chat(which, max_tokens=8, stream_usage=True)
    whole = None
    for piece in model.stream("Say hello."):
        whole = piece if whole is None else whole + piece
    assert whole.text and whole.usage_metadata["output_tokens"] > 0


@case("tools", "chat", "responses", "stream")
def tools(which):
    model = chat("engine", use_responses_api=which == "responses").bind_tools([get_weather])
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


@case("structured", "json_schema", "function_calling", "json_schema tgi")
def structured(which):
    way, _, model = which.partition(" ")
    model = chat("engine" if way == "function_calling" else model or "native", max_tokens=200)
    assert model.with_structured_output(Person, method=way).invoke("Give a person as JSON.").name is not None


@case("embeddings")
def embeddings():
    maker = OpenAIEmbeddings(model="native", base_url=URL + "/v1", api_key=KEY, check_embedding_ctx_length=False)
    assert len(maker.embed_documents(["hello", "world"])) == 2


@case("401")
def bad_key():
    expect(openai.AuthenticationError, lambda: chat(api_key=BAD_KEY).invoke("Hi"))


@case("404")
def unknown_model():
    expect(openai.NotFoundError, lambda: chat("no-such-model").invoke("Hi"))


@case("400")
def too_long():
    expect(openai.BadRequestError, lambda: chat().invoke(TOO_LONG))


@case("429")
def limited():
    hasty = chat("engine", api_key=LIMITED_KEY)
    hasty.invoke("Hi")
    assert expect(openai.RateLimitError, lambda: hasty.invoke("Hi")).response.headers["retry-after"]


@case("retry", "503", "429")
def retry(status):
    assert chat("engine", max_retries=3).invoke(failing(int(status))).text


run("langchain-openai")
