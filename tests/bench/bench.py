"""`make bench`: what one call costs, against the targets, and beside the peer where it is installed.

The gateway runs alone on the first core this process may use. Redis, two stub upstreams and the load generator share
the second. Redis, metrics and limits are on: the calls carry a virtual key with limits that are checked in Redis on
every call and never reached. Everything listens on loopback, and everything started is stopped by its process id.

CPU per call: user and system time of the gateway's whole process tree (/proc/PID/stat, children included) over a round
of calls from 32 clients that never pause, divided by the calls. The stub sends a stream as one burst of 66 events, each
an HTTP chunk of its own; "trickled" is one event a write, 5 ms apart, as a model server sends them.

Latency added: calls straight to the stub and calls through the gateway, in turn, 20 of each a second by the clock,
whatever is still under way. The difference of the two p50, and of the two p99. A call in 50 ms finds the caches as the
rest of the machine left them: where "other work on its core" is not near 0 %, the latency is not the gateway's alone.
"Added by a bare relay" is the same measurement of a process that only copies bytes: what a hop costs on this machine.

Admission: CPU per call of a key limited in requests, tokens and calls at once a minute and in tokens a month, less that
of a key without limits. For Redis this counts the settlement too, which follows each call. A key without limits runs a
script only where the ledger's batches fall into its round. The garbage key is refused in this process, without HTTP.

Memory: RSS of the whole tree, once ready and before the first call; shared pages count once a process there, and are
split in PSS. Litestar loads pydantic wherever it is installed, as development tools do; for the size that operators see
give the command of an environment that holds the wheel alone: `--trunkline PATH`.

Growth: nine calls and one stream in turn, RSS sampled twice a second, and a line fitted through the samples after the
first fifth of the run. 4 MiB over 100,000 calls is 42 bytes a call: less than one object left behind.

Reloads: see reloading.py. They have the gateway's core to themselves, after it has been stopped.

Every round is repeated; targets are judged by the median, the best round is shown beside it because other work on the
machine only ever makes a round worse.

The peer: LiteLLM with its master key, Redis and its Prometheus callback (its keys and their limits need a SQL database,
so it does less work a call). To have its row: `uv venv .venv-litellm`, then
`uv pip install --python .venv-litellm 'litellm[proxy]' prometheus-client`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import choosing
import garbage
import reloading
import stub
import uvloop
from figures import Figures, own_table, peer_table
from load import Outcome, Request, Stalled, Tick, chat, closed_loop, open_loop
from processes import NotReady, get
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from servers import PACED_MODEL, Bed, Subject

ROOT = Path(__file__).parents[2]
CLIENTS = 32
CALLS_A_SECOND = 20.0
MIB = 1 << 20
SETTLE_SECONDS = 2.0
BUSY_PERCENT = 5.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How many calls each part of a measurement makes."""

    rounds: int
    calls: int
    streams: int
    paced: int
    latency: int
    long_run: int
    reloads: int = 0


FULL = Plan(rounds=3, calls=5_000, streams=2_500, paced=400, latency=300, long_run=100_000, reloads=10)
QUICK = Plan(rounds=1, calls=2_000, streams=1_000, paced=160, latency=100, long_run=10_000, reloads=2)
PEER = Plan(rounds=1, calls=400, streams=120, paced=64, latency=160, long_run=0)


