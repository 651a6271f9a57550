"""A model server that tells one story, goes on wherever a call's last words end, and breaks off when it is told to."""

from __future__ import annotations

from typing import Any

from harness.upstream import DONE, Act, Received, Script, Step, Upstream, event, stream, usage_event

PROMPT = 9
"""Tokens of every call's own prompt."""


class Teller:
    """A target whose every answer is `story`, in pieces of `size` characters, a token each.

    `breaks` says, call by call, after how many pieces the answer breaks off, and how. It `opens` a chat with its role
    alone, as vLLM does and TGI does not.
    """

    def __init__(self, upstream: Upstream, name: str, story: str, size: int = 4, *, opens: bool = True) -> None:
        self.name, self.story, self.size, self.opens = name, story, size, opens
        self.target = upstream.target(name)
        self.target.restore()
        self.breaks: list[tuple[int, Step]] = []
        self.target.answers = self._answers  # type: ignore[method-assign]

    @property
    def calls(self) -> list[Received]:
        return self.target.calls

    def _answers(self, received: Received) -> Script:
        if received.method == "GET":
            return stream()
        self.target.calls.append(received)
        asked = received.json()
        chats = "messages" in asked
        said = self._said(asked)
        pieces = [self.story[i : i + self.size] for i in range(len(said), len(self.story), self.size)]
        bound = asked.get("max_tokens") or asked.get("max_completion_tokens") or len(pieces)
        reason = "stop" if bound >= len(pieces) else "length"
        pieces = pieces[:bound]
        told = {"id": f"{self.name}-{len(self.calls)}", "created": len(self.calls), "model": f"at-{self.name}"}
        begun = [event(choices=[choice(role="assistant", content="")], **told)] if chats and self.opens else []
        steps = [*begun, *(event(choices=[piece(each, chats=chats)], **told) for each in pieces)]
        if self.breaks:
            count, how = self.breaks.pop(0)
            return stream(*steps[: count + len(begun)], how, end=isinstance(how, bytes))
        steps.append(event(choices=[piece("", chats=chats, finish=reason)], **told))
        tokens = PROMPT + -(-len(said) // self.size)
        return stream(*steps, _named(usage_event(tokens, len(pieces)), told), DONE)

    def _said(self, asked: dict[str, Any]) -> str:
        """How far the story has been told already."""
        if "messages" not in asked:
            return str(asked["prompt"]).partition("Tell:")[2]
        last = asked["messages"][-1]
        said = last["content"] if last["role"] == "assistant" else ""
        assert self.story.startswith(said), said
        return str(said)


def choice(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "finish_reason": finish}


def piece(text: str, *, chats: bool, finish: str | None = None) -> dict[str, Any]:
    """A choice with some text, in the words of the endpoint."""
    return choice(finish, content=text) if chats else {"index": 0, "text": text, "finish_reason": finish}


def _named(usage: bytes, told: dict[str, Any]) -> bytes:
    return usage.replace(b'"c-1"', b'"%b"' % str(told["id"]).encode())


BREAKS: dict[str, Step] = {
    "cut": Act.CUT,
    "reset": Act.RESET,
    "stall": Act.STALL,
    "error event": b'data: {"error": {"message": "EngineCore died", "code": 500}}\n\n' + DONE,
    "nonsense": b'data: {"choices": [nonsense\n\n',
}
