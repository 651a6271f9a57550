"""Policies written for the earlier layout are found and run, with a warning."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gateway.core.old_paths import MOVED

POLICY = """
from gateway.routes.policies.api import Score, cheapest
from gateway.routes.load import Load
"""


def run(program: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: what is imported once is not found again."""
    (folder / "acme_policy.py").write_text(POLICY)
    return subprocess.run([sys.executable, *options, "-c", program], cwd=folder, capture_output=True, text=True)


def test_a_policy_of_the_earlier_layout_gets_the_same_classes(tmp_path: Path) -> None:
    done = run(
        "import acme_policy, gateway.routing.policies as new, gateway.targets.load as load, sys\n"
        "assert acme_policy.Score is new.Score and acme_policy.Load is load.Load\n"
        "assert new.__name__ == 'gateway.routing.policies' == new.__spec__.name\n",
        tmp_path,
        "-Walways",
    )
    assert done.returncode == 0, done.stderr
    assert "gateway.routes.policies.api is now gateway.routing.policies.api" in done.stderr
    assert "import from gateway.routing.policies" in done.stderr
    assert "acme_policy.py:2: DeprecationWarning" in done.stderr  # where the old path is written


@pytest.mark.parametrize("old", MOVED)
def test_every_old_path_leads_somewhere(old: str, tmp_path: Path) -> None:
    done = run(f"import importlib, {old}; assert {old} is importlib.import_module({MOVED[old]!r})", tmp_path)
    assert done.returncode == 0, done.stderr


def test_other_paths_are_not_found(tmp_path: Path) -> None:
    done = run("import gateway.routes.chooser", tmp_path, "-Wignore")
    assert "No module named 'gateway.routes.chooser'" in done.stderr
