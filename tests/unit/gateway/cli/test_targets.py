"""`trunkline targets`: orders by command, and waiting for what still runs on a target."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import Result

from gateway.admin import Registrar
from gateway.cli import drain
from gateway.core.clock import SystemClock
from gateway.core.types import Report, TargetOrder, TargetState
from gateway.store.local import LocalStore

Run = Callable[..., Result]
Said = Callable[..., Any]
Refused = Callable[..., str]

TABLE = """
routes:
  big:
    targets:
      - {name: a, backend: vllm, url: "http://a:8000"}
      - {name: b, backend: vllm, url: "http://b:8000", api_key: "${NOT_SET_HERE}"}
    fallback:
      - {name: spare, backend: tgi, url: "http://spare"}
  small:
    targets:
      - {name: s, backend: openai, url: "http://s"}
"""


@pytest.fixture(autouse=True)
def routing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "table.yaml"
    path.write_text(TABLE)
    monkeypatch.setenv("TRUNKLINE_ROUTING", str(path))
    return path


class Worker:
    """A gateway beside the command: it reports every 20 ms how many calls run on target `a`, and heeds orders."""

    def __init__(self, path: Path) -> None:
        self.running: list[int] = [0]
        """What it reports from one time to the next; the last for good."""
        self.heeds = True
        self.told: list[TargetState] = []
        self._store = LocalStore(path, boot="worker")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        while not self._stop.is_set():
            order = await self._store.records.get(TargetOrder, "a")
            version = order.version if order is not None and self.heeds else 0
            running = self.running.pop(0) if len(self.running) > 1 and version else self.running[0]
            state = TargetState(name="a", route="big", state="up", order=version, running=running, max_inflight=8)
            self.told.append(state)
            await self._store.board.report(msgspec.msgpack.encode(Report(gateway="worker", targets=(state,))))
            await asyncio.sleep(0.02)
        await self._store.close()


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setattr(drain, "LOOK_SECONDS", 0.01)
    with Worker(tmp_path / "keys.json") as started:
        deadline = time.monotonic() + 10
        while not started.told:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        yield started


def test_a_target_out_and_in_again(said: Said, run: Run) -> None:
    drained = said("targets", "drain", "a", "--reason", "new driver")
    assert drained["order"] == {"state": "drained", "until": None, "reason": "new driver", "version": 1}
    assert [each["order"] is None for each in said("targets", "list")] == [False, True, True, True]
    listed = run("targets", "list").stdout.splitlines()
    assert [line.split()[0] for line in listed] == ["target", "a", "b", "spare", "s"]
    assert "ordered drained: new driver" in listed[1] and "no gateway reports" in listed[2]
    assert "Target a is open" in run("targets", "undrain", "a").stdout
    assert said("targets", "list")[0]["order"] is None
    assert [entry["action"] for entry in said("admin", "audit")] == ["target.undrain", "target.drain"]


def test_an_ejection_has_an_end(said: Said, run: Run) -> None:
    for arguments, seconds in (((), 60), (("--for", "5m"), 300)):
        before = time.time()
        order = said("targets", "eject", "a", *arguments)["order"]
        assert order["state"] == "ejected" and before + seconds <= order["until"] <= time.time() + seconds
    assert "is ejected until 2" in run("targets", "eject", "a").stdout


def test_the_last_open_target_of_a_route_is_warned_of(run: Run) -> None:
    assert "No other target" not in run("targets", "drain", "a").stderr
    assert "No other target" not in run("targets", "drain", "b").stderr, "there is a fallback"
    assert "No other target of route 'big' is open" in run("targets", "drain", "spare").stderr
    assert "No other target of route 'small' is open" in run("targets", "eject", "s").stderr
    assert "No other target" not in run("targets", "undrain", "s").stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("drain", "c"), "there is no target 'c'; targets: a, b, spare, s"),
        (("undrain", "c"), "there is no target 'c'"),
        (("eject", "c"), "there is no target 'c'"),
        (("eject", "a", "--for", "2d"), "seconds"),
        (("eject", "a", "--for", "0s"), "above 0"),
        (("drain", "a", "--reason", "x" * 201), "reason"),
        (("drain", "a", "--reason", "a\tb"), "printable"),
        (("drain", "a", "--routing", "nowhere.yaml"), "nowhere.yaml cannot be used"),
    ],
)
def test_what_cannot_be_is_named(refused: Refused, said: Said, arguments: tuple[str, ...], told: str) -> None:
    assert told in refused("targets", *arguments)
    assert said("admin", "audit") == []


def test_what_runs_there_is_shown_beside_what_may(worker: Worker, run: Run, said: Said) -> None:
    worker.running = [3]
    seen = len(worker.told)
    while len(worker.told) < seen + 2:
        time.sleep(0.005)
    assert " 3/8 " in run("targets", "list").stdout.splitlines()[1]
    assert [(each["running"], each["max_inflight"]) for each in said("targets", "list")[:2]] == [(3, 8), (0, None)]


def test_waiting_ends_when_no_call_runs_there(worker: Worker, run: Run) -> None:
    worker.running = [2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 0]
    done = run("targets", "drain", "a", "--wait")
    assert done.exit_code == 0, done.output
    assert "No call runs there." in done.stdout
    assert [line for line in done.stderr.splitlines() if "still run" in line] == [
        "2 calls still run there",
        "1 call still runs there",
    ]


def test_a_gateway_that_has_not_heard_of_it_is_waited_for(worker: Worker, refused: Refused) -> None:
    """It reports no calls, but of before: the next one may be on its way."""
    worker.heeds = False
    text = refused("targets", "drain", "a", "--wait", "--timeout", "300ms")
    assert "after 0.3 s 1 of 1 gateway workers have not heard of it yet" in text


def test_waiting_is_given_up_in_time_and_the_target_stays_drained(worker: Worker, refused: Refused, said: Said) -> None:
    worker.running = [3]
    assert "after 0.3 s 3 calls still run there" in refused("targets", "drain", "a", "--wait", "--timeout", "300ms")
    assert said("targets", "list")[0]["order"]["state"] == "drained"


def test_who_is_overruled_does_not_wait(worker: Worker, refused: Refused, tmp_path: Path) -> None:
    worker.running, path = [3], tmp_path / "keys.json"

    def overrule() -> None:
        while not any(state.order for state in worker.told):
            time.sleep(0.005)
        asyncio.run(Registrar(LocalStore(path).records, {0: b""}, SystemClock(), "test").order("a", "open"))

    with ThreadPoolExecutor() as pool:
        other = pool.submit(overrule)
        assert "ordered target 'a' otherwise" in refused("targets", "drain", "a", "--wait", "--timeout", "30s")
        other.result()


def test_without_a_gateway_nothing_is_known(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "DEAD_SECONDS", 0.0)
    monkeypatch.setattr(drain, "SOON_SECONDS", 0.1)
    assert "no gateway reports it: what runs there is not known" in refused("targets", "drain", "a", "--wait")
