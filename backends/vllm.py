"""Adapter for vLLM's OpenAI-compatible server."""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from backends import sse
from backends.api import Call, Chunk, StreamReader
from backends.counters import counted
from backends.openai import OpenAI


class VLLM(OpenAI):
    """vLLM validates calls well and says what is wrong, so nothing is refused on its behalf."""

    probe_path = "/health"
    counters_path = "/metrics"

    def counters(self, text: str) -> tuple[int, int] | None:
        """Summed over engines and models; cached prompt tokens are in the first of them."""
        found = counted(text, "vllm:prompt_tokens_total", "vllm:generation_tokens_total")
        return (found["vllm:prompt_tokens_total"], found["vllm:generation_tokens_total"]) if len(found) == 2 else None

    def check(self, call: Call) -> None:
        pass

    def open(self, call: Call) -> StreamReader:
        fields = call.body.fields
        one_prompt = call.endpoint == "chat/completions" or bytes(fields.get("prompt", b"")).startswith(b'"')
        one_choice = one_prompt and bytes(fields.get("n", b"1")) in (b"1", b"null")
        return _Fingerprinted(self) if one_choice and not call.include_usage else self


class _Stamped(Struct):
    system_fingerprint: Raw = Raw()


class _Fingerprinted:
    """Puts `system_fingerprint` back onto the event that ends the answer.

    vLLM stamps its last event: the usage event where usage was asked for, which the client does not get if only we
    asked. The usage event follows at once, so the end of the answer can wait for it. With n > 1 it would wait for
    other choices, and so the stamp is lost there.
    """

    def __init__(self, adapter: OpenAI) -> None:
        self._adapter = adapter
        self._held: Chunk | None = None

    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        chunks = self._adapter.chunk(call, event)
        if self._held is None:
            if chunks[0].finished:
                self._held, chunks = chunks[0], ()
            return chunks
        held, self._held = self._held, None
        if chunks[0].usage is not None and not chunks[0].data:
            stamp = bytes(msgspec.json.decode(sse.data(event), type=_Stamped).system_fingerprint)
            if stamp and stamp != b"null" and b'"system_fingerprint"' not in held.data:
                end = held.data.rindex(b"}")
                stamped = held.data[:end] + b',"system_fingerprint":' + stamp + held.data[end:]
                held = msgspec.structs.replace(held, data=stamped)
        return (held, *chunks)
