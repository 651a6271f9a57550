"""The OpenAI dialect of the fake backend, and the base of those that nearly speak it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Final

from msgspec import Struct

from gateway.faults.answer import DONE, Answer, event, stream, whole
from gateway.faults.wire import HttpRequest
from gateway.faults.words import UNBOUNDED, Ask, ask, text_of

Route = Callable[[HttpRequest], Answer]
DIMENSIONS: Final = 8
"""Of an embedding."""


class Served(Struct, frozen=True):
    """What the fake server is asked to be."""

    models: tuple[str, ...] = ()
    """The names it answers to; none: any."""
    tokens: int = 16
    """Words of an answer that nothing cuts."""
    interval: float = 0.0
    """Seconds between two words."""
    context: int = 32_768
    """Tokens of prompt and answer together."""
    wake: float = 0.0
    """Seconds that waking up takes."""


class State(Struct):
    """What the server has done so far, as its metrics tell it."""

    calls: int = 0
    running: int = 0
    aborted: int = 0
    """Calls whose client left."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    started: float = 0.0
    """Seconds of Unix time."""
    asleep_until: float = 0.0
    """On the monotonic clock."""

    @property
    def asleep(self) -> bool:
        return time.monotonic() < self.asleep_until


class Refusal(Exception):
    """The call is wrong: the status, the text and the field that the server names."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param


class OpenAI:
    """Chat, completions and embeddings, whole and streamed. What a call does not say is no trouble."""

    name: ClassVar[str] = "openai"
    continues: ClassVar[bool] = False
    """`continue_final_message` means something."""
    finish_rides: ClassVar[bool] = False
    """An answer cut by its limit says so in the event of its last word."""

    def __init__(self, served: Served, state: State) -> None:
        self.served, self.state = served, state
        self.routes: dict[tuple[str, str], Route] = {
            ("GET", "/v1/models"): self.list_models,
            ("GET", "/health"): lambda _: whole(b""),
        }
        self.calls: dict[str, Route] = {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.completions,
            "/v1/embeddings": self.embeddings,
        }
        """Paths of POST at which a model works: these count as calls, and only they are spoiled by default."""

    def answer(self, request: HttpRequest) -> Answer:
        """What a well server answers."""
        path = request.path.partition("?")[0]
        route = self.calls.get(path) if request.method == "POST" else None
        route = route or self.routes.get((request.method, path))
        if route is None:
            known = path in self.calls or any(path == known for _, known in self.routes)
            return self.no_route(405 if known else 404)
        try:
            return route(request)
        except Refusal as refused:
            return self.error(refused.status, refused.message, refused.param)

    def no_route(self, status: int) -> Answer:
        return self.error(status, "Not Found" if status == 404 else "Method Not Allowed")

    def error(self, status: int, message: str, param: str | None = None) -> Answer:
        """An answer with this error."""
        return whole(self.error_body(status, message, param), status)

    def error_body(self, status: int, message: str, param: str | None = None) -> dict[str, Any]:
        kind = "invalid_request_error" if status < 500 else "server_error"
        return {"error": {"message": message, "type": kind, "param": param, "code": None}}

    def error_event(self, status: int, message: str) -> bytes:
        """The error as an event of a stream."""
        return event(self.error_body(status, message))

    def list_models(self, _: HttpRequest) -> Answer:
        cards = [{"id": name, "object": "model", "created": 1, "owned_by": self.name, **self.card()}
                 for name in self.served.models or ("fake",)]  # fmt: skip
        return whole({"object": "list", "data": cards})

    def card(self) -> dict[str, Any]:
        """What the list of models tells beside the name."""
        return {}

    def chat(self, request: HttpRequest) -> Answer:
        body = self.body(request)
        messages = body.get("messages")
        if not isinstance(messages, list):
            raise Refusal(400, "Field required: messages", "messages")
        texts = [text_of(message.get("content")) for message in messages if isinstance(message, dict)]
        begun = texts[-1] if texts and self.is_continued(body) else ""
        return self.say(body, "chat", [self.asked(body, " ".join(texts), begun)] * self.count(body))

    def is_continued(self, body: dict[str, Any]) -> bool:
        """Whether the answer goes on with the last message."""
        return self.continues and body.get("continue_final_message") is True

    def completions(self, request: HttpRequest) -> Answer:
        body = self.body(request)
        prompt = body.get("prompt")
        if prompt is None:
            raise Refusal(400, "Field required: prompt", "prompt")
        prompts = prompt if isinstance(prompt, list) and any(isinstance(one, str) for one in prompt) else [prompt]
        asked = [self.asked(body, text_of(one), text_of(one)) for one in prompts]
        return self.say(body, "text", [each for each in asked for _ in range(self.count(body))])

    def embeddings(self, request: HttpRequest) -> Answer:
        body = self.body(request)
        given = body.get("input")
        texts = [text_of(each) for each in given] if isinstance(given, list) else [text_of(given)]
        data = [{"object": "embedding", "index": index, "embedding": [len(text) / 1000] * DIMENSIONS}
                for index, text in enumerate(texts)]  # fmt: skip
        used = sum(len(text.split()) for text in texts)
        self.state.prompt_tokens += used
        usage = {"prompt_tokens": used, "total_tokens": used}
        return whole({"object": "list", "model": self.model(body), "data": data, "usage": usage})

    def body(self, request: HttpRequest) -> dict[str, Any]:
        """The request's JSON object. Raises `Refusal`."""
        try:
            body = request.json()
        except (ValueError, RecursionError):
            raise Refusal(400, "The body is no JSON", "body") from None
        if not isinstance(body, dict):
            raise Refusal(400, "The body is no JSON object", "body")
        self.check(body)
        return body

    def check(self, body: dict[str, Any]) -> None:
        """Raises `Refusal` for what this server does not take."""
        model = body.get("model")
        if self.served.models and model is not None and model not in self.served.models:
            raise Refusal(404, f"The model `{model}` does not exist.", "model")

    def model(self, body: dict[str, Any]) -> str:
        """The name in the answer."""
        if self.served.models:
            return self.served.models[0]
        named = body.get("model")
        return named if isinstance(named, str) else "fake"

    def count(self, body: dict[str, Any]) -> int:
        number = body.get("n")
        return number if isinstance(number, int) and 0 < number <= 128 else 1

    def asked(self, body: dict[str, Any], prompt: str, begun: str) -> Ask:
        limits = [body[name] for name in ("max_completion_tokens", "max_tokens") if isinstance(body.get(name), int)]
        endless = bool(limits) and body.get("ignore_eos") is True
        made = ask(prompt, begun, UNBOUNDED if endless else self.served.tokens, limits[0] if limits else None)
        if limits and self.size(prompt) + limits[0] > self.served.context:
            raise Refusal(400, f"This model's maximum context length is {self.served.context} tokens.", "input_tokens")
        return made

    def size(self, text: str) -> int:
        """Tokens of a prompt."""
        return len(text.split())

    def say(self, body: dict[str, Any], kind: str, asked: list[Ask]) -> Answer:
        """The answer that says all this, one choice each."""
        usage = self.usage(asked)
        self.state.prompt_tokens += usage["prompt_tokens"]
        head = self.stamp(body, kind)
        if body.get("stream") is not True:
            choices = [self.choice(kind, index, each) for index, each in enumerate(asked)]
            answer = whole({**head, "choices": choices, "usage": usage})
        else:
            answer = stream(list(self.events(body, kind, head, asked, usage)))
            answer.interval = self.served.interval
        answer.tokens = usage["completion_tokens"]
        return answer

    def usage(self, asked: list[Ask]) -> dict[str, Any]:
        prompt, said = self.size(asked[0].prompt), sum(each.count for each in asked)
        return {"prompt_tokens": prompt, "total_tokens": prompt + said, "completion_tokens": said}

    def stamp(self, body: dict[str, Any], kind: str) -> dict[str, Any]:
        """What all parts of an answer begin with."""
        streamed = body.get("stream") is True
        if kind == "chat":
            word, name = "chatcmpl", "chat.completion.chunk" if streamed else "chat.completion"
        else:
            word, name = "cmpl", "text_completion"
        number = f"{word}-fake-{self.state.calls}"
        return {"id": number, "object": name, "created": int(time.time()), "model": self.model(body)}

    def choice(self, kind: str, index: int, asked: Ask) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": asked.text}} if kind == "chat" else {"text": asked.text}
        return {"index": index, **said, "logprobs": None, "finish_reason": asked.finish}

    def events(
        self, body: dict[str, Any], kind: str, head: dict[str, Any], asked: list[Ask], usage: dict[str, Any]
    ) -> Iterator[bytes]:
        """The events of a stream; several choices say a word each by turns."""
        options = body.get("stream_options")
        options = options if isinstance(options, dict) else {}
        always, prompt, said = options.get("continuous_usage_stats"), usage["prompt_tokens"], [0] * len(asked)
        for choice in self.pieces(kind, asked):
            index = choice["index"]
            said[index] += bool(choice.get("text") or choice.get("delta", {}).get("content"))
            so_far = {"prompt_tokens": prompt, "total_tokens": prompt + said[index], "completion_tokens": said[index]}
            yield event({**head, "choices": [choice], **({"usage": so_far} if always else {})})
        if options.get("include_usage"):
            yield event({**head, "choices": [], "usage": usage})
        yield DONE

    def pieces(self, kind: str, asked: list[Ask]) -> Iterator[dict[str, Any]]:
        if kind == "chat":
            for index in range(len(asked)):
                yield _piece(kind, index, {"role": "assistant", "content": ""})
        for turn in range(max(each.count for each in asked)):
            for index, each in enumerate(asked):
                if turn < each.count:
                    number = each.first + turn
                    text = f"{' ' if turn else each.glue}w{number}"
                    rides = self.finish_rides and number == each.last and each.finish == "length"
                    yield _piece(kind, index, {"content": text}, "length" if rides else None)
        for index, each in enumerate(asked):
            if not (self.finish_rides and each.finish == "length" and each.count):
                yield _piece(kind, index, {}, each.finish)


def _piece(kind: str, index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    said = {"delta": delta} if kind == "chat" else {"text": delta.get("content", "")}
    return {"index": index, **said, "logprobs": None, "finish_reason": finish}
