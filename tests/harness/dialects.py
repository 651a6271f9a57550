"""What each kind of server streams, event by event: the same answer in every dialect that the gateway speaks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

Endpoint = Literal["chat/completions", "completions"]
Kind = Literal["role", "text", "finish", "usage", "done"]
ENDPOINTS: tuple[Endpoint, ...] = ("chat/completions", "completions")


class Event(NamedTuple):
    """One event as it is sent; a finishing one may carry text."""

    data: bytes
    kind: Kind
    choice: int = 0
    text: str = ""


def sse(body: object) -> bytes:
    """One event with these data."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class Dialect:
    """OpenAI's own. `opening` is the delta that names the role before there is text; None: there is none."""

    name = "openai"
    opening: dict[str, Any] | None = {"role": "assistant", "content": "", "refusal": None}
    usage_beside: tuple[Endpoint, ...] = ()
    """Endpoints where the usage rides in the finishing event."""

    def joined(self, index: int) -> bool:
        """The reason comes with the last text, not in an event of its own."""
        return False

    def reason(self, endpoint: Endpoint, index: int) -> str:
        return "length" if self.joined(index) else "stop"

    def delta(self, text: str) -> dict[str, Any]:
        return {"content": text} if text else {}

    def choice(self, endpoint: Endpoint, index: int, text: str, reason: str | None) -> dict[str, Any]:
        said = {"delta": self.delta(text)} if endpoint == "chat/completions" else {"text": text}
        return {"index": index, **said, "logprobs": None, "finish_reason": reason}

    def chunk(self, endpoint: Endpoint, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        object = "chat.completion.chunk" if endpoint == "chat/completions" else "text_completion"
        return {"id": "x-1", "object": object, "created": 1, "model": "m", "choices": choices, **more}

    def usage(self, tokens: int) -> dict[str, Any]:
        return {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": 7 + tokens}

    def stream(self, endpoint: Endpoint, words: Sequence[Sequence[str]]) -> list[Event]:
        """The choices' words by turns, the first choice being the first to end; asked to tell the usage, as always."""
        tokens = sum(map(len, words))
        events = list(self._opened(endpoint, len(words)))
        for turn in range(max(map(len, words))):
            for index, said in enumerate(words):
                if turn < len(said):
                    events += self._said(endpoint, index, said[turn], turn == len(said) - 1, tokens)
        if endpoint not in self.usage_beside:
            events.append(Event(sse(self.chunk(endpoint, [], usage=self.usage(tokens))), "usage"))
        return [*events, Event(b"data: [DONE]\n\n", "done")]

    def _opened(self, endpoint: Endpoint, choices: int) -> Iterator[Event]:
        if endpoint == "chat/completions" and self.opening is not None:
            for index in range(choices):
                choice = {**self.choice(endpoint, index, "", None), "delta": self.opening}
                yield Event(sse(self.chunk(endpoint, [choice])), "role", index)

    def _said(self, endpoint: Endpoint, index: int, text: str, last: bool, tokens: int) -> Iterator[Event]:
        beside = {"usage": self.usage(tokens)} if endpoint in self.usage_beside else {}
        reason = self.reason(endpoint, index)
        if last and self.joined(index):
            chunk = self.chunk(endpoint, [self.choice(endpoint, index, text, reason)], **beside)
            yield Event(sse(chunk), "finish", index, text)
            return
        chunk = self.chunk(endpoint, [self.choice(endpoint, index, text, None)])
        yield Event(sse(chunk), "text", index, text)
        if last:
            yield Event(
                sse(self.chunk(endpoint, [self.choice(endpoint, index, "", reason)], **beside)), "finish", index
            )

    def shown(self, events: Sequence[Event], body: bytes, asked: bool) -> None:
        """Assert that this is what a client must get of these events, `asked`: having asked for the usage."""
        assert body == b"".join(event.data for event in events if asked or event.kind != "usage")


class VLLM(Dialect):
    """0.32: the reason comes with the last text ("length") or alone ("stop")."""

    name = "vllm"
    opening = {"role": "assistant", "content": ""}

    def joined(self, index: int) -> bool:
        return index % 2 == 0

    def choice(self, endpoint: Endpoint, index: int, text: str, reason: str | None) -> dict[str, Any]:
        stop = {"stop_reason": None} if reason else {}
        return {**super().choice(endpoint, index, text, reason), **stop, "token_ids": None}


TIMINGS = {"timings": {"cache_n": 24, "prompt_ms": 42.156}}


class LlamaCpp(Dialect):
    """Usage of a completion rides in its last choice."""

    name = "llamacpp"
    opening = {"role": "assistant", "content": None}
    usage_beside = ("completions",)

    def chunk(self, endpoint: Endpoint, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        stamped = {**super().chunk(endpoint, choices), "system_fingerprint": "b0-unknown"}
        return {**stamped, **more, **TIMINGS} if more else stamped

    def shown(self, events: Sequence[Event], body: bytes, asked: bool) -> None:
        """Its timings beside a usage that was not asked for are on the event that ends the answer."""
        if not asked and any(event.kind == "usage" for event in events):
            last = max(at for at, event in enumerate(events) if event.kind == "finish")
            timed = events[last].data[:-3] + b"," + json.dumps(TIMINGS, separators=(",", ":"))[1:].encode() + b"\n\n"
            events = [*events[:last], Event(timed, "finish"), *events[last + 1 :]]
        super().shown(events, body, asked)


class SGLang(Dialect):
    """0.5: null in every field that it knows."""

    name = "sglang"
    opening = {"role": "assistant", "content": "", "reasoning_content": None, "tool_calls": None}

    def delta(self, text: str) -> dict[str, Any]:
        return {"role": None, "content": text or None, "reasoning_content": None, "tool_calls": None}

    def choice(self, endpoint: Endpoint, index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {**super().choice(endpoint, index, text, reason), "matched_stop": 2 if reason else None}

    def chunk(self, endpoint: Endpoint, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {**super().chunk(endpoint, choices), "usage": None, **more}


class TGI(Dialect):
    """3.3: no id, the role in every event, reasons of its own; a completion always tells its usage."""

    name = "tgi"
    opening = None
    usage_beside = ("completions",)

    def joined(self, index: int) -> bool:
        return True

    def reason(self, endpoint: Endpoint, index: int) -> str:
        return "stop_sequence" if endpoint == "chat/completions" else "eos_token"

    def delta(self, text: str) -> dict[str, Any]:
        return {"role": "assistant", "content": text}

    def choice(self, endpoint: Endpoint, index: int, text: str, reason: str | None) -> dict[str, Any]:
        untold = None if endpoint == "chat/completions" else ""
        return super().choice(endpoint, index, text, reason or untold)

    def chunk(self, endpoint: Endpoint, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        untold = {"usage": None} if endpoint == "chat/completions" else {}
        whole = {**super().chunk(endpoint, choices), "id": "", "system_fingerprint": "3.3.6-native"}
        return {**whole, **untold, **more}

    def shown(self, events: Sequence[Event], body: bytes, asked: bool) -> None:
        """An id, OpenAI's reasons, the role once, and the usage in an event of its own; nothing else is changed."""
        *got, done, nothing = body.split(b"\n\n")
        assert (done, nothing) == (b"data: [DONE]", b"")
        found = [json.loads(event.removeprefix(b"data: ")) for event in got]
        assert len({chunk["id"] for chunk in found}) == 1 and found[0]["id"], "one id for all"
        usages = [chunk.pop("usage") for chunk in found if not chunk["choices"]]
        assert bool(usages) == asked
        told = [self._in_openais_words(event.data) for event in events if event.kind in ("text", "finish")]
        for later in told[1:]:
            for choice in later["choices"]:
                choice.get("delta", {}).pop("role", None)
        assert [{**chunk, "id": ""} for chunk in found if chunk["choices"]] == told

    def _in_openais_words(self, data: bytes) -> dict[str, Any]:
        chunk: dict[str, Any] = json.loads(data.removeprefix(b"data: "))
        chunk.pop("usage", None)
        for choice in chunk["choices"]:
            choice["finish_reason"] = "stop" if choice["finish_reason"] else None
        return chunk


DIALECTS: dict[str, Dialect] = {each.name: each for each in (Dialect(), VLLM(), LlamaCpp(), SGLang(), TGI())}


class StreamKind(NamedTuple):
    """One kind of stream: a dialect, an endpoint, and how many choices."""

    dialect: Dialect
    endpoint: Endpoint
    choices: int

    def __str__(self) -> str:
        return f"{self.dialect.name}-{self.endpoint.partition('/')[0]}-{self.choices}"

    def stream(self, words: Sequence[Sequence[str]]) -> list[Event]:
        """What the server sends when its choices say this."""
        return self.dialect.stream(self.endpoint, words[: self.choices])

    def call(self, model: str, **fields: Any) -> dict[str, Any]:
        """A body that asks for such a stream. TGI takes no `n`, but several prompts."""
        asked: dict[str, Any] = {"model": model, "stream": True, **fields}
        if self.endpoint == "chat/completions":
            asked["messages"] = [{"role": "user", "content": "Hi"}]
        else:
            asked["prompt"] = ["a"] * self.choices if self.dialect.name == "tgi" and self.choices > 1 else "a"
        return asked if self.choices == 1 or self.dialect.name == "tgi" else {**asked, "n": self.choices}


EVERY_KIND = [
    StreamKind(dialect, endpoint, choices)
    for dialect in DIALECTS.values()
    for endpoint in ENDPOINTS
    for choices in (1, 2)
    if (dialect.name, endpoint, choices) != ("tgi", "chat/completions", 2)
]
"""All that there is: TGI gives a chat one choice."""
KINDS = [kind for kind in EVERY_KIND if kind.dialect.name in ("openai", "vllm", "tgi")]
"""One for each way through our code: llama.cpp's and SGLang's streams are read by the lines that read OpenAI's."""
