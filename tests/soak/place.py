"""Where the soak takes place: a Redis behind a link, targets, and gateways that share them."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
from faults.fleet import Fleet
from harness.gateway_process import GatewayProcess
from harness.link import Link, link
from harness.redis_server import RedisServer, redis_server
from soak.fakes import Fake, Steady
from soak.keys import Keys
from soak.table import SPOILED, table

WORKERS = 2
"""Serving processes of each gateway."""
READY_SECONDS = 60.0
TOKENS, INTERVAL = 24, 0.01
"""Words of an answer, and seconds between two of them."""
LONG = 3000
"""Words of an answer that no socket buffer holds."""
STEADY_TOKENS = 8
ENVIRONMENT = {"TRUNKLINE_DRAIN_ACCEPT": "1", "TRUNKLINE_GRACE": "12"}


class Gateways(Fleet):
    """Gateways that come and go. The first one is never touched: it shows what grows with time.

    `url` is the Redis itself, for orders of ours; `behind` is where the gateways find it.
    """

    def __init__(self, stack: ExitStack, url: str, behind: str) -> None:
        super().__init__(stack, {}, url, None, WORKERS)
        self.text, self._behind = "", behind
        self.rotation: list[GatewayProcess] = []
        """Those that new calls are sent to."""
        self.retired: list[tuple[GatewayProcess, int]] = []
        """Those that were told to stop, with their exit codes."""

    def start(self) -> GatewayProcess:
        """One more, with the table in force, not waited for."""
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        made = GatewayProcess(self.text, folder, redis_url=self._behind, workers=WORKERS, env=ENVIRONMENT)
        self._stack.callback(made.stop)
        self.gateways.append(made)
        return made

    def join(self) -> None:
        """One more, ready, in the rotation."""
        made = self.start()
        made.wait_ready(READY_SECONDS)
        self.rotation.append(made)

    def retire(self, gateway: GatewayProcess) -> None:
        """Stop it as an operator does; it has left the rotation by itself or will soon."""
        self.retired.append((gateway, gateway.stop()))
        self.gateways.remove(gateway)

    def reload(self, text: str) -> None:
        """Have all serve this table."""
        self.text = text
        for gateway in list(self.gateways):
            fresh = gateway.routing.with_name("fresh.yaml")
            fresh.write_text(text)
            fresh.replace(gateway.routing)  # one that is starting must not read a part

    @property
    def logs(self) -> list[str]:
        """What each has logged, the retired ones too."""
        return [each.stderr() for each in (*self.gateways, *(gateway for gateway, _ in self.retired))]


def workers(gateway: GatewayProcess) -> list[psutil.Process]:
    """The living processes of a gateway that serve calls."""
    found = []
    for child in psutil.Process(gateway.process.pid).children():
        with suppress(psutil.Error):  # it has just died
            if "resource_tracker" not in " ".join(child.cmdline()):
                found.append(child)
    return found


class Place:
    """Everything that runs. Starts and stops block: they belong into a thread."""

    redis: RedisServer
    link: Link
    fleet: Gateways
    keys: Keys

    def __init__(self, gateways: int) -> None:
        self._stack, self.count = ExitStack(), gateways
        self.spoiled = {name: Fake(name, name.split("-")[0], TOKENS, INTERVAL) for name in SPOILED}
        self.long = Fake("openai-long", "openai", LONG, 0.0)
        self.steady = Steady(STEADY_TOKENS, 0.02)

    @property
    def fakes(self) -> list[Fake]:
        return [*self.spoiled.values(), self.long]

    async def open(self) -> None:
        await self.steady.start()
        await asyncio.to_thread(self._start)
        self.keys = Keys(self.fleet)
        await self.keys.start()

    def _start(self) -> None:
        self.redis = self._stack.enter_context(redis_server())
        self.link = self._stack.enter_context(link(self.redis.port))
        for fake in self.fakes:
            self._stack.callback(fake.stop)
            fake.start()
        self.fleet = Gateways(self._stack, self.redis.url, f"redis://127.0.0.1:{self.link.port}/0")
        self.fleet.text = self.table(0)
        for _ in range(self.count):
            self.fleet.join()

    def table(self, turn: int) -> str:
        urls = {fake.name: fake.url for fake in self.fakes}
        return table({**urls, "steady": self.steady.url}, turn)

    def mend(self) -> None:
        """Take back all that chaos may have left broken."""
        self.redis.thaw()
        self.link.restore()
        for fake in self.fakes:
            fake.start()
            fake.thaw()
            fake.order("")

    async def close(self) -> None:
        await asyncio.to_thread(self._stop)
        await self.steady.close()

    def _stop(self) -> None:
        if hasattr(self, "redis"):
            self.redis.thaw()
        if hasattr(self, "fleet") and self.fleet.gateways:
            self.fleet.stop()
        self._stack.close()
