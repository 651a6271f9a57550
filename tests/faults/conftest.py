"""The upstream that all cases share, and the table at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio
from faults.report import ROWS, Report, write
from faults.volley import hang_up
from harness.upstream import Upstream, scripted_upstream


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    write(terminalreporter, config.stash[ROWS])


@pytest.fixture(scope="session")
def report(pytestconfig: pytest.Config) -> Report:
    """Where a case tells what it found."""
    return Report(pytestconfig.stash[ROWS])


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    with scripted_upstream() as server:
        yield server


@pytest_asyncio.fixture(autouse=True)
async def no_call_outlives_its_test() -> AsyncIterator[None]:
    yield
    await hang_up()
