"""The version before the short way, built from this repository's history: what a rolling upgrade begins with."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

COMMIT: Final = "fbac326"
ROOT: Final = Path(__file__).parents[2]
PLACE: Final = ROOT / ".cache" / f"trunkline-{COMMIT}"
COMMAND: Final = [str(PLACE / "venv" / "bin" / "python"), "-P", "-m", "gateway"]
"""What stands where `trunkline` stands today."""
_BUILT: Final = PLACE / "built"


def had() -> bool:
    """It has been built."""
    return _BUILT.exists()


def build() -> None:
    """Its wheel, with the packages that it was locked to, in an environment of its own; once."""
    if had():
        return
    source, wheels, python = PLACE / "source", PLACE / "wheels", COMMAND[0]
    source.mkdir(parents=True, exist_ok=True)
    wheels.mkdir(exist_ok=True)
    archive = subprocess.run(["git", "archive", COMMIT], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
    ours = ROOT / ".venv" / "bin"
    build = [ours / "python", "-m", "build", "--wheel", "--no-isolation", "--outdir", wheels, source]
    subprocess.run(build, stdout=subprocess.DEVNULL, check=True)
    subprocess.run(["python3", "-m", "venv", PLACE / "venv"], check=True)
    install = [ours / "uv", "pip", "install", "--quiet", "--python", python]
    subprocess.run([*install, "--require-hashes", "-r", source / "requirements" / "runtime.txt"], check=True)
    subprocess.run([*install, "--no-deps", *wheels.glob("trunkline-*.whl")], check=True)
    _BUILT.touch()


if __name__ == "__main__":
    print(f"building trunkline as it was at {COMMIT}")
    build()
