"""The parts of a worker, as they are put together: they open, and whatever fails meanwhile, all are closed again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.app.admin import AdminListener
from gateway.app.gateway import Gateway
from gateway.app.lifetime import Lifetime, Part
from gateway.config import Settings
from gateway.config.source import Source

TABLE = 'routes: {one: {targets: [{name: a, backend: vllm, url: "http://127.0.0.1:9"}]}}'


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "routing.yaml"
    path.write_text(TABLE)
    return Source(path)


@pytest.fixture(autouse=True)
def output(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Somewhere for records to go: pytest's own standard output has no file behind it."""
    with open(os.devnull, "w") as file:
        monkeypatch.setattr("sys.stdout", file)
        yield


@pytest.fixture
def make(source: Source, tmp_path: Path) -> Callable[[], Gateway]:
    return lambda: Gateway(Settings.read(state=str(tmp_path / "keys.json")), source.load(), source)


def others() -> set[asyncio.Task[object]]:
    """What runs beside the test."""
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


async def test_a_gateway_that_is_closed_leaves_nothing_running(make: Callable[[], Gateway]) -> None:
    gateway = make()
    await gateway.lifetime.open()
    assert others()
    await gateway.lifetime.close()
    assert not others()


@pytest.mark.parametrize("place", range(13))
async def test_a_gateway_that_cannot_be_opened_leaves_nothing_running(make: Callable[[], Gateway], place: int) -> None:
    def fail() -> None:
        raise RuntimeError("it cannot be opened")

    parts: list[Part] = make()._order()
    assert len(parts) == 13, "one case a part"
    parts[place] = (fail, parts[place][1])
    with pytest.raises(RuntimeError, match="it cannot be opened"):
        await Lifetime(parts).open()
    assert not others()


async def test_the_admin_listener_that_is_closed_leaves_nothing_running(source: Source, tmp_path: Path) -> None:
    listener = AdminListener(Settings.read(state=str(tmp_path / "keys.json"), admin_port=1), source)
    await listener.lifetime.open()
    assert others()
    await listener.lifetime.close()
    assert not others()
