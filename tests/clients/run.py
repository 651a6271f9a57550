"""Real clients against a real gateway: what each of them got, case by case, and a table at the end.

    python tests/clients/run.py [CLIENT ...] [--case CASE]

Each client has an environment of its own, made from its lock file. One that cannot be installed is a row that says so.
The exit status is that of the cases: 1 where one has failed.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from clients.bed import bed
from clients.environments import CLIENTS, Client
from harness.gateway_process import GatewayProcess

from gateway.core.types import Limit

COLUMNS = ("plain", "stream", "tools", "structured", "embeddings", "models", "401", "404", "400", "429", "retry")
LIMIT_SECONDS = 300
"""For all cases of one client."""


class Outcome(NamedTuple):
    case: str
    variant: str
    ok: bool
    note: str


class Row(NamedTuple):
    """What became of one client."""

    client: str
    version: str
    outcomes: list[Outcome]
    trouble: str = ""
    """Why its cases were not tried, or not all of them."""

    def cell(self, column: str) -> str:
        """What it says of a case, all variants together."""
        found = [outcome.ok for outcome in self.outcomes if outcome.case == column]
        if not found:
            return "-"
        return f"{found.count(True)} ok" if all(found) else f"{found.count(False)} of {len(found)} FAILED"


def clean_environment(home: Path, gateway: GatewayProcess) -> dict[str, str]:
    """What a client knows of the machine: nothing but this, and no way out."""
    return {
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "HOME": str(home),
        "TMPDIR": str(home),
        "HTTP_PROXY": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,localhost",
        "GATEWAY_URL": gateway.url,
        "GATEWAY_KEY": gateway.issue(default_route="native").secret,
        "GATEWAY_TGI_KEY": gateway.issue(default_route="tgi").secret,
        "GATEWAY_LIMITED_KEY": gateway.issue(limit=Limit(rpm=1), default_route="native").secret,
    }


def tried(client: Client, gateway: GatewayProcess, arguments: list[str]) -> Row:
    """One client's cases."""
    try:
        command, variables = client.install()
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return Row(client.name, "", [], f"not installed: {error}")
    with tempfile.TemporaryDirectory(prefix="client-") as folder:
        home = Path(folder)
        environment = clean_environment(home, gateway) | variables
        with subprocess.Popen(
            [*command, *arguments],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=(home / "stderr.log").open("wb"),
            start_new_session=True,
        ) as process:
            try:
                out, _ = process.communicate(timeout=LIMIT_SECONDS)
                trouble = "" if process.returncode == 0 else f"ended with status {process.returncode}: "
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                out, _ = process.communicate()
                trouble = f"not done within {LIMIT_SECONDS} s: "
        if trouble:
            trouble += (home / "stderr.log").read_text(errors="replace")[-1500:]
    return row(client.name, out.decode(errors="replace"), trouble)


def row(name: str, printed: str, trouble: str) -> Row:
    version, outcomes = "", []
    for line in printed.splitlines():
        if not line.startswith("{"):
            continue
        told: dict[str, Any] = json.loads(line)
        if "version" in told:
            version = told["version"]
        else:
            outcomes.append(Outcome(**told))
    return Row(name, version, outcomes, trouble)


def print_table(rows: list[Row]) -> None:
    lines = [("client", *COLUMNS)]
    lines += [(each.version or each.client, *(each.cell(column) for column in COLUMNS)) for each in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print()
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for each in rows:
        if each.trouble:
            print(f"\n{each.client}: {each.trouble}")
        for outcome in each.outcomes:
            if not outcome.ok:
                print(f"\n{each.client}, {outcome.case} {outcome.variant}: {outcome.note}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [client.name for client in CLIENTS]
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"of {', '.join(names)}; none: all")
    parser.add_argument("--case", action="append", default=[], choices=COLUMNS, help="only this case; repeatable")
    options = parser.parse_args()
    if unknown := {*options.clients} - {*names}:
        parser.error(f"no such client: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [client for client in CLIENTS if not options.clients or client.name in options.clients]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # nothing that was started may outlive it
    rows = []
    with bed() as gateway:
        for number, client in enumerate(chosen, 1):
            began = time.monotonic()
            rows.append(tried(client, gateway, options.case))
            done = rows[-1]
            bad = sum(not outcome.ok for outcome in done.outcomes)
            said = done.trouble.splitlines()[0] if done.trouble else f"{len(done.outcomes)} cases, {bad} failed"
            took = time.monotonic() - began
            print(f"{number}/{len(chosen)} {client.name}: {said}, {took:.0f} s", file=sys.stderr, flush=True)
    print_table(rows)
    failed = any(not outcome.ok for each in rows for outcome in each.outcomes)
    return int(failed or any(each.trouble and not each.trouble.startswith("not installed") for each in rows))


if __name__ == "__main__":
    sys.exit(main())
