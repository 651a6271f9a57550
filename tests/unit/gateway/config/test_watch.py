"""A table that changes under a running gateway: what is good is handed over, what is not is told, nothing is lost."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.config import Mistakes, Table, apart, parse_table, watch
from gateway.config.reader import Reading, read
from gateway.config.source import Loaded, Source, unlaunched
from gateway.config.watch import Watcher

SECONDS = 40.0


def text(*routes: str, key: str = "") -> str:
    api_key = f", api_key: '{key}'" if key else ""
    lines = [
        f'  {route}: {{targets: [{{name: t-{route}, backend: vllm, url: "http://a"{api_key}}}]}}' for route in routes
    ]
    return "\n".join(
        ["routes:", *lines, "tests:", f"  - {{ask: {{model: {routes[0]}}}, expect: {{route: {routes[0]}}}}}"]
    )


def sha(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:12]


class Told(Source):
    """A source that tells the test of each reading."""

    def __init__(self, path: Path, **options: object) -> None:
        super().__init__(path, {}, **options)  # type: ignore[arg-type]
        self.readings: asyncio.Queue[Reading] = asyncio.Queue()

    async def read(self) -> Reading:
        reading = await super().read()
        self.readings.put_nowait(reading)
        return reading

    async def again(self) -> None:
        """Have the same content read once more."""
        self.path.touch()
        now = watch.stamp([str(self.path)])
        while (await self.readings.get()).stamp != now:
            pass


class Watched:
    """A watcher and what came of it, in order: a `Loaded`, or the text of a refusal."""

    def __init__(self, source: Source) -> None:
        self.events: asyncio.Queue[Loaded | str] = asyncio.Queue()
        self.error: Exception | None = None
        self.watcher = Watcher(source, self._apply, self.events.put_nowait)

    async def _apply(self, loaded: Loaded) -> None:
        if self.error is not None:
            raise self.error
        self.events.put_nowait(loaded)

    async def event(self) -> Loaded | str:
        async with asyncio.timeout(SECONDS):
            return await self.events.get()

    async def applied(self) -> Loaded:
        event = await self.event()
        assert isinstance(event, Loaded), event
        return event

    async def refused(self) -> str:
        event = await self.event()
        assert isinstance(event, str), event
        return event


@asynccontextmanager
async def watched(source: Source) -> AsyncIterator[Watched]:
    """A watcher of a source that has been loaded."""
    found = Watched(source)
    found.watcher.open()
    try:
        yield found
    finally:
        await found.watcher.close()
        assert found.events.empty(), found.events.get_nowait()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0.05)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "routing.yaml"
    path.write_text(text("one"))
    return path


def replace(path: Path, content: str) -> None:
    """As editors and deployment tools do: write aside, rename into place."""
    fresh = path.with_name("fresh")
    fresh.write_text(content)
    fresh.replace(path)


def source(path: Path, **options: object) -> Told:
    made = Told(path, **options)
    assert list(made.load().table.routes) == ["one"]
    return made


def overwrite(path: Path, content: str) -> None:
    path.write_text(content)


@pytest.mark.parametrize("write", [replace, overwrite])
async def test_a_new_table_is_handed_over(path: Path, write: Callable[[Path, str], None]) -> None:
    async with watched(source(path)) as found:
        write(path, text("one", "two"))
        loaded = await found.applied()
        assert list(loaded.table.routes) == ["one", "two"]
        assert loaded.config_hash == sha(text("one", "two"))
        assert loaded.table == parse_table(text("one", "two"), "t", {})[0]


async def test_a_table_of_the_same_size_and_time_is_seen(path: Path) -> None:
    """As `cp --preserve` and archives leave it."""
    before = path.stat()
    async with watched(source(path)) as found:
        path.write_text(text("two"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert path.stat().st_size == before.st_size
        assert list((await found.applied()).table.routes) == ["two"]


async def test_a_configmap_that_swaps_its_link_is_seen(tmp_path: Path) -> None:
    """Kubernetes keeps each version in a folder of its own and renames a link to it."""
    for version, route in (("v1", "one"), ("v2", "two")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "routing.yaml").write_text(text(route))
    (tmp_path / "..data").symlink_to("v1")
    (tmp_path / "routing.yaml").symlink_to("..data/routing.yaml")
    async with watched(source(tmp_path / "routing.yaml")) as found:
        (tmp_path / "fresh").symlink_to("v2")
        (tmp_path / "fresh").replace(tmp_path / "..data")
        assert list((await found.applied()).table.routes) == ["two"]


async def test_a_bad_table_is_told_once_with_every_place_and_the_next_good_one_is_used(path: Path) -> None:
    made = source(path)
    async with watched(made) as found:
        replace(path, text("one").replace("backend: vllm", "backend: nonsense") + "\nlimit: {}\n")
        told = await found.refused()
        assert f"{path}:2:" in told and "'nonsense'" in told
        assert f"{path}:5:1: unknown key 'limit'" in told
        await made.again()
        await made.again()  # so what came of the first time has been told
        replace(path, text("three"))
        assert list((await found.applied()).table.routes) == ["three"]


async def test_a_failed_promise_of_the_table_is_a_refusal(path: Path) -> None:
    async with watched(source(path)) as found:
        replace(path, text("one", "two").replace("expect: {route: one}", "expect: {route: two}"))
        assert "test failed" in await found.refused()


async def test_going_back_to_the_table_in_use_is_told(path: Path) -> None:
    """Whoever was told of the refusal must learn that it is over."""
    async with watched(source(path)) as found:
        replace(path, "routes: [")
        await found.refused()
        replace(path, text("one"))
        assert (await found.applied()).config_hash == sha(text("one"))


async def test_the_same_mistake_after_a_good_table_is_told_again(path: Path) -> None:
    async with watched(source(path)) as found:
        replace(path, "routes: [")
        first = await found.refused()
        replace(path, text("two"))
        await found.applied()
        replace(path, "routes: [")
        assert await found.refused() == first


async def test_a_table_that_was_only_touched_is_not_handed_over(path: Path) -> None:
    made = source(path)
    async with watched(made) as found:
        path.touch()
        assert (await made.readings.get()).table is not None
        replace(path, text("two"))
        assert list((await found.applied()).table.routes) == ["two"]


async def test_a_secret_that_changes_in_its_file_is_handed_over(path: Path) -> None:
    key = path.with_name("key")
    key.write_text("old")
    path.write_text(text("one", key=f"${{file:{key}}}"))
    made = source(path)
    async with watched(made) as found:
        replace(key, "new")
        loaded = await found.applied()
        assert loaded.table.routes["one"].targets[0].api_key == "new"
        assert loaded.config_hash == sha(path.read_text())
        key.unlink()
        assert str(key) in await found.refused()
        key.write_text("newer")
        assert (await found.applied()).table.routes["one"].targets[0].api_key == "newer"


async def test_a_file_named_by_a_new_table_is_watched_too(path: Path) -> None:
    key = path.with_name("key")
    async with watched(source(path)) as found:
        replace(path, text("one", key=f"${{file:{key}}}"))
        told = await found.refused()
        assert str(key) in told and "warning" not in told
        key.write_text("secret")
        assert (await found.applied()).table.routes["one"].targets[0].api_key == "secret"


async def test_a_file_that_vanishes_and_comes_back(path: Path) -> None:
    async with watched(source(path)) as found:
        path.unlink()
        assert "cannot be read" in await found.refused()
        path.write_text(text("one", "two"))
        assert list((await found.applied()).table.routes) == ["one", "two"]


async def test_a_file_being_written_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it changes from one look to the next; each look here finds another piece of it."""
    content = text("one", "two", "three")
    pieces = iter(range(1, len(content), 7))
    real = watch.stamp

    def look(names: list[str]) -> watch.Stamp:
        if (piece := next(pieces, None)) is not None:
            path.write_text(content[:piece])
        elif path.stat().st_size < len(content):
            path.write_text(content)
        return real(names)

    made = source(path)
    monkeypatch.setattr(watch, "stamp", look)
    async with watched(made) as found:
        assert list((await found.applied()).table.routes) == ["one", "two", "three"]
        assert made.readings.qsize() == 1, "no half of it was read"


