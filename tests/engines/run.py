"""Routing policies on timed engines behind real gateways: one row for each run. `make test-engines` starts it."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import uvloop

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(Path(__file__).parent)]

from client import ask  # noqa: E402
from harness.gateway_process import gateway_process  # noqa: E402
from harness.redis_server import free_port, redis_server  # noqa: E402

FINISH = 12.0
"""Seconds that calls have to end after the last was sent."""
LATE = 0.2
"""Steps that end later than planned by more than this share make a run's times worthless."""
PEER = "cache_aware"
TOKEN = 4
"""Bytes of text that count as one, as for the fake."""
Say = Callable[[list[dict[str, str]], int], Awaitable[None]]
Session = Callable[[int, Say, float], Awaitable[None]]


class Run(NamedTuple):
    workload: str
    policy: str
    gateways: int
    rate: float


class Seen:
    """What the client saw of a run."""

    def __init__(self) -> None:
        self.sent = self.refused = self.broken = self.unfinished = 0
        self.first: list[float] = []
        self.late: list[float] = []


def text(chance: Random, tokens: int) -> str:
    """Words that nobody else says; a token is four bytes."""
    return chance.randbytes(tokens * TOKEN // 2).hex()


def documents(seed: int) -> Session:
    chance = Random(f"documents {seed}")
    known = [text(chance, 6000) for _ in range(40)]

    async def session(number: int, say: Say, until: float) -> None:
        own = Random(f"question {seed} {number}")
        messages = [("system", own.choice(known)), ("user", text(own, 100))]
        await say([{"role": role, "content": content} for role, content in messages], 48)

    return session


def chats(seed: int) -> Session:
    chance = Random(f"chats {seed}")
    known = [text(chance, 1200) for _ in range(6)]

    async def session(number: int, say: Say, until: float) -> None:
        own = Random(f"chat {seed} {number}")
        messages = [{"role": "system", "content": own.choice(known)}]
        for _ in range(8):
            messages.append({"role": "user", "content": text(own, 250)})
            await say(list(messages), 64)
            messages.append({"role": "assistant", "content": text(own, 200)})
            if asyncio.get_running_loop().time() > until:
                return
            await asyncio.sleep(own.expovariate(1 / 2.0))

    return session


WORKLOADS: dict[str, Callable[[int], Session]] = {"documents": documents, "chats": chats}


async def load(ports: Sequence[int], secret: str, session: Session, rate: float, seconds: float, seed: int) -> Seen:
    """Sessions begin by chance, `rate` a second, and each call goes to any of the ports."""
    loop, chance, seen = asyncio.get_running_loop(), Random(f"load {seed}"), Seen()

    async def say(messages: list[dict[str, str]], tokens: int) -> None:
        began = loop.time()
        seen.sent += 1
        try:
            stream = await ask(chance.choice(ports), secret, messages, tokens)
        except OSError:
            seen.broken += 1
        except asyncio.CancelledError:
            seen.unfinished += 1
            seen.first.append(loop.time() - began)  # its true time is longer still
            raise
        else:
            if stream.first:
                seen.first.append(stream.first - began)
            seen.refused += stream.status >= 400
            seen.broken += stream.status < 400 and not stream.whole

    due = loop.time()
    until, tasks = due + seconds, []
    while due < until:
        await asyncio.sleep(due - loop.time())
        seen.late.append(loop.time() - due)
        tasks.append(asyncio.create_task(session(len(tasks), say, until)))
        due += chance.expovariate(rate)
    _, unfinished = await asyncio.wait(tasks, timeout=FINISH)
    for task in unfinished:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome
    return seen


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
        found: str = answer.read().decode()
        return found


@contextmanager
def engines(number: int) -> Iterator[list[int]]:
    """The ports of engines with cold caches."""
    command = [sys.executable, str(Path(__file__).parent / "hosts.py"), str(number)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            yield [int(port) for port in process.stdout.readline().split()]
        finally:
            process.stdin.close()


@contextmanager
def peer(targets: list[int]) -> Iterator[int]:
    """sglang's router; raises `FileNotFoundError` where there is none."""
    python = peer_python()
    if python is None:
        raise FileNotFoundError
    port, urls = free_port(), [f"http://127.0.0.1:{target}" for target in targets]
    command = [python, "-m", "sglang_router.launch_router", "--policy", PEER, "--worker-urls", *urls]
    command += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    command += ["--log-level", "error"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        try:
            for _ in range(200):
                try:
                    get(port, "/health")
                    break
                except OSError:
                    time.sleep(0.2)
            else:
                raise RuntimeError("sglang's router did not become ready")
            yield port
        finally:
            process.terminate()


def peer_python() -> str | None:
    """The interpreter that has sglang's router, if there is one."""
    own = ROOT / ".venv-sglang/bin/python"
    return os.environ.get("SGLANG_ROUTER_PYTHON") or (str(own) if own.exists() else None)


def table(policy: str, targets: list[int]) -> str:
    listed = [{"name": f"e{number}", "backend": "vllm", "url": f"http://127.0.0.1:{port}", "model": "fake"}
              for number, port in enumerate(targets)]  # fmt: skip
    return json.dumps({"routes": {"m": {"policy": policy, "targets": listed}}})


def decisions(texts: list[str]) -> tuple[dict[str, int], int]:
    """By reason, and how many calls waited in the gateways' queues."""
    reasons: dict[str, int] = {}
    waited = 0.0
    for line in "\n".join(texts).splitlines():
        if match := re.match(r'trunkline_\w*decisions_total\{.*reason="(\w+)".*\} (\S+)', line):
            reasons[match[1]] = reasons.get(match[1], 0) + int(float(match[2]))
        elif match := re.match(r"trunkline_queue_wait_seconds_count\S* (\S+)", line):
            waited += float(match[1])
    return {name: count for name, count in reasons.items() if count}, int(waited)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def measured(run: Run, count: int, seconds: float, seed: int) -> dict[str, Any]:
    """One run from a cold start."""
    with ExitStack() as stack:
        targets = stack.enter_context(engines(count))
        if run.policy == PEER:
            ports, secret = [stack.enter_context(peer(targets))], "none"
        else:
            redis = stack.enter_context(redis_server())
            gateways = [stack.enter_context(gateway_process(table(run.policy, targets), redis_url=redis.url))
                        for _ in range(run.gateways)]  # fmt: skip
            ports = [gateway.port for gateway in gateways]
            limits = ("--rpm", "10M", "--tpm", "10000M", "--concurrency", "100k")
            secret = gateways[0].keys("create", "--name", "load", *limits)["secret"]
        time.sleep(2)  # in which gateways read the engines' first gauges
        seen = uvloop.run(load(ports, secret, WORKLOADS[run.workload](seed), run.rate, seconds, seed))
        told = [json.loads(get(port, "/fake"))["engine"] for port in targets]
        texts = [] if run.policy == PEER else [get(port, "/metrics") for port in ports]
    total = {name: sum(each[name] for each in told) for name in told[0]}
    reasons, waited = decisions(texts)
    return {
        **run._asdict(), "calls_s": seen.sent / seconds, "mean": sum(seen.first) / max(1, len(seen.first)),
        **{f"p{share}": quantile(seen.first, share / 100) for share in (50, 95, 99)},
        "hit": total["hit"] / max(1, total["queried"]), "decisions": reasons, "waited": waited,
        "refused": seen.refused, "broken": seen.broken, "unfinished": seen.unfinished,
        "engines_late": total["late"] / max(1e-9, total["busy"]), "client_late": quantile(seen.late, 0.95),
    }  # fmt: skip


HEAD = ("workload    policy       gw calls/s   mean    p50    p95    p99   hit waited refused broken unfinished  "
        "decisions")  # fmt: skip


def show(row: dict[str, Any]) -> None:
    times = " ".join(f"{row[name]:6.3f}" for name in ("mean", "p50", "p95", "p99"))
    reasons = ", ".join(f"{name} {count}" for name, count in sorted(row["decisions"].items(), key=lambda it: -it[1]))
    counts = f"{row['waited']:6} {row['refused']:7} {row['broken']:6} {row['unfinished']:10}"
    who = f"{row['workload']:11} {row['policy']:12} {row['gateways']:2} {row['calls_s']:7.1f}"
    print(f"{who} {times} {row['hit']:5.3f} {counts}  {reasons}", flush=True)
    if row["engines_late"] > LATE or row["client_late"] > LATE:
        late = (
            f"steps ended {row['engines_late']:.0%} late in sum, calls were sent {row['client_late']:.2f} s late (p95)"
        )
        print(f"WARNING: this machine could not keep up: {late}. Do not blame the policy.", flush=True)


def plan(options: argparse.Namespace) -> list[Run]:
    """Each policy at its rates; those that know no caches once, at a low one."""
    runs = []
    for workload in options.workloads:
        rates = options.rates or ([14, 30, 45] if workload == "documents" else [5])
        for rate in rates:
            for policy in options.policies:
                if policy in ("least-tokens", "round-robin") and rate != rates[0]:
                    continue
                numbers = (
                    [1] if policy == PEER else options.gateways if policy == "home-cost" else [options.gateways[-1]]
                )
                runs += [Run(workload, policy, number, rate) for number in numbers]
    return runs


def words(value: str) -> list[str]:
    return value.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workloads", type=words, default=list(WORKLOADS), help="of documents,chats")
    parser.add_argument("--policies", type=words, default=["home-cost", "least-tokens", "round-robin", PEER])
    parser.add_argument("--rates", type=lambda value: [float(each) for each in words(value)], help="sessions a second")
    parser.add_argument("--gateways", type=lambda value: [int(each) for each in words(value)], default=[1, 2])
    parser.add_argument("--engines", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=18.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plan", action="store_true", help="print the runs and end")
    parser.add_argument("--json", action="store_true", help="one JSON line for each run")
    options = parser.parse_args()
    runs = plan(options)
    if any(run.policy == PEER for run in runs) and peer_python() is None:
        print(f"{PEER} is left out: there is no sglang-router (make .venv-sglang, or set SGLANG_ROUTER_PYTHON)",
              file=sys.stderr)  # fmt: skip
        runs = [run for run in runs if run.policy != PEER]
    if not options.json:
        print(HEAD, flush=True)
    for number, run in enumerate(runs):
        print(f"[{number + 1}/{len(runs)}] {' '.join(map(str, run))}", file=sys.stderr, flush=True)
        if options.plan:
            continue
        row = measured(run, options.engines, options.seconds, options.seed)
        print(json.dumps(row), flush=True) if options.json else show(row)


if __name__ == "__main__":
    main()
