"""Measures gateways: CPU a call and an event, time to the first token, memory, and what Redis does meanwhile.

CPU is user and system time of a gateway's whole process tree, from /proc, over a window of time in which load never
pauses; it is divided by the calls, or events, that the stub answered in that window.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import calls
import open_loop
from calls import Call
from figures import Figures
from gateways import Bed, Gateway
from processes import get
from wrk import Wrk

CLIENTS, FEW_CLIENTS = 32, 8
GAP_MS, HELD_MS = 20, 40
EVENTS_A_SECOND = 1000 // GAP_MS
CALLS_A_SECOND = 50.0
SETTLE_SECONDS = 1.0
LADDER = (200, 400, 600, 800, 1000)
KIB = 1024


@dataclass(frozen=True, slots=True)
class Sample:
    """What had been used and done at a moment."""

    cpu: float
    redis_cpu: float
    scripts: int
    calls: int
    rss: int


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of load without a pause: its call, and how many clients make it."""

    name: str
    call: Call
    clients: int = CLIENTS


LOADS = (
    Load("whole", calls.WHOLE),
    Load("stream", calls.STREAM),
    Load("64k", calls.sized(64 * KIB)),
    Load("2m", calls.sized(2048 * KIB), FEW_CLIENTS),
)


class Measure:
    """Adds what it measures to the figures of the gateway, and says on standard error what it does."""

    def __init__(self, bed: Bed, figures: Figures, seconds: float) -> None:
        self._bed, self._figures, self._seconds = bed, figures, seconds
        self._wrk = Wrk(bed.tools, bed.folder)
        self._began = time.monotonic()

    def note(self, words: str) -> None:
        """One line of progress."""
        print(f"[{time.monotonic() - self._began:5.0f} s] {words}", file=sys.stderr, flush=True)

    def sample(self, gateway: Gateway) -> Sample:
        info = self._bed.redis.info()
        stats = self._bed.redis.info("commandstats")
        scripts = sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha", "fcall"))
        answered = json.loads(get(self._bed.stub_port, "/counts") or '{"calls": 0}')["calls"]
        redis_cpu = info["used_cpu_user"] + info["used_cpu_sys"]
        return Sample(gateway.server.cpu_seconds(), redis_cpu, scripts, answered, gateway.server.rss())

    def check(self, gateway: Gateway, checked: Sequence[Call] = (calls.WHOLE, calls.STREAM)) -> None:
        """Make calls and look at the answers. Raises `Wrong`."""
        for call in checked:
            calls.check(gateway.port, gateway.secret, call)

    def idle(self, gateway: Gateway) -> None:
        """The memory of a gateway that has not been called."""
        self._add(gateway, "rss_idle", gateway.server.rss() / KIB / KIB, "MiB")

    def load(self, gateway: Gateway, load: Load, name: str = "", secret: str = "") -> None:
        """CPU a call under this load, calls a second, and Redis's share. Raises `LoadFailed`."""
        name = name or load.name
        began = time.monotonic()
        first, last = self._wrk.measure(
            gateway.port, secret or gateway.secret, load.call, load.clients, self._seconds, lambda: self.sample(gateway)
        )
        count = max(1, last.calls - first.calls)
        rate = count / (self._seconds or time.monotonic() - began)
        self._add(gateway, name, (last.cpu - first.cpu) / count * 1e6, f"us a call, {rate:,.0f} calls/s")
        add = self._figures.add
        add(gateway.name, f"{name}_rate", rate)
        add(gateway.name, f"{name}_redis", (last.redis_cpu - first.redis_cpu) / count * 1e6)
        add(gateway.name, f"{name}_scripts", (last.scripts - first.scripts) / count)

    def paced(self, gateway: Gateway, streams: int) -> None:
        """CPU an event of so many streams at once, and the memory of an open one. Raises `Broken` and `OSError`.

        A gateway that cannot keep up passes several events on together, which is cheaper: look at the gap beside it.
        """
        before = gateway.server.rss()
        seen = self._hold(gateway, streams)
        cpu = (seen.last.cpu - seen.first.cpu) / max(1, seen.events) * 1e6
        gap = percentile(seen.gaps, 99) * 1e3
        self._add(gateway, "paced", cpu, f"us an event, p99 gap {gap:.0f} ms")
        self._figures.add(gateway.name, "paced_p99_gap", gap)
        self._figures.add(gateway.name, "rss_stream", (seen.last.rss - before) / streams / KIB)
        time.sleep(SETTLE_SECONDS)

    def most_streams(self, gateway: Gateway, ladder: Sequence[int] = LADDER) -> None:
        """The most streams of 50 events a second whose p99 gap stays under 40 ms, of a few numbers of streams."""
        most = 0
        for streams in ladder:
            seen = self._hold(gateway, streams)
            gap = percentile(seen.gaps, 99) * 1e3
            rate = seen.events / self._seconds
            self.note(f"{gateway.name}: {streams} streams: p99 gap {gap:.0f} ms, {rate:,.0f} events/s")
            time.sleep(SETTLE_SECONDS)
            if gap >= HELD_MS:
                break
            most = streams
        self._figures.add(gateway.name, "most_streams", most)

    def first_token(self, gateway: Gateway, count: int) -> None:
        """What it adds to the time to the first token: calls straight to the stub and through it, in turn."""
        call, direct, through = calls.STREAM, self._bed.stub_port, gateway.port
        requests = [(direct, call.request("none")), (through, call.request(gateway.secret))]
        seconds = open_loop.first_tokens(requests, count, CALLS_A_SECOND).seconds
        for percent in (50, 99):
            base = percentile(seconds[direct], percent)
            added = (percentile(seconds[through], percent) - base) * 1e3
            self._add(gateway, f"ttft_p{percent}", added, f"ms added to {base * 1e3:.2f} (p{percent})")

    def grown(self, gateway: Gateway, load: Load, seconds: float) -> None:
        """Memory that a long run of calls leaves behind, a thousand calls. Raises `LoadFailed`."""
        samples: list[Sample] = []

        def sample() -> Sample:
            samples.append(self.sample(gateway))
            return samples[-1]

        self._wrk.measure(gateway.port, gateway.secret, load.call, load.clients, seconds / 2, sample)
        self._wrk.measure(gateway.port, gateway.secret, load.call, load.clients, seconds / 2, sample)
        thousands = max(1, samples[-1].calls - samples[1].calls) / 1000
        self._add(gateway, "rss_growth", (samples[-1].rss - samples[1].rss) / KIB / thousands, "KiB a 1,000 calls")

    def _hold(self, gateway: Gateway, streams: int) -> open_loop.Streams[Sample]:
        spread = max(1.0, streams / 400)
        events = int((2 * spread + self._seconds + 10) * EVENTS_A_SECOND)
        request = calls.paced(GAP_MS, events).request(gateway.secret)
        sample: Callable[[], Sample] = lambda: self.sample(gateway)  # noqa: E731
        return open_loop.hold(gateway.port, request, streams, spread, self._seconds, sample)

    def _add(self, gateway: Gateway, name: str, value: float, words: str) -> None:
        self._figures.add(gateway.name, name, value)
        self.note(f"{gateway.name}: {name}: {value:,.2f} {words}")


def percentile(values: Sequence[float], percent: int) -> float:
    """Infinite, if there are none."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else float("inf")