class Steps:
    """The progress display, redrawn only when told, so that it costs the load generator nothing."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Tick]:
        task = self._progress.add_task(title, total=total)

        def tick(finished: int = 0) -> None:
            self._progress.update(task, completed=finished)
            self._progress.refresh()

        tick(0)
        yield tick
        self._progress.update(task, completed=total or 1, total=total or 1)
        self._progress.refresh()


class Measurement:
    """Measures one gateway."""

    def __init__(self, bed: Bed, subject: Subject, plan: Plan, steps: Steps) -> None:
        self._bed = bed
        self._subject = subject
        self._plan = plan
        self._steps = steps
        self._call = chat(stub.MODEL, subject.secret, streams=False)
        self._stream = chat(stub.MODEL, subject.secret, streams=True)
        self._paced = chat(PACED_MODEL, subject.secret, streams=True)
        self.figures = Figures()

    def run(self) -> Figures:
        """Everything, in an order that leaves the memory figures undisturbed."""
        self._idle()
        self._warm_up()
        for _ in range(self._plan.rounds):
            self._cpu("cpu_call", self._call, self._plan.calls, "calls_per_second")
            self._cpu("cpu_stream", self._stream, self._plan.streams, "streams_per_second")
            self._cpu("cpu_paced", self._paced, self._plan.paced)
        if self._subject.bounded:
            self._admission()
        for _ in range(self._plan.rounds):
            self.latency()
        if self._plan.long_run:
            self._long_run()
        return self.figures

    def _idle(self) -> None:
        with self._step("idle"):
            time.sleep(SETTLE_SECONDS)
        memory = self._subject.server.memory()
        self.figures.add("rss_idle", memory.rss / MIB)
        self.figures.add("pss_idle", memory.pss / MIB)

    def _warm_up(self) -> None:
        calls = self._plan.calls // 4
        with self._step("warm-up", calls) as tick:
            self._load([self._call, self._stream], calls, tick)

    def _cpu(self, name: str, request: Request, calls: int, rate: str | None = None) -> None:
        with self._step(name, calls) as tick:
            before = self._subject.server.cpu_seconds()
            outcome = self._load([request], calls, tick)
            spent = self._subject.server.cpu_seconds() - before
        self.figures.add(name, spent / calls * 1e6)
        if rate is not None:
            self.figures.add(rate, calls / outcome.seconds)

    def _admission(self) -> None:
        """Calls of a key with limits in four dimensions and of one without any, in turn: the difference is admission.

        The first call of a round is not like the others, so what a round measures is its second half.
        """
        subject, server, bed = self._subject, self._subject.server, self._bed
        calls = self._plan.calls // 2
        keys = {"free": subject.free, "bounded": subject.bounded}
        for _ in range(2 * self._plan.rounds):
            gateway, redis, scripts = {}, {}, {}
            for name, secret in keys.items():
                request = chat(stub.MODEL, secret, streams=False)
                with self._step(f"admission, {name}", calls) as tick:
                    self._load([request], calls // 4, tick)
                    before = server.cpu_seconds(), bed.redis_cpu_seconds(), bed.redis_scripts()
                    self._load([request], calls, tick)
                    after = server.cpu_seconds(), bed.redis_cpu_seconds(), bed.redis_scripts()
                gateway[name], redis[name], scripts[name] = (
                    (b - a) / calls for a, b in zip(before, after, strict=True)
                )
            self.figures.add("admission", (gateway["bounded"] - gateway["free"]) * 1e6)
            self.figures.add("redis_admission", (redis["bounded"] - redis["free"]) * 1e6)
            self.figures.add("free_scripts", scripts["free"])

    def latency(self) -> None:
        """One round of paired calls."""
        calls, server = self._plan.latency, self._subject.server
        ports = (self._bed.burst_port, self._subject.port)
        with self._step("latency", 2 * calls) as tick:
            before, started = server.other_work_seconds(), time.monotonic()
            paired = uvloop.run(open_loop(ports, self._call, calls, CALLS_A_SECOND, tick))
            others = (server.other_work_seconds() - before) / (time.monotonic() - started)
        self._count(paired.outcome)
        self.figures.add("other_work", others * 100)
        for name, percent in (("added_p50", 50), ("added_p99", 99)):
            added = percentile(paired.through, percent) - percentile(paired.direct, percent)
            self.figures.add(name, added * 1e3)

    def _long_run(self) -> None:
        calls, server = self._plan.long_run, self._subject.server
        samples: list[tuple[int, int]] = []
        before, scripts = server.rss(), self._bed.redis_scripts()
        with self._step("long run", calls) as tick:

            def sample(finished: int) -> None:
                samples.append((finished, server.rss()))
                tick(finished)

            self._load([*[self._call] * 9, self._stream], calls, sample)
        samples.append((calls, server.rss()))
        self.figures.add("rss_before", before / MIB)
        self.figures.add("rss_after", samples[-1][1] / MIB)
        self.figures.add("rss_growth", fitted_growth(samples) / MIB)
        self.figures.add("redis_scripts", (self._bed.redis_scripts() - scripts) / calls)

    def _load(self, requests: Sequence[Request], calls: int, tick: Tick) -> Outcome:
        outcome = uvloop.run(closed_loop(self._subject.port, requests, calls, CLIENTS, tick))
        self._count(outcome)
        return outcome

    def _count(self, outcome: Outcome) -> None:
        self.figures.count(outcome.calls, outcome.failures, outcome.first_fault)

    @contextmanager
    def _step(self, title: str, total: int | None = None) -> Iterator[Tick]:
        with self._steps.step(f"{self._subject.name}: {title}", total) as tick:
            yield tick


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def fitted_growth(samples: Sequence[tuple[int, int]]) -> float:
    """Bytes gained over the whole run by the line through the samples after its first fifth."""
    calls = samples[-1][0]
    late = [sample for sample in samples if sample[0] >= calls / 5]
    if len({finished for finished, _ in late}) < 3:
        return float(samples[-1][1] - samples[0][1])
    return statistics.linear_regression(*zip(*late, strict=True)).slope * calls


def measure(
    chosen: argparse.Namespace, pinned: tuple[int, int], steps: Steps, say: Callable[[str], None]
) -> dict[str, Figures]:
    """Measure the gateway, then the peer where there is one."""
    plan = QUICK if chosen.quick else FULL
    if chosen.calls:
        plan = replace(plan, long_run=chosen.calls)
    measured: dict[str, Figures] = {}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        steps.step("starting servers") as tick,
        closing(Bed(Path(folder), pinned, lambda: tick(0))) as bed,
    ):
        bed.open()
        relayed = relay_latency(bed, plan, steps)
        subject = bed.trunkline(chosen.trunkline)
        measured["trunkline"] = Measurement(bed, subject, plan, steps).run()
        measured["trunkline"].values |= relayed
        values = measured["trunkline"].values
        values["garbage"] = [garbage.cpu_us() for _ in range(plan.rounds)]
        values["choice_8"] = [choosing.choice_us(8) for _ in range(plan.rounds)]
        values["choice_256"] = [choosing.choice_us(256) for _ in range(plan.rounds)]
        values["keys"] = [choosing.keys_us() for _ in range(plan.rounds)]
        check_conditions(measured["trunkline"], get(subject.port, "/metrics") or "", say)
        subject.server.stop()
        reload(bed, chosen.trunkline, Path(folder), pinned[0], subject.secret, plan, steps, measured["trunkline"])
        if chosen.peer.exists() and not chosen.no_peer:
            try:
                measured["litellm"] = Measurement(bed, bed.peer(chosen.peer), PEER, steps).run()
            except (NotReady, Stalled, OSError) as error:
                say(f"the peer could not be measured: {error}")
    return measured


def relay_latency(bed: Bed, plan: Plan, steps: Steps) -> dict[str, list[float]]:
    """What a hop adds that only copies bytes."""
    relay = bed.relay()
    measurement = Measurement(bed, relay, plan, steps)
    measurement.latency()
    relay.server.stop()
    values = measurement.figures.values
    return {"relay_p50": values["added_p50"], "relay_p99": values["added_p99"]}


def reload(
    bed: Bed, command: Path, folder: Path, core: int, secret: str, plan: Plan, steps: Steps, figures: Figures
) -> None:
    """Reloads of a large table; if there are none, that is a failure and not the end of the bench."""
    redis_url = f"redis://127.0.0.1:{bed.redis_port}/0"
    with steps.step("trunkline: reloads", plan.reloads) as tick:
        try:
            place = reloading.Place(command, folder, core, bed.burst_port, redis_url, secret)
            reloads, outcome = place.measure(plan.reloads, tick)
        except (NotReady, Stalled) as error:
            figures.count(1, 1, f"reloads: {error}")
            return
    figures.values |= reloads.figures()
    figures.count(outcome.calls, outcome.failures, outcome.first_fault)


def check_conditions(figures: Figures, metrics: str, say: Callable[[str], None]) -> None:
    """Say when the calls did not do the work that the targets are about."""
    if "trunkline_" not in metrics:
        say("GET /metrics shows no trunkline_ metric: metrics were not on")
    if (others := figures.median("other_work") or 0) > BUSY_PERCENT:
        say(f"other work took {others:.0f} % of the gateway's core: measure the latency on a quiet machine")
    if (figures.median("redis_scripts") or 0) < 1:
        say("Redis ran less than one script a call: some calls were not checked against the shared limits")


def cores() -> tuple[int, int]:
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(usable) < 2:
        raise NotReady("the bench pins processes to two cores; it needs Linux and two of them")
    return usable[0], usable[1]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, metavar="N", help="calls of the long run (100,000; quick: 10,000)")
    parser.add_argument("--quick", action="store_true", help="one short round of everything")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--no-peer", action="store_true", help="leave the peer out")
    beside = Path(sys.executable).with_name("trunkline")
    found = beside if beside.exists() else Path(shutil.which("trunkline") or beside)
    parser.add_argument("--trunkline", type=Path, default=found, metavar="PATH", help="the command to measure")
    peer = ROOT / ".venv-litellm" / "bin" / "litellm"
    parser.add_argument("--peer", type=Path, default=peer, metavar="PATH", help="the litellm command")
    return parser.parse_args()


def conditions() -> dict[str, object]:
    return {
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "clients": CLIENTS,
    }


def report(measured: dict[str, Figures], as_json: bool, console: Console) -> None:
    if as_json:
        gateways = {name: figures.as_json() for name, figures in measured.items()}
        sys.stdout.write(json.dumps({"conditions": conditions(), "gateways": gateways}, indent=2) + "\n")
        return
    console.print(own_table(measured["trunkline"]))
    if len(measured) > 1:
        console.print(peer_table(measured))
    console.print(", ".join(f"{name} {value}" for name, value in conditions().items()), style="dim")
    for name, figures in measured.items():
        console.print(f"{name}: {figures.calls:,} calls, {figures.failures:,} failed", style="dim")


def main() -> int:
    chosen = arguments()
    talk = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        pinned = cores()
        os.sched_setaffinity(0, {pinned[1]})
        with Progress(*columns, console=talk, auto_refresh=False, transient=True) as progress:
            measured = measure(chosen, pinned, Steps(progress), partial(talk.print, markup=False, style="yellow"))
    except (NotReady, Stalled, OSError) as error:
        talk.print(f"not measured: {error}", markup=False, style="red")
        return 1
    except KeyboardInterrupt:
        talk.print("stopped", style="red")
        return 128 + signal.SIGINT
    report(measured, chosen.json, Console())
    faults = [(name, each.first_fault) for name, each in measured.items() if each.failures]
    for name, fault in faults:
        talk.print(f"{name}: first failure: {fault}", markup=False, style="red")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
