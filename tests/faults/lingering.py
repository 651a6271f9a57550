"""Targets that take their time at every step of an answer, so that somebody may leave at any."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator

from harness.upstream import DONE, Received, Script, Upstream, answer, event, head, stream, usage_event, whole
from integration.engine import Pause


def prepare(upstream: Upstream, names: Iterable[str], chance: random.Random) -> dict[str, Received]:
    """Have every target take its time, and "flaky" fail every other call; the calls that come, by their texts."""
    calls: dict[str, Received] = {}
    for name in names:
        target = upstream.target(f"leave-{name}")
        target.restore()
        turns = iter(range(10**9))

        def answers(received: Received, name: str = name, turns: Iterator[int] = turns) -> Script:
            if received.method == "GET":
                return whole({})
            asked = received.json()
            text = asked.get("prompt") or asked.get("input") or asked["messages"][0]["content"]
            calls[text] = received
            if name == "flaky" and next(turns) % 2:
                return [Pause(chance.uniform(0, 0.02)), *whole({}, 500)]
            return script(received.path, bool(asked.get("stream")), chance)

        target.answers = answers  # type: ignore[method-assign]
    return calls


def script(path: str, streamed: bool, chance: random.Random) -> Script:
    """An answer that takes up to a fifth of a second, at every point of which somebody may leave."""
    if not streamed:
        body = {"data": [], "usage": {"prompt_tokens": 5}} if path.endswith("embeddings") else answer()
        start = head(content_type="application/json", content_length=len(raw := json.dumps(body).encode()))
        return [Pause(chance.uniform(0, 0.1)), start, raw[:9], Pause(chance.uniform(0, 0.1)), raw[9:]]
    chat = "chat" in path
    token = event("word ") if chat else said("word ")
    last = [event(finish="stop"), usage_event(5, 30)] if chat else [said("", "stop"), usage_event(5, 30)]
    tokens = [step for _ in range(30) for step in (token, Pause(0.003))]
    opening, *rest = stream(Pause(chance.uniform(0, 0.05)), *tokens, *last, DONE)
    return [Pause(chance.uniform(0, 0.05)), opening, *rest]


def said(text: str, finish: str | None = None) -> bytes:
    """An event of a completion."""
    return b"data: " + json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": finish}]}).encode() + b"\n\n"
