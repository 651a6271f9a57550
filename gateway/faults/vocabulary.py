"""The faults, one function each: to add one, write it here. `trunkline fake-backend --list-faults` prints the table."""

from __future__ import annotations

import gzip
import inspect
import zlib
from collections.abc import Callable
from random import Random
from typing import Any, Final

import msgspec
from msgspec import Struct

from gateway.faults import values
from gateway.faults.answer import DONE, Act, Answer, Pause, Refuse
from gateway.faults.openai import OpenAI
from gateway.faults.values import COUNT, EVENTS, SECONDS, SHARE, SIZE, STATUS, Value

MIB: Final = 1024**2


class Spoiled(Struct):
    """What a fault works on: the well answer, the dialect it is in, and chance."""

    answer: Answer
    dialect: OpenAI
    chance: Random


class Fault(Struct, frozen=True):
    """One way to misbehave, as an order may name it."""

    name: str
    value: Value | None
    default: Any
    spoil: Callable[..., None]

    @property
    def usage(self) -> str:
        """How it is written, such as `stall=N`."""
        return self.name if self.value is None else f"{self.name}={self.value.name}"

    @property
    def about(self) -> str:
        """What it does, in a sentence."""
        return " ".join((inspect.getdoc(self.spoil) or "").split())


FAULTS: Final[dict[str, Fault]] = {}


def fault(name: str, value: Value | None = None, default: Any = None) -> Callable[[Callable[..., None]], Fault]:
    """Put a function into the table; without a value in the order it gets `default`."""

    def declare(spoil: Callable[..., None]) -> Fault:
        FAULTS[name] = Fault(name, value, default, spoil)
        return FAULTS[name]

    return declare


@fault("none")
def nothing(_: Spoiled) -> None:
    """Answer well: for a call that is to be spared."""


@fault("refuse", SECONDS, 2.0)
def refuse(call: Spoiled, seconds: float) -> None:
    """Reset the call and stop listening for S seconds: connections are refused."""
    call.answer.before = [Refuse(seconds)]


@fault("hang")
def hang(call: Spoiled) -> None:
    """Take the call and never say a byte."""
    call.answer.before = [Act.STALL]


@fault("late", SECONDS, 1.0)
def late(call: Spoiled, seconds: float) -> None:
    """Wait S seconds before the head of the answer."""
    call.answer.before.append(Pause(seconds))


@fault("stall", EVENTS, 3)
def stall(call: Spoiled, events: int) -> None:
    """Say nothing more after N events (of a whole answer: after its first half), and keep the connection open."""
    call.answer.stop(events, Act.STALL)


@fault("cut", EVENTS, 3)
def cut(call: Spoiled, events: int) -> None:
    """Close the connection after N events (of a whole answer: after its first half)."""
    call.answer.stop(events, Act.CUT)


@fault("reset", EVENTS, 3)
def reset(call: Spoiled, events: int) -> None:
    """Reset the connection after N events (of a whole answer: after its first half); N=0: after the head."""
    call.answer.stop(events, Act.RESET)


@fault("cut_bytes", COUNT, 100)
def cut_bytes(call: Spoiled, size: int) -> None:
    """Close the connection after N bytes of the body."""
    answer = call.answer
    answer.length = None if answer.streamed else len(answer.body)
    kept: list[Any] = []
    for step in answer.steps:
        if isinstance(step, bytes):
            step, size = step[:size], size - len(step)
        kept.append(step)
        if size <= 0:
            break
    answer.steps = [*kept, Act.CUT]


@fault("die", EVENTS, 0)
def die(call: Spoiled, events: int) -> None:
    """End the server's process after N events, as kill -9 does; N=0: before the head."""
    if events:
        call.answer.stop(events, Act.DIE)
    else:
        call.answer.before.append(Act.DIE)


@fault("short", EVENTS, 3)
def short(call: Spoiled, events: int) -> None:
    """End a stream after N events as if it were complete: good HTTP, no finish_reason, no [DONE]."""
    if call.answer.streamed:
        call.answer.steps = call.answer.steps[:events]


