"""Drives a server with the `text-generation` client, in an environment of its own, and prints what it saw."""

import asyncio
import json
import os
import sys
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

warnings.filterwarnings("ignore", category=DeprecationWarning)  # the package declares itself deprecated on import

from text_generation import AsyncClient  # noqa: E402

prompt = "The capital of France is"


def client(fault: str = "") -> AsyncClient:
    # Its default of 10 s is for the whole call, too short for a busy machine.
    key = os.environ.get("TGI_KEY")
    headers = {"x-fault": fault, "authorization": f"Bearer {key}" if key else ""}
    return AsyncClient(sys.argv[1], headers={name: text for name, text in headers.items() if text}, timeout=40)


async def plain() -> Any:
    return (await client().generate(prompt, max_new_tokens=4)).generated_text


async def details() -> Any:
    answer = await client().generate(prompt, max_new_tokens=4, decoder_input_details=True, top_n_tokens=2)
    found = answer.details
    return {
        "finish_reason": found.finish_reason.value,
        "generated_tokens": found.generated_tokens,
        "prefill": len(found.prefill),
        "tokens": "".join(token.text for token in found.tokens),
        "top_tokens": len(found.top_tokens or []),
    }


async def best_of() -> Any:
    answer = await client().generate(prompt, max_new_tokens=4, best_of=2, do_sample=True)
    return len(answer.details.best_of_sequences or [])


async def streamed(fault: str = "", **parameters: Any) -> Any:
    responses = client(fault).generate_stream(prompt, **{"max_new_tokens": 4, **parameters})
    seen = [response async for response in responses]
    last = seen[-1]
    assert last.details is not None
    return {
        "tokens": "".join(response.token.text for response in seen),
        "generated_text": last.generated_text,
        "finish_reason": last.details.finish_reason.value,
        "generated_tokens": last.details.generated_tokens,
    }


async def chat() -> Any:
    answer = await client().chat([{"role": "user", "content": "Say hi."}], max_tokens=4, temperature=0.5)
    return {"finish_reason": answer.choices[0].finish_reason, "content": answer.choices[0].message.content}


async def whole(fault: str = "", **parameters: Any) -> Any:
    return (await client(fault).generate(prompt, **{"max_new_tokens": 4, **parameters})).generated_text


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
        "invalid": lambda: whole(max_new_tokens=10_000_000),
        "invalid streamed": lambda: streamed(max_new_tokens=10_000_000),
    }
    if "--faults" in sys.argv:
        scenarios |= {
            "overloaded": lambda: whole("overload"),
            "overloaded streamed": lambda: streamed("overload"),
            "failing": lambda: whole("generation-error-mid-stream"),
            "failing streamed": lambda: streamed("generation-error-mid-stream"),
            "incomplete": lambda: whole("incomplete"),
            "incomplete streamed": lambda: streamed("incomplete"),
        }
    print(json.dumps({name: await attempt(scenario) for name, scenario in scenarios.items()}))


asyncio.run(main())
