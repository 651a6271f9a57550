"""Fixtures for every kind of test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.redis_server import RedisServer, redis_server


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    """A Redis shared by the session; tests use keys of their own and leave it running."""
    with redis_server() as server:
        yield server
