"""What the rows of the table of faults share: a gateway before two fake backends, one of which is told to fail."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import psutil
from faults.volley import Exchange, percentile, post
from harness.fake_backend import Fake, fake
from harness.gateway_process import TRUNKLINE, GatewayProcess, Issued, gateway_process
from harness.redis_server import free_port

from gateway.admin import Registrar
from gateway.core.clock import SystemClock
from gateway.store.local import LocalStore

HASTY = {"connect": "1s", "first_output": "3s", "whole": "3s", "idle": "3s"}
"""For targets that say nothing; those that are well answer sooner on a busy machine, too."""
CLIENTS = 16
ANSWER = " ".join(f"w{number}" for number in range(1, 17))


class Place:
    """A gateway whose routes, one for each fault, lead to `bad` and to `good`, or to `bad` alone."""

    def __init__(self, gateway: GatewayProcess, bad: Fake, good: Fake, issued: Issued) -> None:
        self.gateway, self.bad, self.good, self.issued = gateway, bad, good, issued

    async def ask(self, model: str, count: int, at_once: int = CLIENTS, **fields: Any) -> list[Exchange]:
        """So many calls, so many at once, each on a connection of its own."""
        return await asked(self.gateway.port, self.issued.secret, model, count, at_once, **fields)

    @property
    def upstream_calls(self) -> int:
        """Calls that came to both backends so far."""
        return int(self.bad.tells()["calls"] + self.good.tells()["calls"])


async def asked(
    port: int, secret: str, model: str, count: int, at_once: int = CLIENTS, **fields: Any
) -> list[Exchange]:
    """So many calls, so many at once; they differ, so that a policy may tell them apart."""
    turns, done = iter(range(count)), list[Exchange]()

    async def client() -> None:
        for turn in turns:
            body = {"model": model, "messages": [{"role": "user", "content": f"Call {turn}"}], **fields}
            call = Exchange(post(json.dumps(body).encode(), secret))
            await call.join(port)
            call.send()
            await asyncio.wait([call.end], timeout=120)
            call.leave()
            done.append(call)

    await asyncio.gather(*(client() for _ in range(min(at_once, count))))
    return done


def events(call: Exchange) -> list[bytes]:
    """The data of each event of a streamed answer, its chunks taken off."""
    return [event[6:] for event in plain(call).split(b"\n\n") if event.startswith(b"data: ")]


def plain(call: Exchange) -> bytes:
    """The body without its chunks."""
    if "transfer-encoding" not in call.headers:
        return call.body
    made, rest = b"", call.body
    while rest:
        line, _, rest = rest.partition(b"\r\n")
        if not line or not (size := int(line, 16)):
            break
        made, rest = made + rest[:size], rest[size + 2 :]
    return made


def said(call: Exchange) -> str:
    """The text of an answer, streamed or whole."""
    body = plain(call)
    if body.startswith(b"{"):
        whole = json.loads(body)
        return str(whole["choices"][0]["message"]["content"] if "choices" in whole else whole)
    parts = [json.loads(data) for data in events(call) if data.startswith(b"{")]
    return "".join(choice["delta"].get("content", "") for part in parts for choice in part.get("choices") or ())


def code(call: Exchange) -> str:
    """The code of the error that a call ended in, as its status or its last event; empty: in none."""
    body = plain(call)
    last = body if body.startswith(b"{") else next(reversed(events(call)), b"{}")
    error = json.loads(last).get("error", {}) if last.startswith(b"{") else {}
    return str(error.get("code", ""))


def statuses(calls: Sequence[Exchange]) -> dict[int, int]:
    return dict(Counter(call.status for call in calls))


def milliseconds(seconds: Sequence[float], share: float) -> str:
    return f"{1000 * percentile(list(seconds), share):.0f} ms"


def resident(gateway: GatewayProcess) -> int:
    """Bytes of memory of the gateway and its workers."""
    main = psutil.Process(gateway.process.pid)
    return sum(each.memory_info().rss for each in (main, *main.children(recursive=True)))


@contextmanager
def place(names: Sequence[str], redis_url: str | None = None, **route: Any) -> Iterator[Place]:
    """A route of each name with both backends by turns, and one called NAME-alone with the bad one only."""
    with fake("vllm", "bad") as bad, fake("vllm", "good") as good:
        routes = {}
        for name in names:
            pair = [{**each.spec(), "name": f"{name}-{each.name}"} for each in (bad, good)]
            alone = [{**bad.spec(), "name": f"{name}-alone"}]
            common = {"policy": "round-robin", "timeouts": HASTY, **route}
            routes |= {name: {"targets": pair, **common}, f"{name}-alone": {"targets": alone, **common}}
        with gateway_process(
            json.dumps({"routes": routes, "bodies": {"event": "1MiB"}}), redis_url=redis_url
        ) as gateway:
            yield Place(gateway, bad, good, gateway.issue())


async def key_in(folder: Path) -> str:
    """A key in the file of a gateway that has not started yet."""
    store = LocalStore(folder / "keys.json")
    await store.open()
    try:
        return (await Registrar(store.records, {0: b""}, SystemClock(), "test").create("test"))[1]
    finally:
        await store.close()


@contextmanager
def odd_gateway(table: dict[str, Any], folder: Path, prefix: Sequence[str], log: str = "log") -> Iterator[int]:
    """A gateway that is started through another command, in `folder`, where it also writes its log; its port."""
    port = free_port()
    (folder / "routing.yaml").write_text(json.dumps(table))
    command = [*prefix, *TRUNKLINE, "serve", "routing.yaml", "--port", str(port), "--state", "keys.json"]
    environment = {**os.environ, "TMPDIR": str(folder)}  # whoever is killed leaves its temporary files there
    with (folder / log).open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=environment)
    try:
        yield port
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def status(port: int, secret: str) -> int:
    """Of one call; 0: nobody answers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})
    headers = {"authorization": f"Bearer {secret}", "content-type": "application/json"}
    try:
        connection.request("POST", "/v1/chat/completions", body, headers)
        return connection.getresponse().status
    except (OSError, HTTPException):
        return 0
    finally:
        connection.close()


async def until(look: Any, what: str, seconds: float = 15) -> Any:
    """What `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)
    return found
