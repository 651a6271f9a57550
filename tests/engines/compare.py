"""`home-cost` beside `cache_aware` in virtual time, cell by cell: the table of docs/routing-simulation.md. Minutes.

Documents and chats, cold and warm, 4 and 8 replicas, 1, 2 and 4 gateways, at parts of the capacity of the better of the
two: the most calls a second, in steps of a tenth, with p95 within a second. Figures are medians over the seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache
from itertools import product
from multiprocessing import Pool
from statistics import median
from typing import Final, NamedTuple

from gateway.simulate import workloads
from gateway.simulate.study import CACHE_AWARE, Fleet, Outcome, members, simulate

OURS: Final = "home-cost"
WORKLOADS: Final = ("questions", "chats-6")
PARTS: Final = (0.5, 0.8, 0.95)
GATEWAYS: Final = (1, 2, 4)
SECONDS: Final = {False: 30.0, True: 60.0}
"""Cold: all count. Warm: of twice the time the later half."""
BOUND: Final = 1.0
"""Seconds that p95 may take at the capacity."""
FIRST: Final = {"questions": 150.0, "chats-6": 50.0}
"""Calls a second of four replicas, from which the capacity is looked for."""


class Setting(NamedTuple):
    workload: str
    warm: bool
    replicas: int


class Trial(NamedTuple):
    setting: Setting
    rate: float
    policy: str
    gateways: int
    seed: int


def run(trial: Trial) -> Outcome:
    workload, warm, replicas = trial.setting
    calls = workloads.calls(workloads.find(workload), trial.rate, SECONDS[warm], trial.seed)
    fleet = Fleet(members(replicas, kv_tokens=80_000), trial.gateways, rate=33_000, skip=0.5 if warm else 0.0)
    return simulate(calls, SECONDS[warm], fleet, trial.policy, trial.seed).outcome


def medians(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """Hit ratio and p95."""
    return median(each.hit_ratio for each in outcomes), median(each.ttft_p95 for each in outcomes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--replicas", type=int, nargs="+", default=[4, 8])
    options = parser.parse_args()
    seeds = range(1, options.seeds + 1)
    with Pool(options.processes) as pool:

        @cache
        def figures(setting: Setting, rate: float, policy: str, gateways: int) -> tuple[float, float]:
            return medians(pool.map(run, [Trial(setting, rate, policy, gateways, seed) for seed in seeds], 1))

        def capacity(setting: Setting) -> float:
            rate = FIRST[setting.workload] * setting.replicas / 4
            while any(figures(setting, rate * 1.1, who, 1)[1] <= BOUND for who in (OURS, CACHE_AWARE)):
                rate *= 1.1
            return rate

        print("workload   start  replicas  capacity  part  calls/s  cache_aware  | home-cost with 1, 2 and 4 gateways")
        behind = ahead = cells = 0
        for replicas, workload, warm in product(options.replicas, WORKLOADS, (False, True)):
            setting = Setting(workload, warm, replicas)
            most = capacity(setting)
            for part in PARTS:
                rate = round(most * part, 1)
                hit, p95 = figures(setting, rate, CACHE_AWARE, 1)
                row = f"{hit:.3f} {p95:6.3f}"
                for gateways in GATEWAYS:
                    ours = figures(setting, rate, OURS, gateways)
                    held = ours[0] >= hit - 0.02 and ours[1] <= 1.1 * p95
                    cells, behind = cells + 1, behind + (not held)
                    ahead += ours[0] >= hit and ours[1] <= p95
                    row += f" | {ours[0]:.3f} {ours[1]:6.3f}{' ' if held else '*'}"
                name = f"{setting.workload:10} {'warm' if setting.warm else 'cold':6} {setting.replicas:8}"
                print(f"{name}  {most:8.0f}  {part:4}  {rate:7.0f}  {row}", flush=True)
        print(f"{cells} cells: ahead in both figures in {ahead}; not within .02 and 1.1 x (*) in {behind}")


if __name__ == "__main__":
    main()
