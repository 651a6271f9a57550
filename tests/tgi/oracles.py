"""Makes the environments of the two TGI clients nobody here wrote, each from its locked requirements.

    python tests/tgi/oracles.py

They need environments of their own because they want versions of huggingface-hub that exclude each other.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

root = Path(__file__).resolve().parents[2]
names = ("text-generation", "huggingface-hub")


def environment(name: str) -> Path:
    """Give the interpreter of one client's environment, made when it is missing or its lock has changed."""
    home, lock = root / ".venv-oracles" / name, root / "requirements" / f"oracle-{name}.txt"
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = home / "installed.txt"
    if stamp.exists() and stamp.read_bytes() == lock.read_bytes():
        return python
    print(f"making {home.relative_to(root)} from {lock.relative_to(root)}", file=sys.stderr, flush=True)
    uv = shutil.which("uv", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if uv is None:
        raise RuntimeError("uv is needed to make the environments of the oracle clients")
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(home)], check=True)
    install = [uv, "pip", "install", "--python", str(python), "--require-hashes", "-r", str(lock)]
    subprocess.run(install, check=True)
    shutil.copyfile(lock, stamp)
    return python


def ask(name: str, url: str, home: Path, *, faults: bool) -> dict[str, Any]:
    """Run every scenario of one client against a server; each gives its answer or the error it met."""
    script = Path(__file__).with_name(f"oracle_{name.replace('-', '_')}.py")
    # The hub's client refuses even loopback when told to stay offline, and must leave no trace in the user's home.
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    command = [str(environment(name)), str(script), url, *(["--faults"] if faults else [])]
    done = subprocess.run(
        command,
        env={**clean, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"},
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    if done.returncode:
        raise RuntimeError(f"{script.name} failed:\n{done.stderr}")
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


if __name__ == "__main__":
    for each in names:
        print(environment(each))