@fault("no_done")
def no_done(call: Spoiled) -> None:
    """Leave the stream's last event, [DONE], away."""
    call.answer.steps = [step for step in call.answer.steps if step != DONE]


@fault("no_finish")
def no_finish(call: Spoiled) -> None:
    """Never tell a finish_reason, though [DONE] comes."""

    def change(value: dict[str, Any]) -> None:
        for choice in value.get("choices") or ():
            choice["finish_reason"] = None

    call.answer.edit(change)


@fault("no_usage")
def no_usage(call: Spoiled) -> None:
    """Tell no usage, though it was asked for."""
    call.answer.steps = [step for step in call.answer.steps if not _is_usage(step)]
    call.answer.edit(lambda value: value.pop("usage", None))


@fault("status", STATUS, 500)
def status(call: Spoiled, code: int) -> None:
    """Answer with this HTTP status and an error in the dialect's words."""
    failed = call.dialect.error(code, "The fake backend was told to fail.")
    call.answer.replace(failed.body, code)


@fault("500")
def internal(call: Spoiled) -> None:
    """The same as status=500."""
    status.spoil(call, 500)


@fault("retry_after", values.TEXT, "1")
def retry_after(call: Spoiled, when: str) -> None:
    """A Retry-After header with VALUE, sent as it is, on a 429; after `status=503,` on that one."""
    if call.answer.status == 200:
        status.spoil(call, 429)
    call.answer.headers.append(("retry-after", when))


@fault("flap", SHARE, 0.5)
def flap(call: Spoiled, share: float) -> None:
    """Fail with status 500, with probability P."""
    if call.chance.random() < share:
        status.spoil(call, 500)


@fault("redirect", values.TEXT, "http://127.0.0.1:1/")
def redirect(call: Spoiled, url: str) -> None:
    """Answer 307 and send the caller to URL."""
    call.answer.replace(b"", 307)
    call.answer.headers.append(("location", url))


@fault("error200")
def error200(call: Spoiled) -> None:
    """Status 200, and in it an error: the first event of a stream, or the whole answer."""
    if call.answer.streamed:
        call.answer.steps = [call.dialect.error_event(500, "The fake backend was told to fail."), DONE]
    else:
        call.answer.replace(call.dialect.error(500, "The fake backend was told to fail.").body)


@fault("error_then_done", EVENTS, 3)
def error_then_done(call: Spoiled, events: int) -> None:
    """After N events an error event and then [DONE], as vLLM does when its engine dies."""
    if call.answer.streamed:
        error = call.dialect.error_event(500, "EngineCore encountered an issue.")
        call.answer.steps = [*call.answer.steps[:events], error, DONE]


@fault("html")
def html(call: Spoiled) -> None:
    """Status 200 with a page of HTML, as a proxy in between may answer."""
    call.answer.replace(b"<!doctype html><title>Sign in</title><p>Please sign in.", content_type="text/html")


