"""Resolve the npm projects beside this file anew: `python requirements/npm/lock.py [PROJECT ...]`.

Locks keep names, versions and hashes, and nothing else: no addresses, so that any registry will do.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
DROPPED = ("resolved", "funding", "license", "engines")


def lock(project: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(project / "package.json", Path(folder) / "package.json")
        command = [shutil.which("npm") or "npm", "install", "--package-lock-only", "--ignore-scripts"]
        subprocess.run(command, cwd=folder, check=True)  # noqa: S603
        found = json.loads((Path(folder) / "package-lock.json").read_text())
    found.pop("name", None)
    found["packages"][""].pop("name", None)
    for package in found["packages"].values():
        for name in DROPPED:
            package.pop(name, None)
    (project / "package-lock.json").write_text(json.dumps(found, indent=2) + "\n")


for each in sorted(HERE.glob("*/package.json")):
    if len(sys.argv) == 1 or each.parent.name in sys.argv[1:]:
        lock(each.parent)
