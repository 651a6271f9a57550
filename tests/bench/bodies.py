"""What it costs to read a body for limits, routing and an adapter; and how long a hostile one holds others up."""

from __future__ import annotations

import time
from contextlib import suppress

import msgspec

from backends import large
from backends.api import Target
from backends.body import Malformed
from backends.openai import OpenAI
from gateway.http.client import read
from gateway.limits import Estimator
from gateway.routing import features

CALLS = 2_000
MIB = 1024**2
ELEMENTS = 200_000
TARGET = Target("target", "http://target.invalid", "served/name")
TEXT = b"The quick brown fox jumps over the lazy dog. "


def chat(size: int) -> bytes:
    """A streamed chat of about so many bytes."""
    messages = [{"role": "system", "content": "You are terse."}]
    turns = range(max(1, size // 540))
    messages += [{"role": ("user", "assistant")[turn % 2], "content": "words " * min(83, size // 20)} for turn in turns]
    return msgspec.json.encode(
        {"model": "m", "messages": messages, "stream": True, "max_tokens": 100, "temperature": 0.5, "top_p": 1}
    )


def reading_us(size: int) -> float:
    """CPU microseconds for the whole reading of a chat, and for the body that is sent on."""
    raw, estimator, adapter = chat(size), Estimator(), OpenAI()
    started = time.process_time()
    for _ in range(CALLS):
        call = read("c", "chat/completions", raw, b"application/json")
        estimator.estimate(call, "key", "route")
        features.read(call, {}, model="m", tenant="t", tokens=100)
        adapter.request(call, TARGET)
    return (time.process_time() - started) / CALLS * 1e6


def corpus(size: int) -> dict[str, bytes]:
    """Bodies of about so many bytes: a benign one first, and those that would take a decoder long."""

    def body(start: bytes, piece: bytes, end: bytes, comma: bytes = b",") -> bytes:
        return start + comma.join([piece] * (size // (len(piece) + len(comma)))) + end

    def say(piece: bytes) -> bytes:
        return body(b'{"model":"m","messages":[{"role":"user","content":"', piece, b'"}]}', b"")

    return {
        "text": say(TEXT),
        "quoted data": say(b'\\"data:'),
        "backslashes": say(b"\\\\"),
        "escaped characters": say(b"\\u4e00"),
        "tiny objects": body(b'{"model":"m","messages":[],"junk":[', b'{"":0}', b"]}"),
        "tiny messages": body(b'{"model":"m","messages":[', b'{"role":"user","content":"a"}', b"]}"),
        "keys": b"{" + b",".join(b'"%07d":1' % index for index in range(size // 12)) + b"}",
        "nested": body(b'{"model":"m","junk":[', b"[" * 400 + b"]" * 400, b"]}"),
        "token ids": body(b'{"model":"m","prompt":[', b"1", b"]}"),
        "space": body(b'{"model":"m","messages":[]', b" ", b"}", b""),
    }


def longest_ms(raw: bytes) -> float:
    """CPU milliseconds of the longest step of its reading, between which others work."""
    started, most = time.thread_time(), 0.0
    large.is_large(raw, ELEMENTS)
    steps = large.read("chat/completions", raw, ELEMENTS)
    with suppress(StopIteration, Malformed):
        while True:
            next(steps)
            most, started = max(most, time.thread_time() - started), time.thread_time()
    return max(most, time.thread_time() - started) * 1e3


def worst_step(size: int = 19 * MIB) -> float:
    """The longest step of any hostile body, by that of a benign one."""
    steps = {name: min(longest_ms(raw) for _ in range(3)) for name, raw in corpus(size).items()}
    benign = steps.pop("text")
    return max(steps.values()) / benign


if __name__ == "__main__":
    for count in (500, 8 * 1024, 64 * 1024):
        print(f"reading {count:6} bytes: {reading_us(count):6.1f} us")
    for name, raw in corpus(19 * MIB).items():
        print(f"{name:20} {min(longest_ms(raw) for _ in range(3)):6.2f} ms")
