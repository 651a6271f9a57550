"""What the gateway asks targets beside the calls: health, credential, load and facts, over real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from harness.redis_server import free_port
from harness.upstream import Act, Received, Script, Upstream, head, whole

from backends.api import Facts, Gauges
from backends.api import Target as Address
from backends.capabilities import Capabilities
from backends.llamacpp import LlamaCpp
from backends.openai import OpenAI
from backends.sglang import SGLang
from backends.tgi import TGI
from backends.vllm import VLLM
from gateway.config import Timeouts
from gateway.upstream import AnswerLimits, Forwarder
from gateway.upstream import forwarder as forward

PATIENT = Timeouts(connect=30.0)
VLLM_SERVER, ANY_SERVER = Capabilities.of(VLLM()), Capabilities.of(OpenAI())
MODELS = {"object": "list", "data": [{"id": "served", "max_model_len": 2048, "parent": None}]}
Say = Callable[..., list[str]]


def patience(script: Script) -> Timeouts:
    """Little only for a target that says nothing: it is waited for."""
    return Timeouts(connect=0.5) if Act.STALL in script else PATIENT


@pytest.fixture
async def forwarder() -> AsyncIterator[Forwarder]:
    forwarder = Forwarder(AnswerLimits(1000, 1000))
    yield forwarder
    await forwarder.close()


@pytest.fixture
def address(upstream: Upstream) -> Address:
    return Address("asked", upstream.target("asked").url, "served", "the-credential")


@pytest.fixture
def say(upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Sets the answer of each path (the rest is 404); gives the list of paths asked, which grows."""
    target = upstream.target("asked")
    target.restore()

    def say(by_path: dict[str, Script]) -> list[str]:
        asked: list[str] = []

        def answers(received: Received) -> Script:
            assert (received.method, received.header("authorization")) == ("GET", "Bearer the-credential")
            asked.append(received.path)
            return by_path.get(received.path, whole({"detail": "Not Found"}, 404))

        monkeypatch.setattr(target, "answers", answers)
        return asked

    return say


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (whole(b""), ""),
        (whole(b"", 503), "status 503"),
        (whole(b"", 307, location="/elsewhere"), "status 307"),
        (whole({"error": "Unauthorized"}, 401), "credential refused"),
        (whole(b"", 403), "credential refused"),
        ([Act.CUT], "unreachable"),
        ([Act.RESET], "unreachable"),
        ([b"nonsense\r\n\r\n"], "unreachable"),
        ([Act.STALL], "timeout"),
    ],
    ids=["well", "503", "redirect", "401", "403", "cut", "reset", "no HTTP", "stall"],
)
async def test_why_a_target_cannot_serve(
    forwarder: Forwarder, address: Address, say: Say, script: Script, why: str
) -> None:
    asked = say({"/health": script})
    assert await forwarder.probe(address, VLLM_SERVER, patience(script)) == why
    assert asked[0] == "/health"


async def test_a_target_that_is_not_there_is_unreachable(forwarder: Forwarder) -> None:
    for url in (f"http://127.0.0.1:{free_port()}", "http://no-such-host.invalid"):
        assert await forwarder.probe(Address("gone", url), VLLM_SERVER, PATIENT) == "unreachable"
        assert await forwarder.credential(Address("gone", url), VLLM_SERVER, PATIENT) == "", "that is not known"


class Mute:
    """An adapter without any power."""


async def test_who_has_no_such_route_is_not_asked(forwarder: Forwarder, address: Address, say: Say) -> None:
    asked = say({})
    assert await forwarder.probe(address, Capabilities.of(Mute()), PATIENT) == ""
    assert await forwarder.credential(address, Capabilities.of(Mute()), PATIENT) == ""
    assert await forwarder.gauges(address, Capabilities.of(Mute()), PATIENT) is None
    assert await forwarder.describe(address, Capabilities.of(Mute()), PATIENT) is None
    assert not asked


