"""What became of a call, and whether that may be."""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple

from harness.verdicts import Untrue, heard
from soak.calls import Made, Plan

Ending = Literal["answered", "refused", "error status", "error event", "left", "cut with a worker", "WRONG"]


class Verdict(NamedTuple):
    """How a call ended; `why` it is wrong, if it is. `tokens` are those that its answer says it took."""

    ending: Ending
    why: str = ""
    tokens: int = 0


def judge(plan: Plan, call: Made, *, left: bool, excused: bool) -> Verdict:
    """`left`: its client did not wait for the end. `excused`: a process of the gateway was killed under it."""
    if left:
        return Verdict("left")
    try:
        return _ended(plan, call)
    except Untrue as untrue:
        if excused and not call.whole:
            return Verdict("cut with a worker")
        return Verdict("WRONG", f"{plan.kind}: {untrue}"[:400])


def _ended(plan: Plan, call: Made) -> Verdict:
    if call.refused:
        raise Untrue("its connection was refused or reset before it could be sent")
    if not call.end.done():
        raise Untrue(f"it has no end: {_shown(call)}")
    if call.status == 200 and not plan.answered and plan.way == "never reads":
        return Verdict("answered" if call.whole else "refused")  # it was cut off: the gateway's answer to that
    if call.status == 200 and plan.answered:
        return _streamed(plan, call) if plan.stream else _whole(plan, call)
    if call.status not in plan.statuses:
        raise Untrue(f"status {call.status}: {_shown(call)}")
    if call.status:
        _error(call)
    if not plan.answered or call.status in (401, 429):
        return Verdict("refused")
    return Verdict("error status")


def _streamed(plan: Plan, call: Made) -> Verdict:
    try:
        found = heard(_unchunked(call).replace(b"\r\n", b"\n").replace(b"\r", b"\n"))  # a line may end in any of them
    except ValueError:
        raise Untrue(f"no JSON in an event: {_shown(call)}") from None
    text = found.texts.get(0, "")
    if plan.truth is not None and not plan.truth.startswith(text):
        raise Untrue(f"the text {text[-80:]!r} was never said")
    if found.error is not None:
        if found.done:
            raise Untrue("an error, and [DONE]")
        return Verdict("error event")
    if not found.done or not call.whole:
        raise Untrue(f"SILENT TRUNCATION: no [DONE], no error, whole {call.whole}: {_shown(call)}")
    if plan.truth is not None and (text != plan.truth or 0 not in found.reasons):
        raise Untrue(f"SILENT TRUNCATION: [DONE] after {text[-80:]!r}, reasons {found.reasons}")
    return Verdict("answered", tokens=len(text.split()))


def _whole(plan: Plan, call: Made) -> Verdict:
    if not call.whole:
        raise Untrue(f"SILENT TRUNCATION: the connection ended within the body: {_shown(call)}")
    body = json.loads(call.body)
    if plan.truth is None:
        return Verdict("answered")
    choice = body["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    if text != plan.truth:
        raise Untrue(f"SILENT TRUNCATION: {text[-80:]!r} is not the answer")
    return Verdict("answered", tokens=body["usage"]["total_tokens"])


def _error(call: Made) -> None:
    """An error that an SDK reads."""
    if not call.body and "content-type" not in call.headers:
        return  # the server refused the head, before there was a call
    try:
        error: dict[str, Any] = json.loads(call.body)["error"]
        assert error["message"]
    except (ValueError, KeyError, TypeError, AssertionError):
        raise Untrue(f"no error that an SDK reads: {_shown(call)}") from None


def _unchunked(call: Made) -> bytes:
    """The body without its framing, as far as it came. Raises `Untrue` if that is broken."""
    if "chunked" not in call.headers.get("transfer-encoding", ""):
        return call.body
    rest, pieces = call.body, []
    while rest:
        line, mark, rest = rest.partition(b"\r\n")
        try:
            size = int(line, 16)
        except ValueError:
            raise Untrue(f"broken framing: {line[:40]!r}") from None
        if not size or not mark or len(rest) < size:
            break
        pieces.append(rest[:size])
        rest = rest[size + 2 :]
    return b"".join(pieces)


def _shown(call: Made) -> str:
    return f"{call.headers.get('x-trunkline-target', '')} {bytes(call.seen[-160:])!r}"
