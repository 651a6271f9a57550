"""Damaged requests on real connections: whoever sends them gets nothing or a refusal, and everybody else is served.

In the inputs `KEY` stands for a key that is good, `SOURCE` for an address that nobody has used yet.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator

import pytest
from fuzz.feeding import Harness
from fuzz.mutations import inputs
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import GOOD_STREAM, Upstream, answer, scripted_upstream, whole
from hypothesis import given, settings
from integration.client import ask, chat, elsewhere, wire

TRIES = int(os.environ.get("FUZZ_REQUESTS", "60"))
SILENCE = 0.05
"""Seconds after which an input is taken for one that is not answered."""
TARGETS = {"m": "vllm", "s": "openai", "tgi": "tgi"}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with scripted_upstream() as server:
        yield server


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[GatewayProcess]:
    """Its targets answer whatever they are asked; "good" is only asked by those that follow the rules."""
    backends = {**TARGETS, "good": "openai"}
    for name in backends:
        upstream.target(name).script = GOOD_STREAM if name == "s" else whole(answer())
    routes = {
        name: {
            "targets": [{"name": name, "backend": backend, "url": upstream.target(name).url, "api_key": "${CANARY}"}]
        }
        for name, backend in backends.items()
    }
    table = json.dumps({"routes": routes, "bodies": {"timeout": "2s"}})
    with gateway_process(
        table, env={"TRUNKLINE_TRUSTED_PROXIES": "127.0.0.1/32", "CANARY": "upstream-canary"}
    ) as started:
        yield started


@pytest.fixture(scope="module")
def reached() -> set[str]:
    """The targets that were asked something."""
    return set()


@pytest.fixture(scope="module")
def check(gateway: GatewayProcess, upstream: Upstream, reached: set[str]) -> Callable[[bytes], None]:
    """Sends an input, and looks what has become of gateway, answer and targets."""
    secret, good = gateway.issue().secret, gateway.issue().secret
    numbers = itertools.count()

    def sent(data: bytes) -> None:
        source = elsewhere()["x-forwarded-for"]
        with wire(gateway) as connection:
            connection.send_all_that_is_taken(data.replace(b"KEY", secret.encode()).replace(b"SOURCE", source.encode()))
            came = connection.all_that_comes(SILENCE)
        _proper(came)
        for name in TARGETS:
            for call in upstream.target(name).calls:
                assert secret not in repr(call.headers) and call.header("x-forwarded-for") is None
                assert json.loads(call.body)["model"]
                reached.add(name)
            upstream.target(name).calls.clear()
        if next(numbers) % 10 == 0:
            _served(gateway, good)

    return sent


def _proper(came: bytes) -> None:
    assert b"upstream-canary" not in came
    assert b"a bug of ours" not in came and b"Traceback" not in came
    assert came == b"" or came.startswith(b"HTTP/1."), came[:200]
    assert came[9:12] != b"500", came[:500]


def _served(gateway: GatewayProcess, key: str) -> None:
    assert gateway.process.poll() is None
    assert ask(gateway, chat("good"), key, headers=elsewhere()).status == 200
    log = gateway.stderr()
    assert "a bug of ours" not in log and "Traceback" not in log and "panicked" not in log, log[-3000:]
    assert key not in log


@pytest.fixture(scope="module")
def harness(check: Callable[[bytes], None]) -> Harness:
    return Harness("wire", check)


def test_the_corpus_passes(harness: Harness, gateway: GatewayProcess, reached: set[str]) -> None:
    for name, data in harness.kept():
        try:
            harness.check(data)
        except AssertionError as error:
            raise AssertionError(name) from error
    assert reached == set(TARGETS), "the good ones among them are good"
    _served(gateway, gateway.issue().secret)


@pytest.mark.timeout(3600)
def test_no_request_does_harm(harness: Harness, gateway: GatewayProcess) -> None:
    @settings(max_examples=TRIES)
    @given(inputs(harness))
    def passes(data: bytes) -> None:
        harness.check(data)

    passes()
    _served(gateway, gateway.issue().secret)
