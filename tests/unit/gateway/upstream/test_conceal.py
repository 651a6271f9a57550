"""A target's words are not passed on where they hold the credential that it was sent."""

from __future__ import annotations

import pytest

from gateway.core.errors import Rejected
from gateway.upstream.failures import conceal


@pytest.mark.parametrize(
    ("secret", "said", "hidden"),
    [
        ("sk-12345678", b'{"m":"got sk-12345678"}', True),
        ('a"b\\c/d-long', b'{"m":"a\\"b\\\\c/d-long"}', True),
        ('a"b\\c/d-long', b'{"m":"a\\"b\\\\c\\/d-long"}', True),
        ("sk-12345678", b'{"m":"got sk-1234..."}', False),
        ("none", b'{"m":"there is none"}', False),
        (None, b'{"m":"None"}', False),
    ],
)
def test_words_that_hold_our_credential_are_concealed(secret: str | None, said: bytes, hidden: bool) -> None:
    refusal = Rejected(422, "", body=said)
    conceal(refusal, secret)
    assert (refusal.body is None) == hidden
    worded = Rejected(422, said.decode())
    conceal(worded, secret)
    assert (worded.message != said.decode()) == hidden
