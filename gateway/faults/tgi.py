"""The TGI dialect of the fake backend, as version 3.3 speaks it: its own routes, and its nearly OpenAI-like ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from gateway.faults.answer import Answer, event, stream, whole
from gateway.faults.openai import OpenAI, Refusal, Served, State
from gateway.faults.wire import HttpRequest
from gateway.faults.words import Ask, ask, text_of

_REASONS = {"stop": "eos_token", "length": "length"}
_KINDS = {422: "validation", 424: "generation", 429: "overloaded", 500: "incomplete_generation", 503: "healthcheck"}


class TGI(OpenAI):
    """Ids are empty, each event has a role, errors in OpenAI-like streams are always 422; no embeddings."""

    name: ClassVar[str] = "tgi"

    def __init__(self, served: Served, state: State) -> None:
        super().__init__(served, state)
        del self.calls["/v1/embeddings"]
        self.calls |= {"/generate": self.generate, "/generate_stream": self.generate_stream, "/": self.either}
        self.routes |= {
            ("GET", "/"): lambda _: whole(b""),
            ("GET", "/ping"): lambda _: whole(b""),
            ("GET", "/info"): self.info,
            ("GET", "/metrics"): self.metrics,
            ("POST", "/tokenize"): self.tokenize,
            ("POST", "/chat_tokenize"): self.chat_tokenize,
        }

    def no_route(self, status: int) -> Answer:
        return whole(b"", status, "text/plain")

    def error_body(self, status: int, message: str, param: str | None = None) -> dict[str, Any]:
        return {"error": message, "error_type": _KINDS.get(status, "validation" if status < 500 else _KINDS[500])}

    def error_event(self, status: int, message: str) -> bytes:
        return event({"error": {"message": message, "http_status_code": 422}})

    def check(self, body: dict[str, Any]) -> None:
        """The model is never wrong: an unknown one would be taken for a LoRA adapter."""
        if isinstance(body.get("stop"), str) or body.get("top_p") == 1:
            raise Refusal(422, "Failed to deserialize the JSON body into the target type: stop or top_p")
        if "stream_options" in body and body["stream_options"] is None:
            raise Refusal(422, "Failed to deserialize the JSON body into the target type: stream_options")

    def model(self, body: dict[str, Any]) -> str:
        return (self.served.models or ("fake",))[0]

    def count(self, body: dict[str, Any]) -> int:
        return 1

    def stamp(self, body: dict[str, Any], kind: str) -> dict[str, Any]:
        stamped = super().stamp(body, kind)
        return {**stamped, "id": "", "created": 1, "system_fingerprint": "3.3.7-fake"}

    def choice(self, kind: str, index: int, asked: Ask) -> dict[str, Any]:
        chosen = super().choice(kind, index, asked)
        return chosen if kind == "chat" else {**chosen, "finish_reason": _REASONS[asked.finish]}

    def events(
        self, body: dict[str, Any], kind: str, head: dict[str, Any], asked: list[Ask], usage: dict[str, int]
    ) -> Iterator[bytes]:
        """Completions tell their usage whether asked or not."""
        more = {"usage": usage} if kind != "chat" else {}
        *pieces, last = super().events(body, kind, head, asked, usage)
        if more and pieces and b'"choices":[]' in pieces[-1]:
            pieces.pop()
        if more:
            pieces[-1] = event({**head, "choices": [self._end(kind, asked[-1])], **more})
        yield from (*pieces, last)

    def pieces(self, kind: str, asked: list[Ask]) -> Iterator[dict[str, Any]]:
        for token in asked[0].tokens():
            said = {"delta": {"role": "assistant", "content": token}} if kind == "chat" else {"text": token}
            yield {"index": 0, **said, "logprobs": None, "finish_reason": None if kind == "chat" else ""}
        yield self._end(kind, asked[0])

    def _end(self, kind: str, asked: Ask) -> dict[str, Any]:
        said = {"delta": {"role": "assistant", "content": ""}} if kind == "chat" else {"text": ""}
        reason = asked.finish if kind == "chat" else _REASONS[asked.finish]
        return {"index": 0, **said, "logprobs": None, "finish_reason": reason}

    def either(self, request: HttpRequest) -> Answer:
        body = self.body(request)
        return self.generate_stream(request) if body.get("stream") is True else self.generate(request, listed=True)

    def generate(self, request: HttpRequest, *, listed: bool = False) -> Answer:
        asked, wanted = self._inputs(request)
        said: dict[str, Any] = {"generated_text": asked.text}
        if wanted.get("details"):
            said["details"] = {**self._details(asked), "prefill": [], "tokens": list(self._tokens(asked))}
        answer = whole([said] if listed else said)
        answer.tokens = asked.count
        answer.headers += [("x-prompt-tokens", str(self.size(asked.prompt))), ("x-generated-tokens", str(asked.count))]
        return answer

    def generate_stream(self, request: HttpRequest) -> Answer:
        asked, wanted = self._inputs(request)
        tokens = list(self._tokens(asked)) or [{"id": 0, "text": "", "logprob": 0.0, "special": True}]
        events = [event({"index": index + 1, "token": token, "generated_text": None, "details": None})
                  for index, token in enumerate(tokens)]  # fmt: skip
        details = {**self._details(asked), "input_length": self.size(asked.prompt)} if wanted.get("details") else None
        end = {"index": len(tokens), "token": tokens[-1], "generated_text": asked.text, "details": details}
        answer = stream([*events[:-1], event(end)])
        answer.tokens = asked.count
        answer.interval = self.served.interval
        return answer

    def _inputs(self, request: HttpRequest) -> tuple[Ask, dict[str, Any]]:
        body = self.body(request)
        prompt, wanted = body.get("inputs"), body.get("parameters")
        if not isinstance(prompt, str):
            raise Refusal(422, "Input validation error: `inputs` must be a text")
        wanted = wanted if isinstance(wanted, dict) else {}
        limit = wanted.get("max_new_tokens")
        asked = ask(prompt, prompt, self.served.tokens, limit if isinstance(limit, int) else None)
        self.state.prompt_tokens += self.size(asked.prompt)
        return asked, wanted

    def _tokens(self, asked: Ask) -> Iterator[dict[str, Any]]:
        for number, text in enumerate(asked.tokens(), asked.first):
            yield {"id": number, "text": text, "logprob": 0.0, "special": False}

    def _details(self, asked: Ask) -> dict[str, Any]:
        return {"finish_reason": _REASONS[asked.finish], "generated_tokens": asked.count, "seed": None}

    def is_continued(self, body: dict[str, Any]) -> bool:
        """A last message that is the assistant's is gone on with."""
        messages = body.get("messages")
        last = messages[-1] if isinstance(messages, list) and messages else None
        return isinstance(last, dict) and last.get("role") == "assistant"

    def info(self, _: HttpRequest) -> Answer:
        context = self.served.context
        return whole({
            "model_id": (self.served.models or ("fake",))[0], "model_sha": None,
            "model_pipeline_tag": "text-generation",
            "max_concurrent_requests": 128, "max_best_of": 1, "max_stop_sequences": 4, "max_input_tokens": context - 1,
            "max_total_tokens": context, "validation_workers": 1, "max_client_batch_size": 4,
            "router": "text-generation-router", "version": "3.3.7", "sha": None, "docker_label": None,
        })  # fmt: skip

    def metrics(self, _: HttpRequest) -> Answer:
        state = self.state
        lines = (
            "tgi_queue_size 0",
            f"tgi_batch_current_size {state.running}",
            f"tgi_request_count {state.calls}",
            f"tgi_request_input_length_sum {state.prompt_tokens}",
            f"tgi_request_generated_tokens_sum {state.completion_tokens}\n",
        )
        return whole("\n".join(lines).encode(), content_type="text/plain")

    def tokenize(self, request: HttpRequest) -> Answer:
        return whole(_spans(text_of(self.body(request).get("inputs"))))

    def chat_tokenize(self, request: HttpRequest) -> Answer:
        messages = self.body(request).get("messages")
        texts = [text_of(each.get("content")) for each in messages or () if isinstance(each, dict)]
        text = "".join(f"{each}\n" for each in texts)
        return whole({"tokenize_response": _spans(text), "templated_text": text})


def _spans(text: str) -> list[dict[str, Any]]:
    found, at = [], 0
    for number, word in enumerate(text.split()):
        start = text.index(word, at)
        at = start + len(word)
        found.append({"id": number, "text": word, "start": start, "stop": at})
    return found
