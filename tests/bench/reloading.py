"""How long a table of a thousand routes takes to be in force, and whether calls feel it.

A gateway of one worker serves the table on its core, with Redis and metrics on; the stub answers for all its targets,
each under a path of its own. Calls go to all routes in turn, so many a second by the clock, whatever is still under
way. Every answer names the table it was given by: the first that names the new one ends a reload, and nothing has to be
asked of the gateway meanwhile. In the end its metrics must name the same table.

A table is written beside the old one and renamed into its place. Each has other weights in a tenth of its routes than
the one before, one route that was not there and one that is there no more. Every second time nothing else is done: the
gateway looks at the file twice a second, and reads it when it is the same at two looks. The other times SIGHUP follows
at once: what is left is to read, to check and to swap.

Calls that begin from then on until shortly after the swap are compared with those before: p50, p99 and the slowest.
What reads the table is a process of its own; it has only the gateway's core, as in a container of one core.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

import uvloop
from caller import Connection
from calls import Call, chat
from processes import NotReady, Server, free_port, get

ROUTES = 1_000
TENTH = 10
CALLS_A_SECOND = 50.0
QUIET_SECONDS, AFTER_SECONDS = 2.0, 0.25
LOOK_SECONDS = 0.002
READY_SECONDS, RELOAD_SECONDS = 60.0, 30.0
CONFIG = re.compile(rb"\r\nx-trunkline-config:\s*([0-9a-f]+)", re.IGNORECASE)
IN_FORCE = re.compile(r'^trunkline_config_info\{hash="([0-9a-f]+)"\} 1', re.MULTILINE)


Tick = Callable[[int], None]


class Stalled(Exception):
    """A table did not come into force."""


@dataclass(slots=True)
class Outcome:
    """What became of the calls."""

    calls: int = 0
    failures: int = 0
    first_fault: str | None = None

    def count(self, fault: str | None) -> None:
        self.calls += 1
        if fault is not None:
            self.failures += 1
            self.first_fault = self.first_fault or fault


@dataclass(slots=True)
class Reloads:
    """Seconds until tables were in force, and seconds of calls."""

    asked: list[float] = field(default_factory=list)
    """From SIGHUP."""
    watched: list[float] = field(default_factory=list)
    """From the renaming of the file."""
    quiet: list[float] = field(default_factory=list)
    """Of calls that began before."""
    reloading: list[float] = field(default_factory=list)
    """Of calls that began during a reload."""

    def figures(self) -> dict[str, list[float]]:
        """By name; latencies in milliseconds."""
        before, meanwhile = summary(self.quiet), summary(self.reloading)
        milliseconds = {
            f"{when}_{name}": [value * 1e3]
            for when, values in (("quiet", before), ("reloading", meanwhile))
            for name, value in zip(("p50", "p99", "max"), values, strict=True)
        }
        ratio = meanwhile[1] / before[1]
        return {"reload": self.asked, "reload_watched": self.watched, "reload_step": [ratio], **milliseconds}


def summary(seconds: Sequence[float]) -> tuple[float, float, float]:
    """p50, p99 and the longest."""
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return cuts[49], cuts[98], max(seconds)


def table(port: int, version: int) -> str:
    """The table of this version, of so many routes as all others."""
    numbers = [number for number in range(ROUTES) if number != 1 + version % TENTH]
    return "routes:\n" + "".join(_route(port, number, version) for number in (*numbers, ROUTES + version))


def _route(port: int, number: int, version: int) -> str:
    weight = 1 + version % 7 if number % TENTH == 0 else 1
    url = f"http://127.0.0.1:{port}/{number}"
    targets = "".join(
        f'      - {{name: replica-{number}-{letter}, backend: openai, url: "{url}/{letter}", weight: {weight}}}\n'
        for letter in "ab"
    )
    return f"  model-{number}:\n    aliases: [alias-{number}]\n    targets:\n{targets}"


class Answer(Connection):
    """A connection that can tell by which table its last call was answered."""

    def config(self) -> str:
        found = CONFIG.search(self.reply)
        return found[1].decode() if found else ""


class Caller:
    """Calls by the clock."""

    def __init__(self, port: int, secret: str, calls: Sequence[Call]) -> None:
        self.outcome = Outcome()
        self.seconds: list[float] = []
        """Where the times of calls go that begin now."""
        self.config = ""
        """The table by which a call was answered last."""
        self._port, self._secret, self._calls = port, secret, cycle(calls)
        self._pool: list[Answer] = []
        self._under_way: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            call = asyncio.create_task(self._call(next(self._calls), self.seconds))
            self._under_way.add(call)
            call.add_done_callback(self._under_way.discard)
            due += 1 / CALLS_A_SECOND
            await asyncio.sleep(due - loop.time())

    async def finish(self) -> None:
        """Wait for the calls under way."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=RELOAD_SECONDS)
        for connection in self._pool:
            connection.close()

    async def _call(self, call: Call, seconds: list[float]) -> None:
        started = time.perf_counter()  # connecting is part of a call that finds no free connection
        try:
            connection = await self._connection()
            fault = await connection.ask(call, self._secret)
        except OSError as error:
            return self.outcome.count(str(error))
        seconds.append(time.perf_counter() - started)
        self.outcome.count(fault)
        self.config = connection.config() or self.config
        if connection.is_open:
            self._pool.append(connection)
        return None

    async def _connection(self) -> Answer:
        while self._pool:
            if (connection := self._pool.pop()).is_open:
                return connection
        _, connection = await asyncio.get_running_loop().create_connection(Answer, "127.0.0.1", self._port)
        return connection


