"""What two replicas tell of themselves, and the death of one of them."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from harness.gateway_process import GatewayProcess
from harness.replicas import CHAT, CONTEXTS, MODEL, NAMES, Answer, Replicas, routed, stream, user
from harness.vllm_server import client
from integration.client import eventually, samples, total
from integration.client import record as line_of
from integration.engine import sent

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

PLACES = 4
"""Calls that each works on at once."""
CALLS, TOKENS = 24, 48
"""While one is killed: twelve at each."""


@pytest.fixture(scope="module")
def gateway(replicas: Replicas) -> Iterator[tuple[GatewayProcess, str]]:
    """By turns, so that it does not depend on chance where a call goes that may go anywhere."""
    with routed(replicas, "round-robin") as started:
        yield started


@pytest.fixture
def process(gateway: tuple[GatewayProcess, str]) -> GatewayProcess:
    return gateway[0]


@pytest.fixture
def key(gateway: tuple[GatewayProcess, str]) -> str:
    return gateway[1]


@pytest.fixture
def towards(process: GatewayProcess, key: str) -> Iterator[httpx.Client]:
    """The way through the gateway."""
    with client(process.url, authorization=f"Bearer {key}") as ours:
        yield ours


@pytest.fixture
def facts(process: GatewayProcess) -> list[dict[str, Any]]:
    """`trunkline targets list`, once the gateway knows both."""

    def known() -> list[dict[str, Any]] | None:
        found: list[dict[str, Any]] = process.said("targets", "list", "--routing", str(process.routing))
        return found if all(each["context"] and each["kv_tokens"] for each in found) else None

    return eventually(known, "the replicas are known", 30)


def test_what_the_replicas_are_is_known(replicas: Replicas, facts: list[dict[str, Any]]) -> None:
    assert [each["name"] for each in facts] == list(NAMES)
    assert tuple(each["context"] for each in facts) == CONTEXTS
    assert [each["kv_tokens"] for each in facts] == [replica.kv_tokens for replica in replicas]
    versions = [replica.client.get("/version").json()["version"] for replica in replicas]
    assert [each["version"] for each in facts] == versions
    assert {each["state"] for each in facts} == {"up"}


def test_replicas_that_differ_are_told(process: GatewayProcess) -> None:
    def drifts(field: str) -> float:
        return total(samples(process), "route_drift", route=MODEL, field=field)

    eventually(lambda: drifts("context") == 1 or None, "their contexts differ", 30)
    assert [drifts(field) for field in ("models", "version", "loras")] == [0, 0, 0]


@pytest.mark.usefixtures("facts")
@pytest.mark.parametrize(("words", "tokens"), [(1700, 8), (5, 1800)], ids=["prompt", "answer"])
def test_a_call_goes_only_where_it_fits(towards: httpx.Client, replicas: Replicas, words: int, tokens: int) -> None:
    soon_over = {"max_tokens": tokens, "stop": list("aeo ")}
    text = "word " * words
    refused = replicas[1].client.post(CHAT, json={"model": MODEL, "messages": user(text), **soon_over})
    assert refused.status_code == 400 and str(CONTEXTS[1]) in refused.text, "the other one cannot take it"
    answers = [stream(towards, user(f"{n} {text}"), **soon_over) for n in range(3)]
    assert [(answer.status, answer.target) for answer in answers] == [(200, NAMES[0])] * 3
    answers = [stream(towards, user(f"{n}"), max_tokens=2) for n in range(2)]
    assert {answer.target for answer in answers} == set(NAMES), "others go to both"


@pytest.mark.usefixtures("facts")
@pytest.mark.parametrize(
    ("words", "tokens", "param"), [(16_000, 8, "messages"), (5, 2049, "max_tokens")], ids=["prompt", "answer"]
)
def test_a_call_that_fits_nowhere_is_refused(
    process: GatewayProcess, towards: httpx.Client, words: int, tokens: int, param: str
) -> None:
    answer = towards.post(CHAT, json={"model": MODEL, "messages": user("word " * words), "max_tokens": tokens})
    assert answer.status_code == 400, answer.content
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", param)
    assert f"{max(CONTEXTS)} tokens" in error["message"]
    assert line_of(process, answer.headers["x-request-id"])["attempts"] == [], "nobody was asked"


@pytest.mark.usefixtures("facts")
def test_of_what_may_fit_the_engine_judges(process: GatewayProcess, towards: httpx.Client) -> None:
    """Tokens are estimated: only the engine knows, and its refusal is no failure of its."""
    answer = towards.post(CHAT, json={"model": MODEL, "messages": user("word " * 3000), "max_tokens": 8})
    assert answer.status_code == 400, answer.content
    assert str(max(CONTEXTS)) in answer.json()["error"]["message"]
    [attempt] = line_of(process, answer.headers["x-request-id"])["attempts"]
    assert attempt["target"] == NAMES[0]
    found = process.said("targets", "list", "--routing", str(process.routing))
    assert [each["state"] for each in found] == ["up", "up"]


def test_what_runs_and_waits_in_the_replicas_is_seen(
    process: GatewayProcess, key: str, replicas: Replicas, tell: Callable[[str], None]
) -> None:
    endless = {"model": MODEL, "stream": True, "max_tokens": 1000, "ignore_eos": True}

    def told() -> list[tuple[int, int]]:
        found = samples(process)
        gauges = ("engine_running", "engine_waiting")
        return [tuple(int(total(found, gauge, target=name)) for gauge in gauges) for name in NAMES]

    def agreed(*loads: tuple[int, int]) -> bool | None:
        return told() == [replica.busy for replica in replicas] == [*loads] or None

    eventually(lambda: agreed((0, 0), (0, 0)), "all are idle", 60)
    bodies = [{**endless, "messages": user(f"Tell me story {n}.")} for n in range(2 * PLACES + 4)]
    with sent(process, bodies, key):
        eventually(lambda: agreed((PLACES, 2), (PLACES, 2)), "all are seen", 60)
        tell(f"running and waiting: {told()}")
    eventually(lambda: agreed((0, 0), (0, 0)), "all are seen to have left", 60)


def test_a_killed_replica_takes_no_call_along_that_had_not_begun(
    replicas: Replicas, towards: httpx.Client, record: Callable[..., None], tell: Callable[[str], None]
) -> None:
    """The last test: one replica is gone after it."""
    survivor, doomed = replicas
    if doomed.process is None:
        pytest.skip("TEST_VLLM_REPLICAS: not ours to kill")
    began: list[str] = []
    with ThreadPoolExecutor(CALLS) as clients:
        calls = [
            clients.submit(stream, towards, user(f"Tell me story {n}."), began.append, max_tokens=TOKENS)
            for n in range(CALLS)
        ]
        eventually(lambda: began.count(NAMES[1]) >= PLACES or None, "it answers some", 60)
        running, waiting = doomed.busy
        doomed.kill()
        tell(f"killed while {running} calls ran and {waiting} waited in it")
        answers = [call.result() for call in calls]
    found = Counter(fate(answer) for answer in answers)
    for what, count in sorted(found.items()):
        record("a killed replica", what, count)
    assert {what for what in found if what.startswith("LOST")} == set()
    assert found["moved before its start, and answered"] > 0 and found["cut after its start, and told so"] > 0
    assert {answer.target for answer in answers if answer.attempts > 1} == {NAMES[0]}
    assert {answer.target for answer in answers if answer.cut} == {NAMES[1]}
    assert survivor.client.get("/health").status_code == 200
    for number in range(3):
        assert stream(towards, user(f"{number}"), max_tokens=2).target == NAMES[0]


def fate(answer: Answer) -> str:
    """What has become of a call."""
    if answer.whole:
        return "answered" if answer.attempts == 1 else "moved before its start, and answered"
    if answer.cut and not answer.broken:
        return "cut after its start, and told so"
    return f"LOST: status {answer.status}, {len(answer.events)} events, {answer.attempts} attempts {answer.broken}"
