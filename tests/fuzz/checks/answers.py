"""The response cache: values that anybody may have put there, and bodies of calls that it is asked about."""

from __future__ import annotations

from fuzz.feeding import Harness, allow

from backends.api import Call
from backends.body import Body, Malformed
from backends.endpoints import PATHS
from gateway.answers.kept import MARK, Kept, _seal, sealed, unsealed
from gateway.answers.taking_part import obstacle
from gateway.answers.terms import Terms
from gateway.config.caching import ResponseCacheSpec

NAME, SECRET = "{tl}:answer:t:m:1", b"secret"
GOOD = sealed(NAME, Kept(b"application/json", b'{"choices": []}', 1.0, 3, 4), SECRET)
TERMS = Terms("m", ResponseCacheSpec(), b"made by")


def check_kept(data: bytes) -> None:
    """Only what was sealed is an answer, and only under its name; and that nothing is one is all that is found."""
    assert data == GOOD or unsealed(NAME, data, SECRET) is None
    assert unsealed(NAME + "x", data, SECRET) is None
    found = unsealed(NAME, MARK + _seal(NAME, data, SECRET) + data, SECRET)
    assert found is None or isinstance(found.body, bytes)


def check_call(data: bytes) -> None:
    """Whether a call takes part can be told of any, and its name; another wish changes neither."""
    body = allow(Malformed, Body, data)
    if body is None:
        return
    for endpoint in {*PATHS.values()}:
        call = Call("tl-1", endpoint, "m", body)
        if not obstacle(call, TERMS.spec, ""):
            assert not obstacle(call, TERMS.spec, "use")
        name = TERMS.name(call, "t", {}, SECRET)
        assert name == TERMS.name(Call("tl-2", endpoint, "m", Body(data)), "t", {}, SECRET)
        assert name != TERMS.name(call, "u", {}, SECRET)


KEPT = Harness("kept", check_kept, (GOOD,))
CALL = Harness("cached-call", check_call)
