"""Environments of their own for programs that tests start: each holds what its lock file names, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "requirements"


def python_environment(home: Path, lock: Path) -> Path:
    """The interpreter of a virtual environment at `home`, made when it is missing or its lock has changed.

    Raises `RuntimeError` with the end of what the installer said.
    """
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = home / "installed.txt"
    if stamp.exists() and stamp.read_bytes() == lock.read_bytes():
        return python
    _tell(home, lock)
    uv = shutil.which("uv", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if uv is None:
        raise RuntimeError("uv is needed to make this environment")
    _run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)])
    _run([uv, "pip", "install", "--python", str(python), "--require-hashes", "-r", str(lock)])
    shutil.copyfile(lock, stamp)
    return python


def npm_environment(home: Path, project: Path) -> Path:
    """The folder of an npm project with its packages, made from its `package.json` and lock as above.

    No script of a package runs. Raises `RuntimeError` as above, and where there is no npm.
    """
    stamp, lock = home / "installed.json", project / "package-lock.json"
    if stamp.exists() and stamp.read_bytes() == lock.read_bytes():
        return home
    _tell(home, lock)
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError("npm is needed to make this environment")
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(project / name, home / name)
    # Not `npm ci`, which wants the packages of all other platforms in the lock, where a registry may lack some.
    _run([npm, "install", "--no-save", "--ignore-scripts", "--no-audit", "--no-fund"], home)
    shutil.copyfile(lock, stamp)
    return home


def _tell(home: Path, lock: Path) -> None:
    print(f"making {home.relative_to(ROOT)} from {lock.relative_to(ROOT)}", file=sys.stderr, flush=True)


def _run(command: list[str], folder: Path = ROOT) -> None:
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{Path(command[0]).name} {command[1]} failed: {(done.stderr or done.stdout)[-1500:]}")