@pytest.mark.parametrize(
    ("adapter", "path"),
    [(VLLM(), "/v1/models"), (SGLang(), "/v1/models"), (LlamaCpp(), "/v1/models"), (TGI(), "/tokenize")],
    ids=lambda value: type(value).__name__,
)
async def test_the_credential_is_tried_where_it_is_wanted(
    forwarder: Forwarder, address: Address, say: Say, adapter: Any, path: str
) -> None:
    """The health route of these takes anybody."""
    say({"/health": whole(b""), path: whole({"error": "Unauthorized"}, 401)})
    assert await forwarder.probe(address, Capabilities.of(adapter), PATIENT) == ""
    assert await forwarder.credential(address, Capabilities.of(adapter), PATIENT) == "credential refused"
    for status in (200, 404, 405, 500):
        asked = say({path: whole(b"", status)})
        assert await forwarder.credential(address, Capabilities.of(adapter), PATIENT) == ""
        assert asked == [path]


async def test_a_server_whose_health_route_wants_the_credential_is_not_asked_twice(
    forwarder: Forwarder, address: Address, say: Say
) -> None:
    asked = say({"/v1/models": whole({}, 401)})
    assert await forwarder.probe(address, ANY_SERVER, PATIENT) == "credential refused"
    assert await forwarder.credential(address, ANY_SERVER, PATIENT) == ""
    assert asked == ["/v1/models"]


async def test_the_load(forwarder: Forwarder, address: Address, say: Say) -> None:
    text = b"vllm:num_requests_running 3\nvllm:num_requests_waiting 1\n"
    asked = say({"/metrics": whole(text, content_type="text/plain")})
    assert await forwarder.gauges(address, VLLM_SERVER, PATIENT) == Gauges(running=3, waiting=1)
    assert asked == ["/metrics"]
    for script in (whole(text, 500), [head(content_length=100) + text, Act.CUT], whole(b"other 1\n"), [Act.STALL]):
        say({"/metrics": script})
        assert await forwarder.gauges(address, VLLM_SERVER, patience(script)) is None


async def test_facts(forwarder: Forwarder, address: Address, say: Say) -> None:
    expected = Facts(context=2048, models=("served",), version="0.32.0", loras=())
    asked = say({"/v1/models": whole(MODELS), "/version": whole({"version": "0.32.0"})})
    assert await forwarder.describe(address, VLLM_SERVER, PATIENT) == expected
    assert asked == ["/v1/models", "/version"]


async def test_facts_are_those_of_the_targets_model(forwarder: Forwarder, address: Address, say: Say) -> None:
    data = [{"id": "served", "max_model_len": 2048}, {"id": "other", "max_model_len": 4096}]
    say({"/v1/models": whole({"object": "list", "data": data})})
    assert await forwarder.describe(address, ANY_SERVER, PATIENT) == Facts(context=2048, models=("other", "served"))


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_path_that_is_not_there_tells_nothing(
    forwarder: Forwarder, address: Address, say: Say, status: int
) -> None:
    say({"/v1/models": whole(MODELS), "/version": whole({}, status)})
    assert await forwarder.describe(address, VLLM_SERVER, PATIENT) == Facts(context=2048, models=("served",), loras=())


@pytest.mark.parametrize(
    "script",
    [whole({}, 401), whole({}, 503), [Act.STALL], [Act.CUT], [head(content_length=9) + b"{", Act.CUT]],
    ids=["401", "503", "stall", "cut", "half"],
)
async def test_half_of_the_facts_are_none(forwarder: Forwarder, address: Address, say: Say, script: Script) -> None:
    """Else a server under load would seem to have changed."""
    say({"/v1/models": whole(MODELS), "/version": script})
    assert await forwarder.describe(address, VLLM_SERVER, patience(script)) is None


async def test_a_server_that_has_none_of_the_paths_tells_nothing(
    forwarder: Forwarder, address: Address, say: Say
) -> None:
    say({})
    assert await forwarder.describe(address, VLLM_SERVER, PATIENT) is None


async def test_an_endless_answer_is_not_read_to_its_end(
    forwarder: Forwarder, address: Address, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "SCRAPE_LIMIT", 1000)
    padded = whole(json.dumps({**MODELS, "more": "x" * 2000}).encode())
    say({"/v1/models": padded, "/metrics": whole(b"vllm:num_requests_running 3\n" + b"#" * 2000)})
    assert await forwarder.describe(address, ANY_SERVER, PATIENT) is None
    assert await forwarder.gauges(address, VLLM_SERVER, PATIENT) is None
