"""What the gateway's processes take as time goes on: descriptors, and memory by the number of calls."""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections import Counter
from typing import NamedTuple

import psutil
from soak.place import Place, workers

SAMPLE_SECONDS = 1.0
MIB = 1024**2


class Sample(NamedTuple):
    """One look at a process."""

    at: float
    calls: int
    mib: float


class Drift:
    """Samples of the first gateway, which lives as long as the soak; `by_boot` counts calls by worker."""

    def __init__(self, place: Place, by_boot: Counter[str]) -> None:
        self._place, self._by_boot = place, by_boot
        self._processes = workers(place.fleet.gateways[0])
        self._boots: dict[int, str] = {}
        self.samples: dict[int, list[Sample]] = {process.pid: [] for process in self._processes}
        self._targets = {int(fake.url.rpartition(":")[2]) for fake in place.fakes}
        self._targets.add(int(place.steady.url.rpartition(":")[2]))
        self.before: dict[int, int] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Once each worker has told who it is."""
        while not self.samples.keys() <= self._boots.keys():
            told = self._place.redis.ask("HGETALL", "{tl}:places")
            self._boots = {int(text.split()[1]): boot for boot, text in told.items()}
            await asyncio.sleep(0.1)
        self._task = asyncio.create_task(self._run(), name="drift")

    def stop(self) -> None:
        """Look no more. Raises what went wrong in looking."""
        task, self._task = self._task, None
        if task is not None and not task.cancel():
            task.result()

    def rest(self) -> dict[int, int]:
        """Descriptors of each process of each gateway, by process id, without idle connections to targets."""
        found: dict[int, int] = {}
        for gateway in self._place.fleet.gateways:
            if gateway.process.poll() is not None:
                continue  # another row tells
            for process in (psutil.Process(gateway.process.pid), *workers(gateway)):
                pooled = [
                    each
                    for each in process.net_connections("tcp")
                    if each.status == psutil.CONN_ESTABLISHED and each.raddr and each.raddr.port in self._targets
                ]
                found[process.pid] = process.num_fds() - len(pooled)
        return found

    def remember(self) -> None:
        """What `rest` is now is what it must be at the end."""
        self.before = self.rest()

    def slopes(self, since: float) -> list[tuple[int, float, float]]:
        """Of each process: calls from `since` on, MiB per 1,000 calls by a straight line through the later half of
        the samples from then on, and MiB at the end."""
        found = []
        for samples in self.samples.values():
            later = [each for each in samples if each.at >= since]
            calls = later[-1].calls - later[0].calls if later else 0
            slope = math.nan
            half = later[len(later) // 2 :]
            if len({each.calls for each in half}) > 1:
                line = statistics.linear_regression([each.calls for each in half], [each.mib for each in half])
                slope = 1000 * line.slope
            found.append((calls, slope, samples[-1].mib if samples else math.nan))
        return found

    def total(self, number: int) -> int:
        """Calls of this process in all."""
        samples = list(self.samples.values())[number]
        return samples[-1].calls if samples else 0

    def table(self, since: float) -> list[tuple[str, ...]]:
        """Of each process: calls and MiB at the beginning, after each quarter and at the end, from `since` on."""
        found = []
        for number, samples in enumerate(self.samples.values()):
            later = [each for each in samples if each.at >= since] or samples[-1:]
            if later:
                shown = [later[round(quarter * (len(later) - 1) / 4)] for quarter in range(5)]
                found.append((f"worker {number}", *(f"{each.mib:.1f} at {each.calls:,}" for each in shown)))
        return found

    async def _run(self) -> None:
        while True:
            for process in self._processes:
                calls = self._by_boot[self._boots[process.pid]]
                self.samples[process.pid].append(Sample(time.monotonic(), calls, process.memory_info().rss / MIB))
            await asyncio.sleep(SAMPLE_SECONDS)
