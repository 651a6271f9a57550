"""Prometheus and promtool: Debian's package, unpacked below .cache. Nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".cache" / "prometheus"


class CannotBeHad(Exception):
    """The package cannot be fetched; the message says why."""


def programs() -> tuple[Path, Path]:
    """Prometheus and promtool: those on the PATH, else the package's. Raises `CannotBeHad`."""
    found = [shutil.which(name) for name in ("prometheus", "promtool")]
    if all(found):
        return Path(found[0] or ""), Path(found[1] or "")
    bin = FOLDER / "usr/bin"
    if not (bin / "promtool").exists():
        FOLDER.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
            _run(["apt-get", "-qq", "download", "prometheus"], scratch)
            (archive,) = Path(scratch).glob("prometheus_*.deb")
            _run(["dpkg", "-x", archive.name, "out"], scratch)
            shutil.rmtree(FOLDER, ignore_errors=True)
            (Path(scratch) / "out").rename(FOLDER)
    return bin / "prometheus", bin / "promtool"


def _run(command: list[str], folder: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotBeHad(f"Debian's package of Prometheus is needed: {error}") from None
    if done.returncode:
        raise CannotBeHad(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()} (`apt-get update` may help)")
