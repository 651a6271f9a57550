"""A simulated engine: reads prompts one after another at a fixed rate, and remembers prefixes while there is room."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.simulate.calls import Segment

LEAST_READ = 1
"""Tokens; the last of a prompt is always read, for the answer begins there."""


class PrefixCache:
    """Segments of prompts, the least recently used forgotten first, and of one prompt its end before its beginning."""

    __slots__ = ("_held", "_room")

    def __init__(self, tokens: int) -> None:
        self._room = tokens
        self._held: dict[int, int] = {}  # in the order of use

    def cached(self, segments: Sequence[Segment]) -> int:
        """Tokens at the beginning of the prompt that need not be read."""
        tokens, held = 0, self._held
        for segment, size in segments:
            if segment not in held:
                break
            tokens += size
        return tokens

    def use(self, segments: Sequence[Segment]) -> None:
        """All of the prompt is in the cache now, as far as there is room."""
        held, room = self._held, self._room
        for segment, size in reversed(segments):
            room += held.pop(segment, 0) - size
            held[segment] = size
        while room < 0:
            oldest = next(iter(held))
            room += held.pop(oldest)
        self._room = room


class Replica:
    """One target. As it reads in turn, a call's times are known as soon as it is placed."""

    __slots__ = ("cache", "free_at", "kv_tokens", "name", "rate", "running", "tokens", "weight")

    def __init__(self, name: str, weight: float, rate: float, kv_tokens: int) -> None:
        """`rate` is in prompt tokens a second for a weight of 1; `kv_tokens` is the size of the cache."""
        self.name, self.weight, self.rate, self.kv_tokens = name, weight, rate * weight, kv_tokens
        self.cache = PrefixCache(kv_tokens)
        self.free_at = 0.0
        """When it will have read what it was given, in seconds."""
        self.running = 0
        """Calls it has, also those that wait."""
        self.tokens = 0
        """Prompt tokens of measured calls, cached ones included."""

    def take(self, segments: Sequence[Segment], tokens: int, now: float) -> tuple[float, int]:
        """When the first token of the answer comes, and how many tokens of the prompt were cached."""
        cached = min(self.cache.cached(segments), tokens - LEAST_READ)
        self.cache.use(segments)
        self.free_at = max(now, self.free_at) + (tokens - cached) / self.rate
        self.running += 1
        return self.free_at, cached
