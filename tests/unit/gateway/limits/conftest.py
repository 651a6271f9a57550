"""What the tests of limits share."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.gateway.limits.bench import Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """An admission whose table has no limits."""
    return Bench(tmp_path)
