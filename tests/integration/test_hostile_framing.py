"""0 desyncs: each case of the smuggling corpus is refused and its connection closed, or read in exactly one way."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Target, Upstream
from integration.client import Wire, ask, chat
from integration.smuggling import BODY, CASES, KEY, TRAP, Case, Fate

ANSWER = re.compile(rb"HTTP/1\.[01] [1-5][0-9][0-9] ")


@pytest.fixture(scope="module")
def gateway(upstream: Upstream) -> Iterator[GatewayProcess]:
    """With a route that must never be asked."""
    routes = {
        name: {"targets": [{"name": f"framing-{name}", "backend": "openai", "url": upstream.target(f"f-{name}").url}]}
        for name in ("solo", "trap")
    }
    with gateway_process(json.dumps({"routes": routes, "bodies": {"timeout": "2s"}})) as started:
        yield started


@pytest.fixture(scope="module")
def key(gateway: GatewayProcess) -> str:
    return gateway.issue().secret


@pytest.fixture
def targets(upstream: Upstream) -> tuple[Target, Target]:
    """Those of the two routes, as new."""
    pair = upstream.target("f-solo"), upstream.target("f-trap")
    for target in pair:
        target.restore()
    return pair


def test_the_corpus_is_of_some_size() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_request_is_read_in_two_ways(
    gateway: GatewayProcess, key: str, targets: tuple[Target, Target], case: Case
) -> None:
    solo, trap = targets
    raw = (case.raw if case.fate is Fate.TAKEN else case.raw + TRAP).replace(KEY, key.encode())
    connection = Wire(gateway.port)
    connection.send_all_that_is_taken(raw)
    if case.fate is Fate.TAKEN:
        assert connection.answer().status == 200
    else:
        seen = connection.all_that_comes(5)  # until it is closed
        assert len(ANSWER.findall(seen)) <= 1, seen
        if case.fate is Fate.REFUSED:
            assert seen == b"" or seen.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")), seen
        else:
            assert seen.startswith(b"HTTP/1.1 200"), seen
    connection.leave()
    assert [call.body for call in solo.calls] == ([] if case.fate is Fate.REFUSED else [BODY])
    assert trap.calls == []
    assert ask(gateway, chat("solo"), key).status == 200
    assert "Traceback" not in gateway.stderr()


@pytest.mark.parametrize("name", ["two hosts", "upgrade to websocket", "coding gzip, chunked", "coding twice"])
def test_a_refusal_says_why_and_closes(gateway: GatewayProcess, key: str, name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    connection = Wire(gateway.port)
    connection.send(case.raw.replace(KEY, key.encode()))
    refused = connection.answer()
    assert (refused.status, refused.error["code"]) == (400, "bad_framing")
    assert refused.header("connection") == "close"
    assert connection.all_that_comes(5) == b""


def test_a_head_with_two_readings_is_refused_before_its_key_is_looked_at(gateway: GatewayProcess) -> None:
    case = next(case for case in CASES if case.name == "two hosts")
    connection = Wire(gateway.port)
    connection.send(case.raw)
    assert connection.answer().status == 400
