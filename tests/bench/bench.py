"""`make bench`: what one call costs, against the targets, beside a bare relay and the peers of the same run.

Everything that is measured runs on the first core that this process may use; the load, the stub that answers for model
servers, and Redis share the second. Load without a pause is wrk's, the stub is nginx with Lua (debian.py fetches both);
paced streams and calls by the clock are opened by open_loop.py. Everything listens on loopback, and what was started is
ended, by its process id.

Trunkline has everything on: Redis, metrics, call records, a key with limits in four dimensions. The peers balance and
do nothing else. The rounds of all gateways are interleaved, and the medians shown: other work on the machine makes all
of them worse alike. The relay is our floor: the same server and parser, copying bytes (relay.py).

`--quick` measures the relay and us for two minutes, and fails if a ratio is 15 % worse than the committed one
(ratios.json). `--docs` writes docs/performance.md's figures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import debian
import documents
import frames
import ratios
from figures import GATEWAYS, peers_table, targets, targets_table
from gateways import Bed
from processes import NotReady
from rich.console import Console
from run import FULL, QUICK, Plan, Run


def cores() -> tuple[int, int]:
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(usable) < 2:
        raise NotReady("the bench pins processes to two cores; it needs Linux and two of them")
    return usable[0], usable[1]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    beside = Path(sys.executable).with_name("trunkline")
    found = beside if beside.exists() else Path(shutil.which("trunkline") or beside)
    parser.add_argument("--quick", action="store_true", help="two minutes: fail on a loss against the committed ratios")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--docs", action="store_true", help="write the figures into docs/performance.md")
    parser.add_argument("--commit-ratios", action="store_true", help="write this run's ratios to ratios.json")
    parser.add_argument("--rounds", type=int, metavar="N", help="interleaved rounds of everything (3)")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="how long each figure is measured a round (3; quick: 1.5)"
    )
    parser.add_argument(
        "--only", metavar="NAMES", help="some of the gateways, separated by commas: " + ", ".join(GATEWAYS)
    )
    parser.add_argument(
        "--short", action="store_true", help="the loads only: no first tokens, growth, memory or frames"
    )
    parser.add_argument("--trunkline", type=Path, default=found, metavar="PATH", help="the command to measure")
    return parser.parse_args()


def plan_of(chosen: argparse.Namespace) -> Plan:
    base = QUICK if chosen.quick else FULL
    only = tuple(name.strip() for name in chosen.only.split(",")) if chosen.only else base.gateways
    if unknown := set(only or ()) - set(GATEWAYS):
        raise NotReady(f"--only: no gateway is called {', '.join(sorted(unknown))}; there are {', '.join(GATEWAYS)}")
    return replace(
        base,
        rounds=chosen.rounds or base.rounds,
        seconds=chosen.seconds or base.seconds,
        gateways=only,
        everything=base.everything and not chosen.short,
    )


def main() -> int:
    chosen = arguments()
    talk = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        plan, pinned = plan_of(chosen), cores()
        tools = debian.prepare()
        os.sched_setaffinity(0, {pinned[1]})
        with (
            tempfile.TemporaryDirectory(prefix="bench-") as folder,
            closing(Bed(Path(folder), pinned, tools, chosen.trunkline)) as bed,
        ):
            bed.open()
            run = Run(bed, plan)
            run.all()
    except (NotReady, debian.CannotBeHad, OSError) as error:
        talk.print(f"not measured: {error}", markup=False, style="red")
        return 1
    except KeyboardInterrupt:
        talk.print("stopped", style="red")
        return 128 + signal.SIGINT
    return report(chosen, plan, run, tools.versions(), talk)


def report(chosen: argparse.Namespace, plan: Plan, run: Run, versions: dict[str, str], talk: Console) -> int:
    """Print and write what was measured; the exit status."""
    entered: dict[str, dict[str, int]] = (
        {kind: frames.figures(count) for kind, count in frames.counted().items()} if plan.everything else {}
    )
    held = [each for each in targets(run.figures, entered) if plan.everything or each.outcome != "not measured"]
    conditions = documents.conditions(versions)
    found = documents.as_json(run.figures, held, entered, conditions, run.left_out)
    if chosen.json:
        print(json.dumps(found, indent=2))
    else:
        out = Console(width=None if sys.stdout.isatty() else 220, highlight=False)
        out.print(peers_table(run.figures))
        out.print(targets_table(held))
        out.print(", ".join(f"{name} {value}" for name, value in conditions.items()), style="dim")
    if chosen.docs:
        documents.write(run.figures, held, conditions, found)
    if chosen.commit_ratios:
        ratios.commit(run.figures)
    lost = ratios.losses(run.figures) if chosen.quick else []
    for line in ratios.shown(run.figures):
        talk.print(line, markup=False, style="dim", soft_wrap=True)
    for line in (*run.left_out, *run.faults, *lost):
        talk.print(line, markup=False, style="yellow" if line in run.left_out else "red", soft_wrap=True)
    return 1 if run.faults or lost else 0


if __name__ == "__main__":
    sys.exit(main())
