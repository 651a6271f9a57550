"""Drives a server with huggingface_hub's inference client, in an environment of its own, and prints what it saw."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from huggingface_hub import AsyncInferenceClient

prompt = "The capital of France is"


def client(fault: str = "") -> AsyncInferenceClient:
    headers = {"x-fault": fault} if fault else None
    return AsyncInferenceClient(sys.argv[1], headers=headers, token=os.environ.get("TGI_KEY"), timeout=40)


async def plain(fault: str = "", **parameters: Any) -> Any:
    async with client(fault) as tgi:
        return await tgi.text_generation(prompt, **{"max_new_tokens": 4, **parameters})


async def details() -> Any:
    async with client() as tgi:
        answer = await tgi.text_generation(
            prompt, max_new_tokens=4, details=True, decoder_input_details=True, top_n_tokens=2
        )
    found = answer.details
    assert found is not None
    return {
        "finish_reason": found.finish_reason,
        "generated_tokens": found.generated_tokens,
        "prefill": len(found.prefill),
        "tokens": "".join(token.text for token in found.tokens),
        "top_tokens": len(found.top_tokens or []),
    }


async def best_of() -> Any:
    async with client() as tgi:
        answer = await tgi.text_generation(prompt, max_new_tokens=4, details=True, best_of=2, do_sample=True)
    assert answer.details is not None
    return len(answer.details.best_of_sequences or [])


async def streamed(fault: str = "", **parameters: Any) -> Any:
    # The client must outlive its stream, or reading it fails.
    async with client(fault) as tgi:
        wanted = {"max_new_tokens": 4, **parameters}
        seen = [part async for part in await tgi.text_generation(prompt, details=True, stream=True, **wanted)]
    last = seen[-1]
    assert last.details is not None
    return {
        "tokens": "".join(part.token.text for part in seen),
        "generated_text": last.generated_text,
        "finish_reason": last.details.finish_reason,
        "generated_tokens": last.details.generated_tokens,
    }


async def chat() -> Any:
    async with client() as tgi:
        answer = await tgi.chat_completion([{"role": "user", "content": "Say hi."}], max_tokens=4, temperature=0)
    return {"finish_reason": answer.choices[0].finish_reason, "content": answer.choices[0].message.content}


async def chat_streamed() -> Any:
    async with client() as tgi:
        parts = await tgi.chat_completion(
            [{"role": "user", "content": "Say hi."}],
            max_tokens=4,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        seen = [part async for part in parts]
    return {
        "content": "".join(part.choices[0].delta.content or "" for part in seen if part.choices),
        "finish_reason": seen[-2].choices[0].finish_reason,
        "completion_tokens": seen[-1].usage.completion_tokens,
    }


async def attempt(scenario: Callable[[], Awaitable[Any]]) -> Any:
    try:
        return await scenario()
    except Exception as error:
        return {"error": type(error).__name__, "text": str(error)}


async def main() -> None:
    scenarios: dict[str, Callable[[], Awaitable[Any]]] = {
        "plain": plain,
        "details": details,
        "best of": best_of,
        "streamed": streamed,
        "chat": chat,
        "chat streamed": chat_streamed,
        "invalid": lambda: plain(max_new_tokens=10_000_000),
        "invalid streamed": lambda: streamed(max_new_tokens=10_000_000),
    }
    if "--faults" in sys.argv:
        scenarios |= {
            "overloaded": lambda: plain("overload"),
            "overloaded streamed": lambda: streamed("overload"),
            "failing": lambda: plain("generation-error-mid-stream"),
            "failing streamed": lambda: streamed("generation-error-mid-stream"),
            "incomplete": lambda: plain("incomplete"),
            "incomplete streamed": lambda: streamed("incomplete"),
        }
    print(json.dumps({name: await attempt(scenario) for name, scenario in scenarios.items()}))


asyncio.run(main())
