"""A real vLLM and the gateway in front of it, started once for all tests of this folder; and the table at the end.

TEST_VLLM_URL takes a running vLLM (started by `environment.py serve`) instead of starting one.
TEST_VLLM_THROUGH takes what stands at this address for the gateway; `direct` takes vLLM itself, which tells how
repeatable vLLM's own answers are.
TEST_VLLM_REPLICAS takes two that run (`environment.py serve PORT replica CONTEXT`, contexts 2048 and 1536), URLs with a
space between; the test that kills one is skipped.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest
from harness.gateway_process import gateway_process
from harness.replicas import CONTEXTS, Replicas
from harness.vllm_server import VLLMServer, client, metric, vllm_server

Row = tuple[str, ...]
TABLES = pytest.StashKey[dict[str, list[Row]]]()
HEADINGS: dict[str, Row] = {
    "transparency": ("case", "status", "bytes", "events", "gateway against vLLM"),
    "endpoints": ("case", "status", "bytes", "events", "gateway against vLLM"),
    "routing": ("policy", "calls", "calls 1 + 2", "hits 1", "hits 2", "hits both", "mean TTFT", "p90 TTFT"),
    "a killed replica": ("what became of the calls", "calls"),
    "a stopped engine core": ("round", "out after", "answered", "moved", "cut and told", "lost"),
    "resume": ("two vLLMs under streams", "how many"),
    "disconnect": ("client leaves", "how", "which way", "running/waiting", "idle after"),
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "vllm: needs the environment that `make test-vllm` sets up")
    tables: dict[str, list[Row]] = {title: [] for title in HEADINGS}
    config.stash[TABLES] = tables


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for title, rows in config.stash[TABLES].items():
        if not rows:
            continue
        terminalreporter.section(title)
        table = [HEADINGS[title], *rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            terminalreporter.write_line(line.rstrip())


@pytest.fixture(scope="session")
def record(pytestconfig: pytest.Config) -> Callable[..., None]:
    """Add a row to the table of this title."""
    return lambda title, *cells: pytestconfig.stash[TABLES][title].append(tuple(map(str, cells)))


@pytest.fixture(scope="session")
def tell(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Write a line to the terminal while pytest captures."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    reporter = pytestconfig.pluginmanager.getplugin("terminalreporter")
    assert capture is not None and reporter is not None

    def line(text: str) -> None:
        with capture.global_and_fixture_disabled():
            reporter.write_line(text)

    return line


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory, tell: Callable[[str], None]) -> Iterator[httpx.Client]:
    """vLLM itself."""
    if url := os.environ.get("TEST_VLLM_URL"):
        with client(url) as ours:
            yield ours
        return
    tell("vLLM is starting: this takes a minute or two")
    with vllm_server(tmp_path_factory.mktemp("vllm")) as started:
        started.wait_ready(tell)
        yield started.client


@pytest.fixture(scope="session")
def replicas(tmp_path_factory: pytest.TempPathFactory, tell: Callable[[str], None]) -> Iterator[Replicas]:
    """Two vLLMs with small prefix caches, whose contexts differ."""
    if urls := os.environ.get("TEST_VLLM_REPLICAS"):
        one, other = (VLLMServer(url) for url in urls.split())
        with one.client, other.client:
            yield one, other
        return
    tell("two more vLLMs are starting")
    with ExitStack() as stack:
        long, short = (
            stack.enter_context(vllm_server(tmp_path_factory.mktemp("replica"), "replica", str(context)))
            for context in CONTEXTS
        )
        for started in (long, short):
            started.wait_ready(tell)
        yield long, short


@pytest.fixture(scope="session")
def gateway(vllm: httpx.Client) -> Iterator[httpx.Client]:
    """The gateway in front of `vllm`, with a key in the client's headers."""
    through = os.environ.get("TEST_VLLM_THROUGH")
    if through:
        with client(str(vllm.base_url) if through == "direct" else through) as ours:
            yield ours
        return
    target = {"name": "vllm-a", "backend": "vllm", "url": str(vllm.base_url)}
    limits = {"default": {"rpm": 100_000, "concurrency": 64}}
    table = json.dumps({"routes": {"smollm2-135m": {"targets": [target]}}, "limits": limits})  # JSON is YAML
    with gateway_process(table) as started:
        key = started.key()["secret"]
        with client(started.url, authorization=f"Bearer {key}") as ours:
            yield ours


@pytest.fixture
def dial() -> Iterator[Callable[[httpx.Client, dict[str, object]], socket.socket]]:
    """Send a chat call over a socket of its own, so that a test may leave when and how it likes."""
    opened = []

    def dialled(towards: httpx.Client, body: dict[str, object]) -> socket.socket:
        url, content = towards.base_url, json.dumps(body).encode()
        names = ("authorization", "accept-encoding")
        sent = {name: towards.headers[name] for name in names if name in towards.headers}
        sent |= {"host": url.netloc.decode(), "content-type": "application/json", "content-length": str(len(content))}
        head = "POST /v1/chat/completions HTTP/1.1\r\n" + "".join(f"{name}: {text}\r\n" for name, text in sent.items())
        connected = socket.create_connection((url.host, url.port), timeout=60)
        opened.append(connected)
        connected.sendall(head.encode() + b"\r\n" + content)
        return connected

    yield dialled
    for each in opened:
        each.close()


@pytest.fixture
def gauge(vllm: httpx.Client) -> Callable[[str], int]:
    """One of vLLM's own metrics, summed over its labels."""
    return lambda name: metric(vllm, name)


@pytest.fixture
def until(gauge: Callable[[str], int]) -> Callable[[int, int, float], float]:
    """Seconds until vLLM has this many running and waiting calls."""

    def awaited(running: int, waiting: int, limit: float) -> float:
        began = time.monotonic()
        while True:
            seen = gauge("num_requests_running"), gauge("num_requests_waiting")
            took = time.monotonic() - began
            if seen == (running, waiting):
                return took
            assert took < limit, f"vLLM has {seen} calls running, waiting after {took:.1f} s, not {running, waiting}"
            time.sleep(0.01)

    return awaited


@pytest.fixture
def idle(until: Callable[[int, int, float], float]) -> None:
    """Start from nothing: what the test before left running is that test's failure, not the next one's."""
    until(0, 0, 120.0)