@fault("invalid_json")
def invalid_json(call: Spoiled) -> None:
    """Status 200 and JSON that stops in the middle, with a content-length that is true."""
    if call.answer.streamed:
        call.answer.insert(1, b'data: {"choices": [{"ind\n\n')
    else:
        call.answer.replace(call.answer.body[: len(call.answer.body) // 2])


@fault("malformed", values.one_of("json", "prefix", "utf8", "bad_utf8", "bom", "crlf", "mixed", "comments"), "json")
def malformed(call: Spoiled, kind: str) -> None:
    """Odd frames in a stream. Broken: json, bad_utf8. Valid though rare: prefix (a field that nobody knows), utf8 (a
    letter split between two packets), bom, crlf, mixed (all line ends), comments."""
    from gateway.faults import frames

    if call.answer.streamed:
        call.answer.steps = frames.KINDS[kind](call.answer.steps)


@fault("huge_line", SIZE, 8 * MIB)
def huge_line(call: Spoiled, size: int) -> None:
    """A line of BYTES bytes in the stream, which never ends before."""
    piece = b"a" * min(size, 65536)
    call.answer.insert(1, b"data: ", *[piece] * (size // len(piece) if piece else 0), b"\n\n")


@fault("trickle", COUNT, 1)
def trickle(call: Spoiled, size: int) -> None:
    """Send the body N bytes at a time, each piece in a packet of its own."""
    pieces: list[Any] = []
    for step in call.answer.steps:
        if isinstance(step, bytes):
            for at in range(0, len(step), max(1, size)):
                pieces += [step[at : at + max(1, size)], Pause(0.0005)]  # the kernel would join them
        else:
            pieces.append(step)
    if not call.answer.streamed and call.answer.length is None:
        call.answer.length = len(call.answer.body)
    call.answer.steps, call.answer.interval = pieces, 0.0


@fault("slow", SECONDS, 0.2)
def slow(call: Spoiled, seconds: float) -> None:
    """Wait S seconds before each event; of a whole answer, before its head."""
    call.answer.interval = seconds
    if not call.answer.streamed:
        late.spoil(call, seconds)


@fault("lie", values.one_of("negative", "huge", "zero", "text", "float"), "negative")
def lie(call: Spoiled, kind: str) -> None:
    """Report a usage that cannot be: negative, huge, zero, text or float numbers."""
    number = {"negative": -5, "huge": 10**15, "zero": 0, "text": "many", "float": 1.5}[kind]

    def change(value: dict[str, Any]) -> None:
        if value.get("usage"):
            value["usage"] = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), number)

    call.answer.edit(change)


@fault("wrong_length", values.INTEGER, 100)
def wrong_length(call: Spoiled, more: int) -> None:
    """A content-length that is N bytes more than what comes (or less: N below 0), then the connection is closed."""
    answer = call.answer
    answer.streamed, answer.length = False, max(0, len(answer.body) + more)
    answer.steps.append(Act.CUT)


@fault("until_close")
def until_close(call: Spoiled) -> None:
    """Neither a length nor chunks: the answer ends where the connection does, so a cut one looks whole to HTTP."""
    call.answer.closes = True


@fault("close_idle", SECONDS, 0.0)
def close_idle(call: Spoiled, seconds: float) -> None:
    """Close the connection S seconds after a good answer without having said so, as if it crossed the next call."""
    call.answer.lonely = seconds


@fault("gzip_bomb", SIZE, 64 * MIB)
def gzip_bomb(call: Spoiled, size: int) -> None:
    """An answer with content-encoding gzip that nobody asked for, good JSON after BYTES bytes of blanks."""
    packer = zlib.compressobj(9, wbits=zlib.MAX_WBITS | 16)
    blanks = (packer.compress(b" " * min(MIB, size - at)) for at in range(0, size, MIB))
    packed = b"".join((*blanks, packer.compress(call.answer.body), packer.flush()))
    call.answer.replace(packed)
    call.answer.headers.append(("content-encoding", "gzip"))


@fault("gzip")
def gzipped(call: Spoiled) -> None:
    """A good answer, but with content-encoding gzip that nobody asked for."""
    call.answer.steps, call.answer.interval = [gzip.compress(call.answer.body)], 0.0
    call.answer.headers.append(("content-encoding", "gzip"))


@fault("headers")
def headers(call: Spoiled) -> None:
    """A good answer with odd headers: cookies, hop-by-hop ones, a second content-type, some of the gateway's own."""
    call.answer.headers += [
        ("set-cookie", "fake=1; Path=/"), ("connection", "x-secret"), ("x-secret", "fake"), ("server", "fake"),
        ("content-type", "text/html"), ("x-request-id", "fake"), ("x-trunkline-target", "fake"),
        ("x-ratelimit-remaining-requests", "-1"), ("retry-after", "1e9"), ("x-long", "a" * 4096), ("x-latin", "\u00e9"),
        ("alt-svc", 'h3=":443"'), ("trailer", "x-late"), ("www-authenticate", "Basic"),
    ]  # fmt: skip


def _is_usage(step: Any) -> bool:
    if not isinstance(step, bytes) or not step.startswith(b"data: {"):
        return False
    seen = msgspec.json.decode(step[6:], type=dict[str, Any])
    return bool(seen.get("usage")) and not seen.get("choices")
