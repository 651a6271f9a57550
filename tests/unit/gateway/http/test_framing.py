"""Which heads are refused because they have more than one reading."""

from __future__ import annotations

import pytest

from gateway.core.errors import BadFraming
from gateway.http.framing import refuse_ambiguous

PLAIN = [(b"host", b"x"), (b"content-type", b"application/json"), (b"authorization", b"Bearer a")]
LENGTH, CHUNKED = (b"content-length", b"3"), (b"transfer-encoding", b"chunked")


@pytest.mark.parametrize(
    "more",
    [[], [LENGTH], [CHUNKED], [(b"transfer-encoding", b"Chunked")], [(b"accept", b"a"), (b"accept", b"b")]],
)
def test_plain_heads_pass(more: list[tuple[bytes, bytes]]) -> None:
    refuse_ambiguous([*PLAIN, *more])


@pytest.mark.parametrize(
    "more",
    [
        [LENGTH, LENGTH],
        [LENGTH, CHUNKED],
        [CHUNKED, LENGTH],
        [CHUNKED, CHUNKED],
        [(b"transfer-encoding", b"identity"), CHUNKED],
        *(
            [(b"transfer-encoding", coding)]
            for coding in (b"gzip, chunked", b",chunked", b"chunked, chunked", b"", b"x")
        ),
        [(b"upgrade", b"websocket")],
        [(b"upgrade", b"h2c, websocket"), LENGTH],
        [(b"host", b"y")],
        [(b"authorization", b"Bearer b")],
        [(b"content-type", b"text/plain")],
    ],
)
def test_heads_with_two_readings_are_refused(more: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(BadFraming):
        refuse_ambiguous([*PLAIN, *more])
