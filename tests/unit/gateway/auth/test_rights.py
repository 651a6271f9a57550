"""What a key may be used for."""

from __future__ import annotations

import pytest

from gateway.auth import authorize, may_use
from gateway.core.errors import EndpointNotAllowed, Forbidden
from gateway.core.types import KeyRecord


@pytest.mark.parametrize(
    ("models", "names", "allowed"),
    [
        (("*",), ("m", "route"), True),
        (("gpt-*",), ("gpt-4", "qwen"), True),
        (("qwen",), ("gpt-4", "qwen"), True),
        (("gpt-4",), ("gpt-4o", "qwen"), False),
        (("llama-*", "q*n"), ("x", "qwen"), True),
        ((), ("x", "y"), False),
        (("",), ("x", "y"), False),
    ],
)
def test_models_a_key_may_use(models: tuple[str, ...], names: tuple[str, str], allowed: bool) -> None:
    key = KeyRecord(id="k", name="n", created=1, secrets=(), models=models)
    assert may_use(key, *names) is allowed
    if allowed:
        authorize(key, "chat/completions", *names)
    else:
        with pytest.raises(Forbidden) as caught:
            authorize(key, "chat/completions", *names)
        assert (caught.value.param, caught.value.code) == ("model", "model_not_allowed")


@pytest.mark.parametrize(
    ("endpoints", "allowed"),
    [
        (("*",), {"chat/completions", "completions", "embeddings"}),
        (("chat/*",), {"chat/completions"}),
        (("*completions",), {"chat/completions", "completions"}),
        (("embeddings", "completions"), {"completions", "embeddings"}),
        ((), set()),
    ],
)
def test_endpoints_a_key_may_use(endpoints: tuple[str, ...], allowed: set[str]) -> None:
    key = KeyRecord(id="k", name="n", created=1, secrets=(), endpoints=endpoints)
    for endpoint in ("chat/completions", "completions", "embeddings"):
        if endpoint in allowed:
            authorize(key, endpoint, "m", "m")
        else:
            with pytest.raises(EndpointNotAllowed, match=endpoint) as caught:
                authorize(key, endpoint, "m", "m")
            assert (caught.value.status, caught.value.code) == (403, "endpoint_not_allowed")
