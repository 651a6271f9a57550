"""Answers of servers, whole and streamed, good and failing: what the conformance suite feeds to an adapter."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from backends.api import DONE, Call, Target, Usage
from backends.body import Body
from backends.endpoints import Endpoint

TARGET: Final = Target("target", "http://target.invalid:8000", "served/name", "the-upstream-credential")
NOT_ANSWERS: Final = (b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"<html>busy</html>", b"[" * 100_000)
NOT_EVENTS: Final = (b"data: nonsense\n\n", b"data: [1]\n\n", b'data: {"choices": 3\n\n')


class Sample(Struct, frozen=True, kw_only=True):
    """One answer of a server, whole or streamed, and what an adapter must make of it."""

    name: str
    asked: bytes
    """The client's request body; its `stream` says which kind of answer this is."""
    answered: bytes
    """The server's body, byte for byte. A stream is one that was asked to tell its usage, if the server can."""
    endpoint: Endpoint = "chat/completions"
    usage: Usage | None = None
    fault: int | None = None
    """The answer tells of a failure, which deserves this status."""
    unchanged: bool = True
    """A client that asks for usage gets exactly these bytes."""

    def call(self, *, include_usage: bool = False) -> Call:
        body = Body(self.asked)
        model, stream = body.get("model", str, "m"), body.get("stream", bool, False)
        return Call("call-1", self.endpoint, model, body, "application/json", stream, include_usage)


def stream(*events: str, done: bool = True) -> bytes:
    """A stream of these JSON events."""
    return b"".join(b"data: " + event.encode() + b"\n\n" for event in events) + DONE * done


_HEAD = '"id":"x-1","object":"chat.completion.chunk","created":1,"model":"served/name"'
_USAGE = '"usage":{"prompt_tokens":25,"total_tokens":33,"completion_tokens":8'
_COUNTED = Usage(25, 8)
_ASKED = (
    b'{"model": "public", "messages": [{"role": "user", "content": "Hi \\ud83d\\ude00 \xc3\xa9"}], "temperature": 0.70'
)
_STREAMED = _ASKED + b', "stream": true, "stream_options": {"include_usage": true}}'
_PROMPT = b'{"model": "public", "prompt": "Once", "stream": true, "stream_options": {"include_usage": true}}'
_ERROR = '{"error": {"message": "The engine died", "type": "InternalServerError", "param": null, "code": 500}}'


def _delta(delta: str, finish: str = "null", index: int = 0) -> str:
    return f'{{{_HEAD},"choices":[{{"index":{index},"delta":{{{delta}}},"x_new":[],"finish_reason":{finish}}}]}}'


_ENDED = f'{{{_HEAD},"choices":[],{_USAGE}}},"timings":{{"ms":1.50}}}}'

OPENAI: Final = (
    Sample(
        name="chat",
        asked=_ASKED + b"}",
        answered=b'{"id":"x-1","object":"chat.completion","x_new":{"a":1.50},"error":null,"choices":[{"index":0,"message":'
        b'{"role":"assistant","content":"\\u00e9 \xc3\xa9"},"finish_reason":"stop"}],'
        + _USAGE.encode()
        + b',"prompt_tokens_details":{"cached_tokens":24}}}\n',
        usage=Usage(25, 8, 24),
    ),
    Sample(
        name="chat without usage",
        asked=_ASKED + b"}",
        answered=b'{"id":"x-1","choices":[{"index":0,"message":{"role":"assistant","content":null},"finish_reason":"stop"}]}',
    ),
    Sample(
        name="chat with null usage",
        asked=_ASKED + b"}",
        answered=b'{"choices":[{"index":0,"message":{"content":"x"},"finish_reason":"length"}],"usage":null,"error":null}',
    ),
    Sample(name="chat failed", asked=_ASKED + b"}", answered=_ERROR.encode(), fault=500),
    Sample(
        name="chat stream",
        asked=_STREAMED,
        answered=stream(
            _delta('"role":"assistant","content":""'), _delta('"content":"\\u00e9 é"'), _delta("", '"stop"'), _ENDED
        ),
        usage=_COUNTED,
    ),
    Sample(
        name="chat stream, finished with its last token",
        asked=_STREAMED,
        answered=stream(_delta('"content":"a"'), _delta('"content":"b"', '"length"'), _ENDED),
        usage=_COUNTED,
    ),
    Sample(
        name="chat stream of two choices",
        asked=_STREAMED,
        answered=stream(
            _delta('"content":"a"'),
            _delta('"content":"b"', index=1),
            _delta("", '"stop"', 1),
            _delta("", '"stop"'),
            _ENDED,
        ),
        usage=_COUNTED,
    ),
    Sample(
        name="chat stream of a tool call",
        asked=_STREAMED,
        answered=stream(
            _delta('"tool_calls":[{"id":"t","type":"function","index":0,"function":{"name":"f"}}]'),
            _delta('"content":null,"tool_calls":[{"index":0,"function":{"arguments":"\\"Paris\\""}}]'),
            _delta("", '"tool_calls"'),
            _ENDED,
        ),
        usage=_COUNTED,
    ),
    Sample(
        name="chat stream without usage",
        asked=_STREAMED,
        answered=stream(_delta('"content":"a"'), _delta("", '"stop"')),
    ),
    Sample(
        name="chat stream failed on its way",
        asked=_STREAMED,
        answered=stream(_delta('"content":"a"'), _delta('"content":"b"'), _ERROR),
        fault=500,
    ),
    Sample(
        name="chat stream refused in its first event",
        asked=_STREAMED,
        answered=stream('{"error":{"message":"too long","http_status_code":422}}'),
        fault=422,
    ),
    Sample(
        name="completion",
        endpoint="completions",
        asked=b'{"model": "public", "prompt": ["Once"], "max_tokens": 5}',
        answered=f'{{"choices":[{{"text":" upon","index":0,"finish_reason":"length"}}],{_USAGE}}}}}'.encode(),
        usage=_COUNTED,
    ),
    Sample(
        name="completion stream with usage in its last choice",
        endpoint="completions",
        asked=_PROMPT,
        answered=stream(
            '{"choices":[{"text":" upon","index":0,"finish_reason":null}]}',
            f'{{"choices":[{{"text":"","index":0,"finish_reason":"length"}}],{_USAGE}}}}}',
        ),
        usage=_COUNTED,
    ),
    Sample(
        name="embeddings",
        endpoint="embeddings",
        asked=b'{"model": "public", "input": ["a", "b"]}',
        answered=b'{"object":"list","data":[{"index":0,"embedding":[-0.0240643080323934560,1e-3]}],'
        b'"usage":{"prompt_tokens":4,"total_tokens":4,"completion_tokens":0,"prompt_tokens_details":null}}',
        usage=Usage(4, 0),
    ),
)
"""In OpenAI's language, with fields no adapter knows."""
