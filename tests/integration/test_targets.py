"""Targets as operators see them and order them about: the command and the admin listener on one store."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness.gateway_process import TRUNKLINE, GatewayProcess, gateway_process
from harness.redis_server import RedisServer, redis_server
from harness.upstream import DONE, Gate, Target, Upstream, event, stream
from integration.client import ask, chat, eventually, request, wire
from integration.test_admin import administer, said

from gateway.core.types import Report, TargetOrder, TargetState
from gateway.store import Store, open_store

NAMES = ("fleet-a", "fleet-b", "fleet-spare")


def table(upstream: Upstream, **more: Any) -> str:
    a, b, spare = ({"name": name, "backend": "openai", "url": upstream.target(name).url} for name in NAMES)
    return json.dumps({"routes": {"fleet": {"targets": [a, b], "fallback": [spare], **more}}})


@pytest.fixture(scope="module")
def own_redis() -> Iterator[RedisServer]:
    """Workers of other tests would report here, too."""
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module", params=["file", "redis"])
def gateway(request: pytest.FixtureRequest, upstream: Upstream) -> Iterator[GatewayProcess]:
    """A gateway with an admin listener, on a state file and on a Redis of two workers."""
    with ExitStack() as stack:
        options: dict[str, Any] = {}
        if request.param == "redis":
            options = {"redis_url": request.getfixturevalue("own_redis").url, "workers": 2}
        yield stack.enter_context(gateway_process(table(upstream), admin=True, **options))


@pytest.fixture(scope="module")
def admin(gateway: GatewayProcess) -> str:
    secret: str = gateway.said("admin", "create", "--name", "tests")["secret"]
    return secret


@pytest.fixture(autouse=True)
def targets(upstream: Upstream) -> dict[str, Target]:
    found = {name: upstream.target(name) for name in NAMES}
    for target in found.values():
        target.restore()
    return found


def command(gateway: GatewayProcess, *arguments: str) -> Any:
    return gateway.said("targets", *arguments, "--routing", str(gateway.routing))


def test_what_the_command_orders_the_listener_shows_and_the_other_way_round(
    gateway: GatewayProcess, admin: str
) -> None:
    drained = command(gateway, "drain", "fleet-a", "--reason", "new driver")
    shown = said(gateway, "GET", "/targets/fleet-a", key=admin)
    assert shown["order"] == drained["order"] and shown["order"]["reason"] == "new driver"
    said(gateway, "PATCH", "/targets/fleet-a", {"state": "open"}, key=admin)
    ejected = said(gateway, "PATCH", "/targets/fleet-b", {"state": "ejected", "seconds": 900}, key=admin)
    orders = {each["name"]: each["order"] for each in command(gateway, "list")}
    assert orders == {"fleet-a": None, "fleet-b": ejected["order"], "fleet-spare": None}
    command(gateway, "undrain", "fleet-b")
    log = said(gateway, "GET", "/audit?count=4", key=admin)["data"]
    assert [(entry["action"], entry["actor"].partition(":")[0]) for entry in log] == [
        ("target.undrain", "cli"),
        ("target.eject", "admin"),
        ("target.undrain", "admin"),
        ("target.drain", "cli"),
    ]


def test_a_name_that_is_none_is_refused_by_both(gateway: GatewayProcess, admin: str) -> None:
    reply = administer(gateway, "PATCH", "/targets/nobody", {"state": "drained"}, key=admin)
    assert reply.status == 404 and all(name in reply.error["message"] for name in NAMES)
    with pytest.raises(subprocess.CalledProcessError) as failed:
        command(gateway, "drain", "nobody")
    assert all(name in failed.value.stderr for name in NAMES) and "Traceback" not in failed.value.stderr


def test_the_listener_goes_by_a_new_table_and_keeps_the_last_good_one(
    gateway: GatewayProcess, admin: str, upstream: Upstream
) -> None:
    before = gateway.routing.read_text()
    changed = json.loads(before)
    changed["routes"]["more"] = {
        "targets": [{"name": "new", "backend": "openai", "url": upstream.target("fleet-new").url}]
    }

    def names() -> list[str]:
        return [each["name"] for each in said(gateway, "GET", "/targets", key=admin)["data"] if each["listed"]]

    try:
        gateway.routing.write_text(json.dumps(changed))
        eventually(lambda: names() == [*NAMES, "new"] or None, "the new target is listed")
        gateway.routing.write_text("routes: [")
        eventually(lambda: "goes on with the table it has" in gateway.stderr() or None, "it is refused")
        assert names() == [*NAMES, "new"]
    finally:
        gateway.routing.write_text(before)
    eventually(lambda: names() == list(NAMES) or None, "the new target is gone")


class Worker:
    """Another gateway worker of the fleet: it goes by orders and reports what the test says that runs there."""

    def __init__(self, boot: str, redis_url: str | None, state: Path) -> None:
        self.running, self.order = 0, 0
        self._open = lambda: open_store(redis_url, state, 5.0, boot=boot)
        self._boot, self._stop = boot, threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        store: Store = self._open()
        await store.open()
        while not self._stop.is_set():
            order = await store.records.get(TargetOrder, "fleet-a")
            self.order = order.version if order is not None else 0
            state = "drained" if order is not None and order.state == "drained" else "up"
            told = TargetState(name="fleet-a", route="fleet", state=state, order=self.order, running=self.running)
            await store.board.report(msgspec.msgpack.encode(Report(gateway=self._boot, targets=(told,))))
            await asyncio.sleep(0.02)
        await store.close()

    @contextmanager
    def living(self) -> Iterator[Worker]:
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join()


@pytest.mark.parametrize("where", ["file", "redis"])
def test_waiting_for_a_drained_target_ends_with_its_last_call(
    where: str, upstream: Upstream, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = None
    with ExitStack() as stack:
        if where == "redis":
            url = stack.enter_context(redis_server()).url
        workers = [
            stack.enter_context(Worker(f"w{n}", url, tmp_path / "keys.json").living())
            for n in range(2 if where == "redis" else 1)
        ]
        for worker in workers:
            worker.running = 2
        routing = tmp_path / "routing.yaml"
        routing.write_text(table(upstream))
        shop = ["--redis-url", url] if url else ["--state", str(tmp_path / "keys.json")]
        arguments = ["targets", "drain", "fleet-a", "--wait", "--json", "--routing", str(routing), *shop]
        draining = stack.enter_context(
            subprocess.Popen([*TRUNKLINE, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        assert draining.stderr is not None
        most = f"{2 * len(workers)} calls still run there"
        assert any(most in line for line in draining.stderr)
        workers[0].running = 0
        if len(workers) > 1:
            assert any("2 calls still run there" in line for line in draining.stderr)
            workers[1].running = 0
        output, _ = draining.communicate(timeout=60)
        shown = json.loads(output)
        assert draining.returncode == 0
        assert (shown["state"], shown["running"], len(shown["gateways"])) == ("drained", 0, len(workers))


def calls(targets: dict[str, Target]) -> dict[str, int]:
    return {name: len(target.calls) for name, target in targets.items()}


def order(gateway: GatewayProcess, admin: str, name: str, state: str) -> None:
    """Give an order, and return when every worker goes by it."""
    given = said(gateway, "PATCH", f"/targets/{name}", {"state": state}, key=admin)["order"]

    def heeded() -> bool | None:
        states = said(gateway, "GET", f"/targets/{name}", key=admin)["gateways"]
        known = [at["order"] >= given["version"] if given else at["state"] != "drained" for at in states]
        return (bool(known) and all(known)) or None

    eventually(heeded, "the order is heeded")


def test_a_drained_target_gets_no_new_calls_until_it_is_opened(
    gateway: GatewayProcess, admin: str, targets: dict[str, Target]
) -> None:
    key = gateway.issue().secret
    for name, rest in (("fleet-a", "fleet-b"), ("fleet-b", "fleet-spare")):
        order(gateway, admin, name, "drained")
        before = calls(targets)
        for _ in range(8):
            assert ask(gateway, chat("fleet"), key).status == 200
        assert calls(targets)[rest] - before[rest] == 8, "all of them went where calls may go"
    for name in ("fleet-a", "fleet-b"):
        order(gateway, admin, name, "open")
    before = calls(targets)

    def used() -> bool | None:
        assert ask(gateway, chat("fleet"), key).status == 200
        return (calls(targets)["fleet-a"] > before["fleet-a"] or calls(targets)["fleet-b"] > before["fleet-b"]) or None

    eventually(used, "they are used again")
    assert calls(targets)["fleet-spare"] == before["fleet-spare"]


def test_a_call_that_runs_on_a_drained_target_goes_on_and_is_waited_for(
    gateway: GatewayProcess, admin: str, targets: dict[str, Target]
) -> None:
    key, gate = gateway.issue().secret, Gate()
    for name in NAMES[1:]:
        order(gateway, admin, name, "drained")
    targets["fleet-a"].script = stream(event("Hel"), gate, event("lo"), event(finish="stop"), DONE)
    with wire(gateway) as client, ExitStack() as stack:
        client.send(request(chat("fleet", stream=True), key))
        client.read_until(b"Hel")
        arguments = ["targets", "drain", "fleet-a", "--wait", "--routing", str(gateway.routing), *gateway._store]
        draining = stack.enter_context(subprocess.Popen([*TRUNKLINE, *arguments], stderr=subprocess.PIPE, text=True))
        assert draining.stderr is not None
        assert any("1 call still runs there" in line for line in draining.stderr)
        gate.open()
        client.read_until(b"[DONE]")
        assert draining.wait(60) == 0
    for name in NAMES:
        said(gateway, "PATCH", f"/targets/{name}", {"state": "open"}, key=admin)
