"""Looks for inputs that do harm for as long as it is given, harness by harness; what it finds goes into the corpus.

`python tests/fuzz/run.py [--seconds N] [--plain] [HARNESS ...]`. Hypothesis makes the inputs, and shrinks what it
finds. Where atheris is installed (`pip install atheris`), half of the time is its: it goes by what code an input has
reached. Ends with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.feeding import Harness
from fuzz.mutations import inputs
from fuzz.targets import HARNESSES
from hypothesis import HealthCheck, given, settings

ROUND = 200
"""Inputs between two looks at the clock."""
STOP = 120.0
"""Seconds beyond its time after which atheris is ended; it tells of slow inputs itself."""


def main() -> int:
    names = [harness.name for harness in HARNESSES]
    parser = argparse.ArgumentParser(description="Look for inputs that do harm.")
    parser.add_argument("harnesses", nargs="*", metavar="HARNESS", help=", ".join(names))
    parser.add_argument("--seconds", type=float, default=600.0, help="for all of them together (default: 600)")
    parser.add_argument("--plain", action="store_true", help="without atheris")
    asked = parser.parse_args()
    if unknown := set(asked.harnesses) - set(names):
        parser.error(f"no harness {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    chosen = [harness for harness in HARNESSES if harness.name in (asked.harnesses or names)]
    guided = not asked.plain and find_spec("atheris") is not None
    share = asked.seconds / len(chosen) / (2 if guided else 1)
    print(f"{len(chosen)} harnesses, {share:.0f} s each" + (", and as much by atheris" if guided else ""), flush=True)
    found = 0
    for number, harness in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {harness.name:16}", end=" ", flush=True)
        found += search(harness, share)
        if guided:
            found += search_guided(harness, share)
    print(f"{found} inputs found; they are in the corpus" if found else "nothing found")
    return 1 if found else 0


def search(harness: Harness, seconds: float) -> int:
    """Rounds of hypothesis until the time is over or something is found; returns how many things."""
    tried, worst, began = 0, b"", time.monotonic()

    def passes(data: bytes) -> None:
        nonlocal tried, worst
        tried, worst = tried + 1, data
        harness.check(data)

    checks = list(HealthCheck)
    effort = settings(max_examples=ROUND, deadline=None, database=None, suppress_health_check=checks)
    while time.monotonic() - began < seconds:
        try:
            effort(given(inputs(harness))(passes))()
        except Exception as error:  # the last input that was tried is the smallest one that fails
            print(f"{type(error).__name__}: {error}\n    {worst!r}\n    kept as {harness.keep(worst)}", flush=True)
            return 1
    print(f"{tried:8} inputs, {tried / (time.monotonic() - began):6.0f}/s", flush=True)
    return 0


def search_guided(harness: Harness, seconds: float) -> int:
    """As `search`, by atheris in a process of its own, as a finding ends it."""
    script = Path(__file__).with_name("guided.py")
    command = [sys.executable, str(script), harness.name, f"{max(1, round(seconds))}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds + STOP)
    except subprocess.TimeoutExpired:
        print("    atheris did not end in time; was the machine busy?", flush=True)
        return 0
    lines = (done.stdout + done.stderr).splitlines()
    told = [line for line in lines if line.startswith(("kept as", "Done", " === Uncaught")) or "Error" in line]
    print("".join(f"    atheris: {line.strip()}\n" for line in told), end="", flush=True)
    return 1 if done.returncode else 0


if __name__ == "__main__":
    sys.exit(main())
