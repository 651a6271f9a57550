"""Gateways for the tests of keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import pytest
from harness.keyrings import Parts


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    parts = Parts(tmp_path)
    yield parts
    await parts.close()


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Callable[..., Parts]]:
    """Makes gateways with peppers of their own on one store."""
    made: list[Parts] = []

    def make(peppers: Mapping[int, bytes]) -> Parts:
        made.append(Parts(tmp_path, peppers))
        return made[-1]

    yield make
    for parts in made:
        await parts.close()