class Reloading:
    """Replaces the table of a gateway that is being called."""

    def __init__(self, server: Server, routing: Path, stub_port: int, caller: Caller, tick: Tick) -> None:
        self._server, self._routing, self._stub_port = server, routing, stub_port
        self._caller, self._tick = caller, tick
        self._pid = next(each.pid for each in server.tree() if each.pid == each.session)
        self.reloads = Reloads()

    async def run(self, reloads: int) -> None:
        """Quiet, a reload, and so on."""
        calling = asyncio.create_task(self._caller.run())
        try:
            for version in range(1, reloads + 1):
                self._caller.seconds = self.reloads.quiet
                await asyncio.sleep(QUIET_SECONDS)
                await self._reload(version, asked=version % 2 == 0)
                self._tick(version)
        finally:
            calling.cancel()
            await self._caller.finish()

    async def _reload(self, version: int, *, asked: bool) -> None:
        text = table(self._stub_port, version)
        fresh = self._routing.with_suffix(".fresh")
        fresh.write_text(text)
        self._caller.seconds = self.reloads.reloading
        started = time.perf_counter()
        fresh.replace(self._routing)
        if asked:
            os.kill(self._pid, signal.SIGHUP)
        wanted = config_hash(text)
        while self._caller.config != wanted:
            if time.perf_counter() - started > RELOAD_SECONDS:
                raise Stalled(f"no reload in {RELOAD_SECONDS:.0f} s\n{self._server.last_words()}")
            await asyncio.sleep(LOOK_SECONDS)
        (self.reloads.asked if asked else self.reloads.watched).append(time.perf_counter() - started)
        await asyncio.sleep(AFTER_SECONDS)


def is_settled(port: int) -> bool:
    """Whether the gateway has found all targets up: to look at so many for the first time takes a while."""
    said = get(port, "/ready")
    return said is not None and all(state == "up" for state in json.loads(said)["targets"].values())


def config_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Place:
    """Where and how the gateway runs: on which core, before which stub, with which Redis and key."""

    command: Path
    folder: Path
    core: int
    stub_port: int
    redis_url: str
    secret: str

    def measure(self, reloads: int, tick: Tick) -> tuple[Reloads, Outcome]:
        """Serve the first table, and replace it so often. Raises `NotReady` and `Stalled`."""
        routing, port = self.folder / "routes.yaml", free_port()
        routing.write_text(table(self.stub_port, 0))
        numbers = range(0, ROUTES, TENTH)
        caller = Caller(port, self.secret, [chat(model=f"alias-{number}") for number in numbers])
        with Server(self._words(routing, port), self.core, self.folder / "routes.log", self._environment()) as server:
            server.wait_for(lambda: is_settled(port), READY_SECONDS, lambda: tick(0))
            reloading = Reloading(server, routing, self.stub_port, caller, tick)
            uvloop.run(reloading.run(reloads))
            found = IN_FORCE.findall(get(port, "/metrics") or "")
        if found != [config_hash(table(self.stub_port, reloads))]:
            raise NotReady(f"metrics say {found} is in force, answers say {caller.config}")
        return reloading.reloads, caller.outcome

    def _words(self, routing: Path, port: int) -> list[str]:
        words = [self.command, "serve", routing, "--host", "127.0.0.1", "--port", port, "--workers", 1]
        return [str(word) for word in (*words, "--redis-url", self.redis_url)]

    def _environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return {**kept, "PYTHONPYCACHEPREFIX": str(self.folder / "compiled")}
