"""A client that leaves frees the engine: nothing runs or waits in vLLM a second later, whatever the call was at."""

import contextlib
import socket
import struct
from collections.abc import Callable

import httpx
import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400), pytest.mark.usefixtures("idle")]

PROMISED = 1.0
Dial = Callable[[httpx.Client, dict[str, object]], socket.socket]
Gauge = Callable[[str], int]
Until = Callable[[int, int, float], float]


def asking(prompt: str, *, stream: bool) -> dict[str, object]:
    """A call that would go on for most of a minute."""
    messages = [{"role": "user", "content": prompt}]
    endless = {"ignore_eos": True, "min_tokens": 600, "max_tokens": 600, "temperature": 0}
    return {"model": "smollm2-135m", "messages": messages, "stream": stream, **endless}


SHORT = "Tell me a story."
LONG = "word " * 950  # read in 15 steps or more: seconds before the first token


@pytest.fixture(params=["vllm", "gateway"])
def towards(request: pytest.FixtureRequest) -> httpx.Client:
    """Straight to vLLM as well: it shows that the test can tell, and what vLLM itself takes."""
    chosen: httpx.Client = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture(params=["close", "reset"])
def leave(request: pytest.FixtureRequest) -> Callable[[socket.socket], None]:
    def left(connected: socket.socket) -> None:
        if request.param == "reset":
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connected.close()

    return left


@pytest.fixture
def freed(
    request: pytest.FixtureRequest, until: Until, record: Callable[..., None]
) -> Callable[[str, tuple[int, int], tuple[int, int]], None]:
    """Time how long vLLM takes from the first load to the second, and hold it to the promise."""

    def timed(moment: str, before: tuple[int, int], after: tuple[int, int]) -> None:
        way, how = request.node.callspec.params["towards"], request.node.callspec.params["leave"]
        change = f"{before[0]}/{before[1]} -> {after[0]}/{after[1]}"
        took = float("inf")
        try:
            took = until(*after, 15.0)
        finally:
            record("disconnect", moment, how, "straight" if way == "vllm" else "gateway", change, f"{took:.2f} s")
        assert took <= PROMISED

    return timed


Leave = Callable[[socket.socket], None]
Freed = Callable[[str, tuple[int, int], tuple[int, int]], None]


def test_in_the_middle_of_a_stream(towards: httpx.Client, leave: Leave, dial: Dial, until: Until, freed: Freed) -> None:
    connected = dial(towards, asking(SHORT, stream=True))
    received = b""
    while received.count(b"data: ") < 4:
        more = connected.recv(65536)
        assert more, received
        received += more
    until(1, 0, 10.0)
    leave(connected)
    freed("in the middle of a stream", (1, 0), (0, 0))


def test_while_a_whole_answer_is_made(
    towards: httpx.Client, leave: Leave, dial: Dial, until: Until, freed: Freed, gauge: Gauge
) -> None:
    made = gauge("generation_tokens_total")
    connected = dial(towards, asking(SHORT, stream=False))
    until(1, 0, 10.0)
    for _ in range(1000):
        if gauge("generation_tokens_total") > made + 3:
            break
    assert gauge("num_requests_running") == 1
    assert_nothing_came(connected)
    leave(connected)
    freed("while a whole answer is made", (1, 0), (0, 0))


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_before_the_first_token(
    towards: httpx.Client, leave: Leave, dial: Dial, until: Until, freed: Freed, gauge: Gauge, *, stream: bool
) -> None:
    made = gauge("generation_tokens_total")
    connected = dial(towards, asking(LONG, stream=stream))
    until(1, 0, 10.0)
    assert gauge("generation_tokens_total") == made
    assert_nothing_came(connected)
    leave(connected)
    freed(f"before the first token ({'stream' if stream else 'whole'})", (1, 0), (0, 0))


def test_in_the_queue_of_a_full_engine(
    vllm: httpx.Client, towards: httpx.Client, leave: Leave, dial: Dial, until: Until, freed: Freed
) -> None:
    dial(vllm, asking(SHORT, stream=True))
    until(1, 0, 10.0)
    connected = dial(towards, asking(SHORT, stream=True))
    until(1, 1, 10.0)
    assert_nothing_came(connected)
    leave(connected)
    freed("in the queue of a full engine", (1, 1), (1, 0))


def assert_nothing_came(connected: socket.socket) -> None:
    """No event and no answer yet; vLLM itself sends the head of a stream early."""
    connected.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        early = connected.recv(65536)
        assert early, "the connection was closed"
        assert early.endswith(b"\r\n\r\n"), early
    connected.setblocking(True)
