"""The soak's own judgement: it must see what it is there to see. The soak itself is `make soak`."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from harness.upstream import DONE, END, chunk, event, head
from soak.calls import Made, Plan, story
from soak.judging import judge
from soak.tally import Tally

STREAM = Plan("chat stream", b"", stream=True, truth=story(3))
WHOLE = Plan("chat whole", b"", truth=story(3))
OPEN = head(content_type="text/event-stream", transfer_encoding="chunked")
SAID = [chunk(event(text)) for text in ("w1", " w2", " w3")]
FINISH, LAST = chunk(event(finish="stop")), chunk(DONE)
ERROR = b'data: {"error": {"message": "it broke", "type": "server_error", "param": null, "code": "x"}}\n\n'


async def made(*pieces: bytes, closed: bool = True) -> Made:
    """A call that got these bytes, after which its connection was closed."""
    call = Made(b"")
    for piece in pieces:
        call.data_received(piece)
    if closed:
        call.connection_lost(None)
    return call


async def ending(plan: Plan, *pieces: bytes, **more: Any) -> str:
    return judge(plan, await made(*pieces), **{"left": False, "excused": False, **more}).ending


def body(value: Any, status: int = 200) -> bytes:
    raw = json.dumps(value).encode()
    return head(status, content_type="application/json", content_length=len(raw)) + raw


def said(text: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": text}}], "usage": {"total_tokens": 9}}


GOOD = {
    "a whole stream": (STREAM, (OPEN, *SAID, FINISH, LAST, END), "answered"),
    "a stream with an error": (STREAM, (OPEN, *SAID[:2], chunk(ERROR), END), "error event"),
    "a whole answer": (WHOLE, (body(said(story(3))),), "answered"),
    "an error": (WHOLE, (body({"error": {"message": "no"}}, 503),), "error status"),
    "a limit": (WHOLE, (body({"error": {"message": "no"}}, 429),), "refused"),
}
WRONG = {
    "a stream that ends without a word": (STREAM, (OPEN, *SAID, FINISH, END)),
    "a part that looks whole": (STREAM, (OPEN, *SAID[:2], FINISH, LAST, END)),
    "no reason": (STREAM, (OPEN, *SAID, LAST, END)),
    "a word twice": (STREAM, (OPEN, SAID[0], *SAID, FINISH, LAST, END)),
    "a connection that is closed": (STREAM, (OPEN, *SAID)),
    "[DONE] after an error": (STREAM, (OPEN, chunk(ERROR), LAST, END)),
    "no JSON": (STREAM, (OPEN, chunk(b"data: {\n\n"), END)),
    "a whole answer that is not": (WHOLE, (body(said(story(2))),)),
    "a body that is cut": (WHOLE, (body(said(story(3)))[:-5],)),
    "a bug of ours": (WHOLE, (body({"error": {"message": "no"}}, 500),)),
    "an error that says nothing": (WHOLE, (body({"detail": "no"}, 503),)),
    "nothing at all": (WHOLE, ()),
}


@pytest.mark.parametrize(("plan", "pieces", "expected"), GOOD.values(), ids=GOOD)
async def test_good_endings(plan: Plan, pieces: tuple[bytes, ...], expected: str) -> None:
    assert await ending(plan, *pieces) == expected


@pytest.mark.parametrize(("plan", "pieces"), WRONG.values(), ids=WRONG)
async def test_wrong_endings(plan: Plan, pieces: tuple[bytes, ...]) -> None:
    assert await ending(plan, *pieces) == "WRONG"


async def test_a_killed_worker_excuses_a_cut_and_no_lie() -> None:
    assert await ending(STREAM, OPEN, *SAID, excused=True) == "cut with a worker"
    assert await ending(STREAM, OPEN, *SAID[:2], FINISH, LAST, END, excused=True) == "WRONG"


async def test_a_client_that_left_is_not_asked() -> None:
    assert await ending(STREAM, OPEN, left=True) == "left"


async def test_a_call_without_end_is_wrong() -> None:
    call = await made(OPEN, SAID[0], closed=False)
    await asyncio.sleep(0)
    assert "no end" in judge(STREAM, call, left=False, excused=False).why


async def test_what_is_to_be_refused_counts_as_answered_when_it_is() -> None:
    plan = Plan("wrong key", b"", statuses=frozenset({401}), answered=False)
    tally, call = Tally(), await made(body({"error": {"message": "no"}}, 401))
    tally.count(plan, call, judge(plan, call, left=False, excused=False))
    let_in = await made(body(said(story(3))))
    tally.count(plan, let_in, judge(plan, let_in, left=False, excused=False))
    assert tally.answered == {"wrong key": 1}
    assert tally.endings["WRONG"] == 1