async def test_a_table_that_changes_while_it_is_read_is_read_again(path: Path) -> None:
    class Slow(Told):
        async def read(self) -> Reading:
            reading = await super().read()
            if self.readings.qsize() == 1:
                replace(self.path, text("three"))  # before the watcher has the answer
            return reading

    made = Slow(path)
    made.load()
    async with watched(made) as found:
        replace(path, text("one", "two"))
        assert list((await found.applied()).table.routes) == ["three"]


async def test_reload_reads_and_hands_over_at_once_though_nothing_changed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 3600)
    async with watched(source(path)) as found:
        for _ in range(2):
            found.watcher.reload()
            assert (await found.applied()).config_hash == sha(text("one"))
        replace(path, "routes: [")
        for _ in range(2):  # who asks is answered
            found.watcher.reload()
            assert "not valid YAML" in await found.refused()


async def test_a_table_that_cannot_be_applied_is_refused_once(path: Path) -> None:
    made = source(path)
    async with watched(made) as found:
        found.error = ValueError("no room")
        replace(path, text("two"))
        assert await found.refused() == f"{path}: no room"
        await made.again()
        await made.again()
        found.error = RuntimeError("secret details")
        replace(path, text("three"))
        told = await found.refused()
        assert "RuntimeError" in told and "secret" not in told
        found.error = None
        replace(path, text("two"))
        assert list((await found.applied()).table.routes) == ["two"]


