"""The ledger against the engines' own token counters: what one side has counted and the other has not is drift.

Both sides are compared since the first look at a target, for they have not begun at the same time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from gateway.store import Ledger, StoreDown

log = logging.getLogger("trunkline.metering")

INTERVAL_SECONDS = 60.0
ALARM_RATIO = 0.05
ALARM_ROUNDS = 3
"""A drift is told in the log when it was above the ratio for so many rounds running."""
DIRECTIONS = ("in", "out")

Tokens = tuple[int, int]
"""Prompt and completion tokens."""


class _Server:
    """One server with the targets that it serves: its counters do not tell them apart."""

    def __init__(self, targets: list[str]) -> None:
        self.targets = targets
        self.name = targets[0]
        self._began: tuple[Tokens, Tokens] | None = None
        self._last: tuple[Tokens, Tokens] = ((0, 0), (0, 0))
        self._rounds = 0

    def compare(self, engine: Tokens, ledger: Tokens) -> tuple[Tokens, Tokens]:
        """What each side has counted since the first look, or since one of them began anew."""
        if self._began is None or _fell(engine, self._last[0]) or _fell(ledger, self._last[1]):
            self._began = engine, ledger
        self._last = engine, ledger
        return _since(engine, self._began[0]), _since(ledger, self._began[1])

    def watch(self, ratio: float) -> None:
        """Tell the log once when the sides have come apart, and once when they are together again."""
        if abs(ratio) > ALARM_RATIO:
            self._rounds += 1
            if self._rounds == ALARM_ROUNDS:
                whose = "engine" if ratio > 0 else "usage ledger"
                log.warning("target %s: the %s has counted %.0f %% more tokens", self.name, whose, 100 * abs(ratio))
            return
        if self._rounds >= ALARM_ROUNDS:
            log.warning("target %s: engine and usage ledger agree again", self.name)
        self._rounds = 0


class Reconciler:
    """Compares once a minute, in every worker; what it cannot see in a round it leaves as it was."""

    def __init__(
        self,
        targets: Callable[[], Mapping[str, str]],
        counters: Callable[[str], Awaitable[Tokens | None]],
        ledger: Ledger,
        drift: Callable[[str, str, int, float], None],
        *,
        interval: float = INTERVAL_SECONDS,
    ) -> None:
        """`targets` gives names with their servers' URLs, of the table in force; `counters` asks a target's engine;
        `drift` is told, for a target and a direction, the tokens that the engine has counted more, and their part."""
        self._targets, self._known = targets, dict[tuple[str, ...], _Server]()
        self._counters, self._ledger, self._drift, self._interval = counters, ledger, drift, interval
        self._task: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Start to compare."""
        self._task = asyncio.create_task(self._run(), name="reconcile")

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            await self.round()
            await asyncio.sleep(self._interval)

    async def round(self) -> None:
        """Look at every engine and at the ledger once."""
        servers = self._servers()
        seen = await asyncio.gather(*(self._look(server.name) for server in servers))
        try:
            counted = await self._ledger.by_target()
        except StoreDown:
            return
        for server, engine in zip(servers, seen, strict=True):
            if engine is None:
                continue
            pairs = [counted.get(name, (0, 0)) for name in server.targets]
            mine = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
            ratios = []
            sides = zip(*server.compare(engine, mine), strict=True)
            for direction, (theirs, ours) in zip(DIRECTIONS, sides, strict=True):
                ratios.append((theirs - ours) / max(theirs, ours, 1))
                self._drift(server.name, direction, theirs - ours, ratios[-1])
            server.watch(max(ratios, key=abs))

    def _servers(self) -> list[_Server]:
        """The servers of the table in force. One whose targets are others than before is begun anew."""
        names: dict[str, list[str]] = {}
        for name, url in self._targets().items():
            names.setdefault(url.rstrip("/"), []).append(name)
        self._known = {tuple(each): self._known.get(tuple(each)) or _Server(each) for each in names.values()}
        return list(self._known.values())

    async def _look(self, target: str) -> Tokens | None:
        try:
            return await self._counters(target)
        except Exception as error:  # an adapter is anybody's code
            log.error("target %s: its counters cannot be read: %s", target, type(error).__name__)
            return None


def _fell(now: Tokens, before: Tokens) -> bool:
    return now[0] < before[0] or now[1] < before[1]


def _since(now: Tokens, began: Tokens) -> Tokens:
    return now[0] - began[0], now[1] - began[1]
