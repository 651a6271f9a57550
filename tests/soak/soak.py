"""`make soak`: gateways under mixed calls and mixed chaos for minutes; then nothing may be left, lost or grown.

Three gateways of two workers each share one Redis behind a link. Clients of every behaviour call routes whose targets
are fake backends that misbehave, with and without `resume`, `hold`, queues, `max_inflight`, fallbacks, retries; and
routes whose target is always well, with keys whose limits are reached. Every second or two something happens: Redis is
frozen, late, cut off; a worker is killed; a gateway is replaced; a target lies, hangs, dies; the table changes or is
broken; keys come and go. Then chaos ends, calls end, and the invariants are checked. Ctrl-C ends the run early and
checks them for what ran. Exit code 1: at least one is violated. Everything is on loopback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # tests import each other by their folder; this one's own is a package, not a script
    sys.path[0] = str(Path(__file__).parents[1])

from rich.console import Console
from soak.callers import CLIENTS, Callers
from soak.chaos import Chaos
from soak.drift import Drift
from soak.events import events
from soak.invariants import Row, Soaked, check
from soak.peaks import Peaks
from soak.place import Place
from soak.show import Progress, events_of, print_report
from soak.tally import Tally

WARM_SHARE, WARM_SECONDS = 0.2, 60.0
"""This part of a run warms it up, and at most so long."""
REST_SECONDS = 2.0
"""Of rest before descriptors are counted."""
PLAIN_WIDTH = 150
"""Columns where there is no terminal."""


class Soak:
    """One run."""

    def __init__(self, seconds: float, seed: int, gateways: int, *, quiet: bool = False, calm: bool = False) -> None:
        self.seconds, self.seed = seconds, seed
        self.place, self.tally, self.chaos = Place(gateways), Tally(), Chaos(seed)
        self.console = Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)
        self.over = asyncio.Event()
        """Set to end it early."""
        self._quiet, self._calm = quiet, calm
        self.ended = time.monotonic()
        """When the last call had ended."""
        self.memory: list[tuple[str, ...]] = []
        """The table of what the first gateway's workers took."""

    async def run(self) -> list[Row]:
        """From the first process to the last invariant."""
        try:
            if not self._quiet:
                self.console.print(f"seed {self.seed}: starting {self.place.count} gateways", highlight=False)
            await self.place.open()
            return await self._run()
        finally:
            await self.place.close()

    async def _run(self) -> list[Row]:
        place, self.tally.began = self.place, time.monotonic()
        peaks, drift = Peaks(place.steady), Drift(place, self.tally.by_boot)
        callers = Callers(place, self.tally, self.chaos, self.seed)
        shown = Progress(self.console, self.tally, self.chaos, self.seconds, quiet=self._quiet)
        happening = [] if self._calm else events(place, peaks, self.chaos.kills)
        try:
            await drift.start()
            callers.start()
            warming = min(WARM_SHARE * self.seconds, WARM_SECONDS)
            for seconds in (warming, self.seconds - warming):
                self.chaos.start(happening)
                await self._pass(seconds, shown)
                shown.show("chaos ends, calls end")
                await self.chaos.stop()
                await asyncio.to_thread(place.mend)
                await callers.pause()
                await asyncio.sleep(REST_SECONDS)
                if not drift.before:
                    drift.remember()
                    warm = time.monotonic()
                    callers.open.set()
            self.ended = time.monotonic()
            await callers.stop()
            drift.stop()
            self.memory = drift.table(warm)
            shown.show("the invariants are checked")
            return await check(Soaked(place, self.tally, self.chaos, drift, peaks, warm))
        finally:
            drift.stop()
            shown.stop()

    async def _pass(self, seconds: float, shown: Progress) -> None:
        until = time.monotonic() + seconds
        while not self.over.is_set() and time.monotonic() < until:
            shown.show()
            await asyncio.sleep(0.2)

    def report(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Everything in figures."""
        tally, chaos = self.tally, self.chaos
        seconds = self.ended - tally.began
        violated = [row.name for row in rows if not row.ok]
        said = f"{len(violated)} violated: {', '.join(violated)}" if violated else "all invariants hold"
        return {
            "seed": self.seed, "seconds": round(seconds, 1), "calls": tally.calls,
            "calls_a_second": round(tally.calls / seconds, 1) if seconds else 0,
            "endings": dict(tally.endings), "statuses": dict(sorted(tally.statuses.items())),
            "kinds": {kind: dict(found) for kind, found in tally.by_kind.items()},
            "chaos": events_of(chaos),
            "memory": self.memory,
            "invariants": [row._asdict() for row in rows],
            "wrong": list(tally.wrong),
            "summary": f"{tally.calls:,} calls of {CLIENTS} clients in {seconds:.0f} s, "
            f"{tally.calls / max(1, seconds):.0f} a second, {len(chaos.happened)} events, seed {self.seed}; {said}",
        }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    assert __doc__ is not None
    parser = argparse.ArgumentParser("make soak", description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="how long chaos and calls go on (20)")
    parser.add_argument("--seed", type=int, default=None, help="of all chance (the time)")
    parser.add_argument(
        "--gateways", type=int, default=3, help="of two workers each; 1: none is killed or replaced (3)"
    )
    parser.add_argument("--calm", action="store_true", help="without chaos: to see what it changes")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and nothing else")
    asked = parser.parse_args(arguments)
    seed = int(time.time()) if asked.seed is None else asked.seed
    made = partial(Soak, 60 * asked.minutes, seed, asked.gateways, quiet=asked.json, calm=asked.calm)
    soak, rows = asyncio.run(_soak(made))
    report = soak.report(rows)
    if asked.json:
        print(json.dumps(report))
    else:
        print_report(soak.console, report, rows, soak.tally.wrong)
    return 0 if all(row.ok for row in rows) else 1


async def _soak(made: Callable[[], Soak]) -> tuple[Soak, list[Row]]:
    """Processes are started by threads that block SIGINT, and inherit that: Ctrl-C is for the soak alone."""
    loop = asyncio.get_running_loop()
    block = (signal.SIG_BLOCK, {signal.SIGINT})
    loop.set_default_executor(ThreadPoolExecutor(16, initializer=signal.pthread_sigmask, initargs=block))
    soak = made()
    loop.add_signal_handler(signal.SIGINT, soak.over.set)
    return soak, await soak.run()


if __name__ == "__main__":
    sys.exit(main())