async def test_a_callback_that_fails_does_not_end_the_watch(path: Path) -> None:
    async with watched(source(path)) as found:
        tell = found.watcher._tell

        def fail(_: str) -> None:
            found.watcher._tell = tell
            raise RuntimeError

        found.watcher._tell = fail
        replace(path, "routes: [")
        while found.watcher._tell is fail:
            await asyncio.sleep(0.01)
        replace(path, text("two"))
        assert list((await found.applied()).table.routes) == ["two"]


async def test_a_child_that_dies_is_told_and_tried_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.05)
    good = apart._CHILD
    monkeypatch.setattr(apart, "_CHILD", "import os; os._exit(7)")
    async with watched(source(path)) as found:
        replace(path, text("two"))
        assert "code 7" in await found.refused()
        monkeypatch.setattr(apart, "_CHILD", good)
        assert list((await found.applied()).table.routes) == ["two"]


async def test_a_child_that_hangs_is_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "CHILD_SECONDS", 0.2)
    monkeypatch.setattr(apart, "_CHILD", "import time; time.sleep(600)")
    with pytest.raises(apart.Unread, match="longer than"):
        await apart.read_apart(path)


async def test_a_child_is_ended_with_the_watch(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    hang = f"import os, time; open({str(pid)!r} + '.new', 'w').write(str(os.getpid()))"
    hang += f"; os.rename({str(pid)!r} + '.new', {str(pid)!r}); time.sleep(600)"
    monkeypatch.setattr(apart, "_CHILD", hang)
    async with watched(source(path)) as found:
        found.watcher.reload()
        while not pid.exists():
            await asyncio.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


async def test_the_event_loop_goes_on_while_a_large_table_is_read(path: Path) -> None:
    """Steps of the loop stay far below what reading takes, both in this thread's own time: the machine may be busy."""
    path.write_text(text(*(f"route-{n}" for n in range(1000))))
    started = time.thread_time()
    assert read(path).table is not None
    taken = time.thread_time() - started
    reading = asyncio.create_task(apart.read_apart(path))
    longest, last = 0.0, time.thread_time()
    while not reading.done():
        await asyncio.sleep(0.001)
        longest, last = max(longest, time.thread_time() - last), time.thread_time()
    table = (await reading).table
    assert table is not None and list(table.routes) == [f"route-{n}" for n in range(1000)]
    assert longest < taken / 2, (longest, taken)


def test_a_table_that_lacks_what_serving_needs_is_not_loaded(path: Path) -> None:
    path.write_text(text("one", key="${ABSENT}"))
    with pytest.raises(Mistakes, match="ABSENT") as caught:
        Source(path, {}).load()
    assert "warning" not in str(caught.value)


async def test_a_worker_that_starts_beside_a_broken_table_uses_the_last_good_one(path: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.yaml"
    async with watched(source(path, kept=kept)) as found:
        replace(path, text("two"))
        await found.applied()
        replace(path, "routes: [")
        await found.refused()
    anew = Source(path, {}, kept=kept)
    loaded = anew.load()
    assert list(loaded.table.routes) == ["two"] and loaded.config_hash == sha(text("two"))
    async with watched(anew) as found:
        assert f"{path}:1:" in await found.refused()
        replace(path, text("two"))
        await found.applied()


def test_without_a_last_good_one_the_mistakes_are_told(path: Path, tmp_path: Path) -> None:
    path.write_text("routes: [")
    with pytest.raises(Mistakes, match=r"routing\.yaml:1:"):
        Source(path, {}, kept=tmp_path / "absent").load()
    (tmp_path / "bad").write_text("also bad")
    with pytest.raises(Mistakes, match=r"routing\.yaml:1:"):
        Source(path, {}, kept=tmp_path / "bad").load()


LAUNCHED = "routes: {{one: {{targets: [{{name: a, backend: vllm, launch: {{argv: [{}, '{{port}}']}}}}]}}}}"


def launching(command: str) -> Table:
    return parse_table(LAUNCHED.format(command), "t", {})[0]


def test_targets_that_would_have_to_be_launched_are_named() -> None:
    running = {"a": "http://127.0.0.1:1"}
    assert unlaunched(launching("x"), running) == []
    assert unlaunched(launching("x"), running, launching("x")) == []
    (absent,) = unlaunched(launching("x"), {})
    assert "'a'" in absent and "restart" in absent
    (other,) = unlaunched(launching("x"), running, launching("y"))
    assert "'a'" in other and "restart" in other
    assert unlaunched(parse_table(text("one"), "t", {})[0], {}) == []


async def test_what_the_gateway_objects_to_is_refused_at_the_start_and_later(path: Path) -> None:
    content = LAUNCHED.format("x")

    async with watched(source(path, launched={})) as found:
        replace(path, content)
        assert "restart" in await found.refused()
    with pytest.raises(Mistakes, match="restart"):
        Source(path, {}, launched={}).load()
