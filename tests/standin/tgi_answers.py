"""Makes the bodies, headers and event streams of TGI's answers out of finished steps."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from standin.tgi_bodies import Parameters
from standin.tgi_errors import TgiError
from standin.tgi_generation import End, Step

compute_type = {"x-compute-type": "gpu+optimized"}
Events = AsyncGenerator[str, None]


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished generation, with its timings in seconds."""

    runs: list[list[Step]]
    characters: int
    total: float
    validation: float
    queue: float
    inference: float

    @property
    def steps(self) -> list[Step]:
        return self.runs[0]

    @property
    def generated(self) -> int:
        return end_of(self.steps).generated_tokens

    def numbers(self) -> dict[str, int]:
        return {
            "x-compute-characters": self.characters,
            "x-total-time": round(self.total * 1000),
            "x-validation-time": round(self.validation * 1000),
            "x-queue-time": round(self.queue * 1000),
            "x-inference-time": round(self.inference * 1000),
            "x-time-per-token": round(self.inference * 1000 / self.generated),
            "x-prompt-tokens": end_of(self.steps).input_length,
            "x-generated-tokens": self.generated,
        }

    def headers(self) -> dict[str, str]:
        numbers = {name: str(value) for name, value in self.numbers().items()}
        return {**compute_type, "x-compute-time": str(self.total), **numbers}


def end_of(steps: list[Step]) -> End:
    end = steps[-1].end
    assert end is not None
    return end


def data(body: Any) -> str:
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


def json_answer(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response(body, status=status, headers=headers, dumps=data)


def openai_error(error: TgiError) -> str:
    """Every failure inside an OpenAI-style stream claims to be a 422, whatever it is."""
    return data({"error": {"message": str(error), "http_status_code": 422}})


def completion_choice(index: int, text: str, reason: str) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}


def details(steps: list[Step], parameters: Parameters) -> dict[str, Any]:
    end = end_of(steps)
    prefill = [{"id": token.id, "text": token.text, "logprob": token.logprob} for token in end.prefill]
    body = {
        "finish_reason": end.finish_reason,
        "generated_tokens": end.generated_tokens,
        "seed": end.seed,
        "prefill": prefill,
        "tokens": [step.token.body() for step in steps],
    }
    if parameters.top_n_tokens:
        body["top_tokens"] = [[top.body() for top in step.top] for step in steps]
    return body


def stream_details(end: End) -> dict[str, Any]:
    return {
        "finish_reason": end.finish_reason,
        "generated_tokens": end.generated_tokens,
        "seed": end.seed,
        "input_length": end.input_length,
    }


async def send(request: web.Request, events: Events, headers: dict[str, str], keepalive: float) -> web.StreamResponse:
    """Answer 200 before anything is known, then send each event, and comments while there is none."""
    response = web.StreamResponse(
        headers={
            "content-type": "text/event-stream",
            "cache-control": "no-cache",
            "x-accel-buffering": "no",
            **compute_type,
            **headers,
        }
    )
    await response.prepare(request)
    async with aclosing(events):
        while True:
            coming = asyncio.ensure_future(anext(events, None))
            try:
                while not (await asyncio.wait({coming}, timeout=keepalive))[0]:
                    await response.write(b":\n\n")
            finally:
                if not coming.done():
                    coming.cancel()
                    with suppress(asyncio.CancelledError):
                        await coming
            event = coming.result()
            if event is None:
                return response
            await response.write(f"data: {event}\n\n".encode())
