"""Several real gateways on one Redis, and what tests do to them and read of them."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import psutil
from faults.volley import OUTPUT, PROMPT
from harness.gateway_process import TRUNKLINE, GatewayProcess, Issued
from harness.upstream import Script, Target, Upstream, answer, whole

from gateway.admin import Registrar
from gateway.core.clock import SystemClock
from gateway.core.types import Limit
from gateway.store.redis.store import RedisStore

T = TypeVar("T")
Env = Mapping[str, str]
ANSWER: Script = whole(answer(prompt=PROMPT, completion=OUTPUT))
"""Uses exactly what a call of `volley.chat` has reserved."""
LOST, FOUND = "limits are counted in this gateway only", "limits are shared again"
"""What a worker logs when it begins and when it ends to count on its own."""


class Fleet:
    """The gateways; `url` is the Redis of their limits, `records_url` that of their keys if it is another one."""

    def __init__(
        self,
        stack: ExitStack,
        table: dict[str, Any],
        url: str,
        records_url: str | None,
        workers: int,
        env: Env = MappingProxyType({}),
    ) -> None:
        self._stack, self._table, self.workers, self._env = stack, table, workers, env
        self.url, self.records_url = url, records_url
        self.gateways: list[GatewayProcess] = []

    @property
    def ports(self) -> list[int]:
        return [gateway.port for gateway in self.gateways]

    def start(self, trunkline: Sequence[str] = TRUNKLINE) -> GatewayProcess:
        """One more gateway, not waited for; `trunkline` is the command, of this or another version."""
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        records = {} if self.records_url is None else {"TRUNKLINE_RECORDS_URL": self.records_url}
        env = {**self._env, **records}
        gateway = GatewayProcess(
            json.dumps(self._table), folder, redis_url=self.url, workers=self.workers, env=env, trunkline=trunkline
        )
        self._stack.callback(gateway.stop)
        self.gateways.append(gateway)
        return gateway

    def stop(self) -> None:
        """Stopping takes seconds each: all at once."""
        with ThreadPoolExecutor(len(self.gateways)) as stoppers:
            list(stoppers.map(GatewayProcess.stop, self.gateways))

    async def administer(self, work: Callable[[Registrar], Awaitable[T]]) -> T:
        """Have a change made by the classes that the command line uses."""
        store = RedisStore(self.url, timeout=5, records_url=self.records_url)
        await store.open()
        try:
            async with asyncio.timeout(20):
                return await work(Registrar(store.records, {0: b""}, SystemClock(), "test"))
        finally:
            await store.close()

    async def issue(self, **options: Any) -> Issued:
        """A new key."""
        return Issued(*await self.administer(lambda registrar: registrar.create("test", **options)))

    async def set_tenant(self, id: str, limit: Limit) -> None:
        await self.administer(lambda registrar: registrar.set_tenant(id, limit=limit, labels={}))

    def logged(self, text: str) -> int:
        """How often the gateways have logged this."""
        return sum(gateway.stderr().count(text) for gateway in self.gateways)


def kill(gateway: GatewayProcess) -> None:
    """SIGKILL to the gateway and its workers: nothing is said to anybody any more."""
    supervisor = psutil.Process(gateway.process.pid)
    workers = supervisor.children(recursive=True)
    supervisor.kill()  # first, or it would start new ones
    for worker in workers:
        worker.kill()
    gateway.process.wait()
    psutil.wait_procs(workers, timeout=10)


def serving(upstream: Upstream, name: str) -> Target:
    """The target of this name, as new, using what calls reserve."""
    target = upstream.target(name)
    target.restore()
    target.script = ANSWER
    return target


def route(upstream: Upstream, at: str, name: str = "", **fields: Any) -> dict[str, Any]:
    """A route to the scripted target `at`, under a name of its own if others go there too; a token costs a micro."""
    target = {"name": name or at, "backend": "openai", "url": upstream.target(at).url}
    # A busy machine is not what is tested.
    calm = {"connect": "30s", "first_output": "30s", "whole": "30s", "idle": "60s"}
    return {"targets": [target], "price": {"input": 1, "output": 1}, "timeouts": calm, **fields}


@contextmanager
def fleet(
    table: dict[str, Any],
    url: str,
    *,
    gateways: int = 3,
    workers: int = 2,
    records_url: str | None = None,
    env: Env = MappingProxyType({}),
) -> Iterator[Fleet]:
    """So many gateways of so many workers each, ready, for as long as the block lasts."""
    with ExitStack() as stack:
        made = Fleet(stack, table, url, records_url, workers, env)
        try:
            for _ in range(gateways):
                made.start()
            with ThreadPoolExecutor(gateways) as waiters:
                list(waiters.map(lambda gateway: gateway.wait_ready(120), made.gateways))
            yield made
        finally:
            made.stop()
