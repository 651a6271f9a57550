"""A real vLLM and the gateway in front of it, started once for all tests of this folder; and the table at the end.

TEST_VLLM_URL takes a running vLLM (started by `environment.py serve`) instead of starting one.
TEST_VLLM_THROUGH takes what stands at this address for the gateway; `direct` takes vLLM itself, which tells how
repeatable vLLM's own answers are.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

HERE = Path(__file__).parent
START_LIMIT = 240.0
MODEL = "smollm2-135m"

Row = tuple[str, ...]
TABLES = pytest.StashKey[dict[str, list[Row]]]()
HEADINGS: dict[str, Row] = {
    "transparency": ("case", "status", "bytes", "events", "gateway against vLLM"),
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


@contextmanager
def leashed(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command as a process group that ends with this block, or with this process."""
    line = [sys.executable, str(HERE / "leash.py"), *command]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("TRUNKLINE_", "PYTHON"))}
    with (
        log.open("wb") as sink,
        subprocess.Popen(
            line,
            stdin=subprocess.PIPE,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=clean,
            cwd=log.parent,
            start_new_session=True,  # Ctrl-C is pytest's business: it closes the pipe on its way out
        ) as process,
    ):
        yield process


def until_ready(
    url: str, process: subprocess.Popen[bytes], log: Path, tell: Callable[[str], None], limit: float = START_LIMIT
) -> None:
    began = time.monotonic()
    told = began
    with httpx.Client(trust_env=False, timeout=5) as client:
        while True:
            now = time.monotonic()
            if process.poll() is not None or now - began > limit:
                state = "ended" if process.poll() is not None else f"is not ready after {limit:.0f} s"
                end = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
                pytest.fail(f"the server for {url} {state}; {log} ends in:\n{end}", pytrace=False)
            try:
                if client.get(url).status_code == 200:
                    return tell(f"{url} answers after {now - began:.0f} s; log: {log}")
            except httpx.TransportError:
                pass
            if now - told > 15:
                told = now
                tell(f"waiting for {url}: {now - began:.0f} s")
            time.sleep(0.25)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def client(url: str, **headers: str) -> httpx.Client:
    # identity: the bytes compared are those the server made, not a compression of them
    return httpx.Client(base_url=url, headers={"accept-encoding": "identity", **headers}, timeout=120, trust_env=False)


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory, tell: Callable[[str], None]) -> Iterator[httpx.Client]:
    """vLLM itself."""
    if url := os.environ.get("TEST_VLLM_URL"):
        with client(url) as ours:
            yield ours
        return
    port, log = free_port(), tmp_path_factory.mktemp("vllm") / "vllm.log"
    tell("starting vLLM: about a minute")
    with leashed([sys.executable, str(HERE / "environment.py"), "serve", str(port)], log) as process:
        until_ready(f"http://127.0.0.1:{port}/health", process, log, tell)
        with client(f"http://127.0.0.1:{port}") as ours:
            yield ours


@pytest.fixture(scope="session")
def gateway(
    vllm: httpx.Client, tmp_path_factory: pytest.TempPathFactory, tell: Callable[[str], None]
) -> Iterator[httpx.Client]:
    """The gateway in front of `vllm`, with a key in the client's headers."""
    through = os.environ.get("TEST_VLLM_THROUGH")
    if through:
        with client(str(vllm.base_url) if through == "direct" else through) as ours:
            yield ours
        return
    folder = tmp_path_factory.mktemp("gateway")
    routing, state, log = folder / "routing.yaml", folder / "state", folder / "gateway.log"
    target = {"name": "vllm-a", "backend": "vllm", "url": str(vllm.base_url)}
    limits = {"default": {"rpm": 100_000, "concurrency": 64}}
    routing.write_text(json.dumps({"routes": {MODEL: {"targets": [target]}}, "limits": limits}))  # JSON is YAML
    trunkline = str(Path(sys.executable).with_name("trunkline"))
    create = [trunkline, "keys", "create", "--name", "vllm-test", "--state", str(state), "--json"]
    made = subprocess.run(create, check=True, stdout=subprocess.PIPE, cwd=folder, timeout=60)
    key = json.loads(made.stdout)["secret"]
    port = free_port()
    listen = ["--host", "127.0.0.1", "--port", str(port), "--state", str(state)]
    with leashed([trunkline, "serve", str(routing), *listen], log) as process:
        until_ready(f"http://127.0.0.1:{port}/ready", process, log, tell, limit=60)
        with client(f"http://127.0.0.1:{port}", authorization=f"Bearer {key}") as ours:
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

    def read(name: str) -> int:
        lines = vllm.get("/metrics").text.splitlines()
        return int(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"vllm:{name}{{")))

    return read


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
