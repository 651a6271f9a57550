"""Fixtures for every kind of test, the order in which their files run, and which of them share a process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.redis_server import RedisServer, redis_server
from xdist.scheduler import LoadScopeScheduling

FIRST = ("tgi", "integration", "fuzz", "contract", "unit", "project")
"""Folders of tests in the order in which they run: the last to begin are those that never wait for a process."""
SHARED = {
    "test_keys.py": "fleet",
    "test_limits.py": "fleet",
    "test_metering_workers.py": "fleet",
    "test_peer_bugs.py": "fleet",
    "test_hostile_leaks.py": "guarded",
    "test_hostile_quotes.py": "guarded",
    "test_ledger.py": "embedded",
    "test_sdk.py": "embedded",
    **dict.fromkeys(("test_gateway.py", "test_generate.py", "test_openai.py"), "model"),
    **dict.fromkeys(("test_errors.py", "test_oracles.py", "test_service.py"), "model"),
}
"""Files of tests that wait, by what they share that is slow to start: they run in one process."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reverse", action="store_true", help="the last file first: no test may need those before it")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the files; the tests in each stay as they are: fixtures of a module are made once either way.

    A file of few integration tests is one that starts gateways of its own, and takes longest: so it begins early.
    """
    sizes = Counter(item.path for item in items)

    def place(path: Path) -> tuple[int, int, str]:
        folder = path.relative_to(Path(__file__).parent).parts[0]
        return (FIRST.index(folder) if folder in FIRST else len(FIRST), sizes[path], str(path))

    items.sort(key=lambda item: place(item.path))
    if config.getoption("--reverse"):
        places = {path: number for number, path in enumerate(dict.fromkeys(item.path for item in items))}
        items.sort(key=lambda item: -places[item.path])


class ByFile(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
    """Gives each process a file after the other, in the order of collection; files that share gateways count as one."""

    def __init__(self, config: pytest.Config, log: Any) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return SHARED.get(Path(file).name, file) if file.startswith(("tests/integration/", "tests/tgi/")) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


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
