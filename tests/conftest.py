"""Fixtures for every kind of test, and the option to run their files in reverse order."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.redis_server import RedisServer, redis_server


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reverse", action="store_true", help="the last file first: no test may need those before it")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files in reverse order, the tests in each as they stand: fixtures of a module are made once either way."""
    if config.getoption("--reverse"):
        places = {path: place for place, path in enumerate(dict.fromkeys(item.path for item in items))}
        items.sort(key=lambda item: -places[item.path])


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Only what trunkline logs: what other libraries write meanwhile is no test's business."""

    def ours(record: object) -> bool:
        return str(getattr(record, "name", "")).startswith("trunkline")

    caplog.handler.addFilter(ours)
    yield caplog
    caplog.handler.removeFilter(ours)


@pytest.fixture(scope="session")
def redis() -> Iterator[RedisServer]:
    """A Redis shared by the session; tests use keys of their own and leave it running."""
    with redis_server() as server:
        yield server
