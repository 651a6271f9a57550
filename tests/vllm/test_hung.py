"""The engine core of a real vLLM is stopped under load, and its server answers on: it is out soon, and back later."""

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from harness.gateway_process import GatewayProcess
from harness.replicas import NAMES, Answer, Replicas, routed, stream, user
from harness.vllm_server import VLLMServer, client
from integration.client import eventually, samples, total

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ROUNDS = 3
STREAMS, TOKENS = 8, 400
"""Under way when a core is stopped, at both vLLMs."""
MORE = 8
"""Calls that come afterwards, of which half go where nothing moves."""
SECONDS = 10.0
"""In which it must be out."""


FATES = ("answered", "moved before its first token, and answered", "cut after its first token, and told so")


@pytest.fixture(scope="module")
def gateway(replicas: Replicas) -> Iterator[tuple[GatewayProcess, httpx.Client]]:
    with routed(replicas, "round-robin") as (process, key), client(process.url, authorization=f"Bearer {key}") as ours:
        yield process, ours


def core(server: VLLMServer) -> psutil.Process:
    """The process in which a vLLM's engine works."""
    assert server.process is not None
    children = psutil.Process(server.process.pid).children(recursive=True)
    (found,) = [each for each in children if "EngineCore" in f"{each.name()} {each.cmdline()}"]
    return found


def fate(answer: Answer) -> str:
    """What has become of a call."""
    if answer.whole:
        return FATES[answer.attempts > 1]
    if answer.cut and not answer.broken and "upstream_hung" in answer.events[-1]:
        return FATES[2]
    return f"LOST: status {answer.status}, {len(answer.events)} events, {answer.attempts} attempts {answer.broken}"


def lost(found: Counter[str]) -> int:
    return sum(count for what, count in found.items() if what not in FATES)


@pytest.mark.parametrize("turn", range(ROUNDS))
def test_a_core_that_stands_still_is_out_soon_and_takes_no_call_along(
    turn: int,
    replicas: Replicas,
    gateway: tuple[GatewayProcess, httpx.Client],
    record: Callable[..., None],
    tell: Callable[[str], None],
) -> None:
    process, towards = gateway
    if replicas[0].process is None:
        pytest.skip("TEST_VLLM_REPLICAS: not ours to stop")
    number, began = turn % 2, list[str]()
    name, server = NAMES[number], replicas[number]

    def hung() -> bool:
        return total(samples(process), "target_hung", target=name) == 1

    with ThreadPoolExecutor(STREAMS + MORE) as clients:
        running = [
            clients.submit(stream, towards, user(f"Tell me story {n} of {turn}."), began.append, max_tokens=TOKENS)
            for n in range(STREAMS)
        ]
        eventually(lambda: began.count(name) or None, "it has begun some", 120)  # one that is just back gets few
        seen = lambda: total(samples(process), "engine_running", target=name) > 0 or None  # noqa: E731
        eventually(seen, "it was seen to work", 60)
        stopped, at = core(server), time.monotonic()
        stopped.send_signal(signal.SIGSTOP)
        try:
            later = [clients.submit(stream, towards, user(f"Say {n}."), max_tokens=4) for n in range(MORE)]
            eventually(lambda: hung() or None, "it is found to hang", 60)
            took = time.monotonic() - at
            assert server.client.get("/health").status_code == 200, "its server answers on"
            answers = [call.result() for call in (*later, *running)]
        finally:
            stopped.send_signal(signal.SIGCONT)
    found = Counter(map(fate, answers))
    tell(f"out after {took:.1f} s: {dict(found)}")
    record(
        "a stopped engine core", f"{turn + 1}: {name}", f"{took:.1f} s", *(found[what] for what in FATES), lost(found)
    )
    assert not lost(found)
    assert all(answer.whole for answer in answers[:MORE]), "none is lost before its first token"
    assert 1 <= found[FATES[2]] <= began.count(name)
    assert took <= SECONDS
    eventually(lambda: not hung() or None, "it makes progress again", 60)
    back = lambda: stream(towards, user("Back?"), max_tokens=2).target == name or None  # noqa: E731
    eventually(back, "calls go there again", 60)
