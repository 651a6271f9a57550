"""Each test of clients' connections runs on asyncio's own event loop and on uvloop, which serves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

CONNECTIONS = {
    "test_answer.py",
    "test_asgi.py",
    "test_connection.py",
    "test_leaving.py",
    "test_listener.py",
    "test_storm.py",
    "test_too_late.py",
}


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    loops = {"asyncio": asyncio.new_event_loop}
    return loops | {"uvloop": uvloop.new_event_loop} if item.path.name in CONNECTIONS else loops
