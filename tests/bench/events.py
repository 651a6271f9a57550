"""What it costs to read the events of a paced stream, and how much more where each of them tells the usage so far."""

from __future__ import annotations

import json
import time
from typing import Any

from backends.api import DONE, Call
from backends.body import Body
from backends.capabilities import Capabilities
from backends.vllm import VLLM
from gateway.upstream.reading import AnswerLimits, AnswerMemory, reader_for

STREAMS, EVENTS = 100, 64
MIB = 1024**2
CALL = Call("c", "chat/completions", "m", Body(b'{"model":"m","messages":[],"stream":true}'), stream=True)


def _event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    told = {"id": "chatcmpl-877570a849720caa", "object": "chat.completion.chunk", "created": 1795346716, "model": "m"}
    return b"data: " + json.dumps({**told, "choices": choices, **more}, separators=(",", ":")).encode() + b"\n\n"


def stream(*, continuous: bool) -> list[bytes]:
    """The events as vLLM sends them, one by one."""

    def usage(made: int) -> dict[str, Any]:
        return {"prompt_tokens": 214, "total_tokens": 214 + made, "completion_tokens": made}

    def piece(made: int, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": {"content": " the"}, "logprobs": None, "finish_reason": finish}
        return _event([choice], **({"usage": usage(made)} if continuous else {}))

    pieces = [piece(made) for made in range(1, EVENTS)]
    return [*pieces, piece(EVENTS, "stop"), _event([], usage=usage(EVENTS)), DONE]


def reading_us(*, continuous: bool) -> float:
    """CPU microseconds for an event that comes alone; `continuous`: it tells the usage, which is hidden again."""
    events, capabilities, limits, memory = (
        stream(continuous=continuous),
        Capabilities.of(VLLM()),
        AnswerLimits(MIB, MIB),
        AnswerMemory(MIB),
    )
    started = time.process_time()
    for _ in range(STREAMS):
        reader = reader_for(CALL, capabilities, "text/event-stream", limits, memory, continuous=continuous)
        for event in events:
            reader.feed(event)
        if not reader.done:
            raise RuntimeError(f"the stream did not end: {reader.failure}")
    return (time.process_time() - started) / STREAMS / len(events) * 1e6
