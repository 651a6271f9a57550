"""The official `openai` package against a gateway with a real model behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from harness.gateway_process import GatewayProcess
from harness.lazily import Lazily

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletionMessageParam
else:
    openai = Lazily("openai")

MODEL = "smollm2-135m"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def token(embedded: GatewayProcess) -> str:
    return embedded.issue().secret


@pytest.fixture(scope="module")
def client(embedded: GatewayProcess, token: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=embedded.url + "/v1", api_key=token, max_retries=0, timeout=30) as opened:
        yield opened


def test_a_whole_answer(client: openai.OpenAI) -> None:
    done = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8, temperature=0)
    assert done.choices[0].message.content
    assert done.choices[0].finish_reason in ("length", "stop")
    assert done.usage is not None
    assert 0 < done.usage.completion_tokens <= 8
    assert done._request_id is not None
    assert done._request_id.startswith("tl-")


def test_a_stream(client: openai.OpenAI) -> None:
    options = {"model": MODEL, "messages": MESSAGES, "max_tokens": 8, "temperature": 0}
    whole = client.chat.completions.create(**options)  # type: ignore[call-overload]
    with client.chat.completions.create(**options, stream=True) as stream:  # type: ignore[call-overload]
        events = list(stream)
    said = "".join(event.choices[0].delta.content or "" for event in events)
    assert said == whole.choices[0].message.content
    assert all(event.usage is None for event in events)
    assert events[-1].choices[0].finish_reason in ("length", "stop")


def test_a_stream_that_tells_its_usage(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=8, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *_, last = stream
    assert last.usage is not None
    assert last.usage.prompt_tokens > 0


def test_completions(client: openai.OpenAI) -> None:
    assert client.completions.create(model=MODEL, prompt="Once upon", max_tokens=4).choices[0].text
    with client.completions.create(model=MODEL, prompt="Once upon", max_tokens=4, stream=True) as stream:
        assert "".join(event.choices[0].text for event in stream)


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(client: openai.OpenAI, encoding: str) -> None:
    given = ["hello", "world"]
    found = client.embeddings.create(model=MODEL, input=given, encoding_format=encoding)  # type: ignore[arg-type]
    assert len(found.data) == 2
    assert found.usage.prompt_tokens > 0
    assert len(found.data[0].embedding) > 100


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL, "demo/smollm2:135m"]
    assert client.models.retrieve(MODEL).id == MODEL
    assert client.models.retrieve("demo/smollm2:135m").id == "demo/smollm2:135m"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such:model")


def test_async_calls_at_once(embedded: GatewayProcess, token: str) -> None:
    async def session() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=embedded.url + "/v1", api_key=token, max_retries=0, timeout=40
        ) as client:

            async def whole() -> str:
                done = await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4)
                return done.choices[0].message.content or ""

            async def streamed() -> str:
                stream = await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=4, stream=True)
                async with stream:
                    return "".join([event.choices[0].delta.content or "" async for event in stream])

            return await asyncio.gather(whole(), streamed(), whole(), streamed())

    assert all(asyncio.run(session()))


def test_what_the_model_server_refuses_is_told(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a " * 20_000}])
    assert "context" in refused.value.message


def test_leaving_a_stream_of_the_real_model(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=2000, stream=True)
    next(iter(stream))
    stream.close()
    assert client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=1).choices
