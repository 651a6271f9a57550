"""vLLM's dialect at the pace of an engine: prompts take the time to read them, answers the time to write them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from hashlib import blake2b
from typing import Any, Final

from gateway.faults.answer import Answer
from gateway.faults.engine import Segment, TimedEngine, Work
from gateway.faults.openai import Served, State
from gateway.faults.vllm import VLLM
from gateway.faults.words import Ask

TOKEN: Final = 4
"""Bytes of text that count as a token."""
PIECE: Final = 64
"""Tokens of a block."""
Wait = Callable[[asyncio.Event], Awaitable[None]]
"""Waits for it; raises when the client leaves."""
UNKNOWN: Final = b'"cached_tokens":null'
"""Stands in an answer until the engine has looked into its cache."""


class Turn:
    """One call at the engine, as its connection waits for it."""

    def __init__(self, engine: TimedEngine, prompt: str, answer: int, *, streams: bool) -> None:
        self._engine = engine
        self._news = asyncio.Event()
        self.work = Work(list(segments(prompt)), answer, lambda _: self._news.set(), streams=streams)

    def begin(self) -> None:
        self._engine.add(self.work)

    async def until(self, token: int, wait: Wait) -> None:
        """Return once so many tokens are written, or all."""
        while not self.work.ended and self.work.said < token:
            self._news.clear()
            await wait(self._news)

    def filled(self, data: bytes) -> bytes:
        """A piece of the answer with what is known only now."""
        return data.replace(UNKNOWN, b'"cached_tokens":%d' % (self.work.cached or 0))

    def leave(self) -> None:
        """Nobody waits for it any more."""
        if not self.work.ended:
            self._engine.abort(self.work)


class PacedVLLM(VLLM):
    """Chat and completions take their time; of several prompts or choices, all words are those of one answer."""

    def __init__(self, served: Served, state: State, engine: TimedEngine) -> None:
        super().__init__(served, state)
        self.engine = engine
        self._measured: list[tuple[str, str, float]] = []
        """What the engine told last: one that is stopped tells nothing new."""

    def size(self, text: str) -> int:
        return max(1, -(-len(text.encode(errors="replace")) // TOKEN))

    def say(self, body: dict[str, Any], kind: str, asked: list[Ask]) -> Answer:
        answer = super().say(body, kind, asked)
        answer.turn = Turn(self.engine, asked[0].prompt, answer.tokens, streams=answer.streamed)
        answer.quiet = len(asked) if kind == "chat" else 0
        return answer

    def usage(self, asked: list[Ask]) -> dict[str, Any]:
        return {**super().usage(asked), "prompt_tokens_details": {"cached_tokens": None}}

    def measured(self) -> list[tuple[str, str, float]]:
        if not self.engine.stopped or not self._measured:
            self._measured = self._measure()
        return self._measured

    def _measure(self) -> list[tuple[str, str, float]]:
        engine, asleep = self.engine, self.state.asleep
        blocks = f'block_size="{PIECE}",num_gpu_blocks="{engine.shape.kv_tokens // PIECE}"'
        return [
            *self.awake(),
            ("vllm:num_requests_running", "", engine.running),
            ("vllm:num_requests_waiting", "", self.state.running if asleep else len(engine.waiting)),
            ("vllm:kv_cache_usage_perc", "", min(1.0, engine.cache.kept_tokens / engine.shape.kv_tokens)),
            ("vllm:prompt_tokens_total", "", engine.queried),
            ("vllm:generation_tokens_total", "", engine.written),
            ("vllm:prefix_cache_queries_total", "", engine.queried),
            ("vllm:prefix_cache_hits_total", "", engine.hit),
            ("vllm:iteration_tokens_total_count", "", engine.steps),
            ("vllm:cache_config_info", blocks, 1),
        ]


def segments(prompt: str) -> Iterator[Segment]:
    """The prompt in blocks, each named by a hash of all text up to its end: equal beginnings have equal names."""
    text, digest = prompt.encode(errors="replace") or b" ", b""
    for begin in range(0, len(text), PIECE * TOKEN):
        piece = text[begin : begin + PIECE * TOKEN]
        digest = blake2b(digest + piece, digest_size=8).digest()
        yield int.from_bytes(digest, "big"), -(-len(piece) // TOKEN)
