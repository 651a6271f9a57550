"""What targets' answers mean, and how events that came together become one chunk."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from backends.api import Call, Chunk, UpstreamFault
from backends.body import Body
from backends.capabilities import Capabilities
from backends.openai import OpenAI
from gateway.core.errors import (
    BadReply,
    Rejected,
    UpstreamBusy,
    UpstreamFailed,
)
from gateway.upstream import retry_after
from gateway.upstream.forwarder import fit
from gateway.upstream.http1 import Headers
from gateway.upstream.reading import AnswerMemory, EventReader

CALL = Call("c", "chat/completions", "m", Body(b'{"model":"m","messages":[]}'), stream=True, include_usage=True)


@pytest.mark.parametrize(
    ("headers", "content_type"),
    [
        ([], "application/json"),
        ([(b"content-type", b"text/event-stream; charset=utf-8")], "text/event-stream; charset=utf-8"),
        ([(b"content-encoding", b"Identity")], "application/json"),
        ([(b"content-encoding", b"")], "application/json"),
        ([(b"content-encoding", b"gzip")], None),
        ([(b"content-encoding", b"br"), (b"content-type", b"text/event-stream")], None),
        ([(b"content-type", b"text/\xe4")], None),
    ],
)
def test_which_heads_are_fit_to_be_passed_on(headers: list[tuple[bytes, bytes]], content_type: str | None) -> None:
    if content_type is not None:
        assert fit(Headers(headers)) == content_type
        return
    with pytest.raises(BadReply):
        fit(Headers(headers))


@pytest.mark.parametrize(
    ("status", "ours"),
    [
        (400, Rejected),
        (404, Rejected),
        (422, Rejected),
        (401, UpstreamFailed),
        (403, UpstreamFailed),
        (408, UpstreamFailed),
        (429, UpstreamBusy),
        (500, UpstreamFailed),
        (502, UpstreamFailed),
        (503, UpstreamBusy),
        (599, UpstreamFailed),
    ],
)
def test_a_fault_in_a_good_answer_is_blamed_by_its_status(status: int, ours: type[Exception]) -> None:
    class Faulty(OpenAI):
        def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
            raise UpstreamFault(status, "said", param="p")

    reader = EventReader(CALL, Capabilities.of(Faulty()), 1000, AnswerMemory(10**9))
    assert reader.feed(b"data: x\n\n") is None
    assert type(reader.failure) is ours
    if isinstance(reader.failure, Rejected):
        assert (reader.failure.status, reader.failure.param) == (status, "p")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        ("1.5", 1.5),
        ("30", 30),
        ("86400", 120),
        ("inf", 120),
        ("nan", None),
        ("-3", 0),
        ("soon", None),
        ("Fri, 31 Feb 2099 00:00:00 GMT", None),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0),
        ("Thu, 01 Jan 2099 00:00:00 GMT", 120),
        ("9" * 5000, 120),
    ],
)
def test_retry_after_in_every_form(header: str | None, seconds: float | None) -> None:
    assert retry_after(None if header is None else header.encode()) == seconds


def test_retry_after_as_a_date() -> None:
    assert retry_after(formatdate(time.time() + 30, usegmt=True).encode()) == pytest.approx(30, abs=2)
