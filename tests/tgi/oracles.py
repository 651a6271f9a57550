"""Makes the environments of the two TGI clients nobody here wrote, each from its locked requirements.

    python tests/tgi/oracles.py

They need environments of their own because they want versions of huggingface-hub that exclude each other.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from harness.environments import REQUIREMENTS, ROOT, python_environment

names = ("text-generation", "huggingface-hub")


def environment(name: str) -> Path:
    """Give the interpreter of one client's environment, made when it is missing or its lock has changed."""
    return python_environment(ROOT / ".venv-oracles" / name, REQUIREMENTS / f"oracle-{name}.txt")


def ask(name: str, url: str, home: Path, *, faults: bool, key: str = "") -> dict[str, Any]:
    """Run every scenario of one client against a server, with this key; each gives its answer or the error it met."""
    script = Path(__file__).with_name(f"oracle_{name.replace('-', '_')}.py")
    # The hub's client refuses even loopback when told to stay offline, and must leave no trace in the user's home.
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
    command = [str(environment(name)), str(script), url, *(["--faults"] if faults else [])]
    done = subprocess.run(
        command,
        env={**clean, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **({"TGI_KEY": key} if key else {})},
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
