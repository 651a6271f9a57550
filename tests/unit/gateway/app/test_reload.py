"""A new table is in force in all parts at once, or in none."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from harness.virtual_time import settle
from unit.gateway.app.servers import LoopClock, Servers, threadless
from unit.gateway.routing.building import World, call, one, table, targets, virtual

from backends import registry
from gateway.app.fleet import Fleet
from gateway.app.reload import Reloader, TableStatus, rules
from gateway.auth import Keyring, Throttle
from gateway.call_state import Parts
from gateway.config import Mistake, Table, parse_table
from gateway.config.source import Loaded
from gateway.http.operations import Readiness
from gateway.http.server import DataPlane
from gateway.limits import Admission
from gateway.metering import Meter, Metrics
from gateway.routing import Builder, TargetSlots
from gateway.routing.responses import Responses
from gateway.store.local import LocalStore
from gateway.upstream import AnswerLimits, Forwarder
from gateway.upstream.shadow import Shadow

OLD = one("a", "b")
NEW = """
routes:
  r: {policy: round-robin, targets: [{name: b, backend: vllm, url: "http://b"}]}
  s:
    targets: [{name: c, backend: vllm, url: "http://c"}]
    shadow: {target: {name: d, backend: vllm, url: "http://d"}, share: 0.5, concurrency: 2}
    limits: {rpm: 7}
    price: {input: 1, output: 2}
limits: {default: {rpm: 50}}
bodies: {answer: 1MiB, event: 64KiB, request: 2KiB}
"""


def loaded(text: str, config_hash: str = "new", *warnings: Mistake) -> Loaded:
    return Loaded(parse_table(text, "t", {})[0], config_hash, warnings)


class Bench:
    """All parts of a gateway that a table has a say in, as the app puts them together."""

    def __init__(self, text: str, folder: Path) -> None:
        threadless()
        clock, self.metrics = LoopClock(), Metrics()
        store = LocalStore(folder / "keys.json", now=clock.now)
        self.of = World(text, limits=store.limits, adapters=registry.load)
        self.forwarder = Forwarder(AnswerLimits(2**20, 2**20), Servers("a", "b", "c", "d"))
        self.admission = Admission(store, clock=clock.monotonic, now=clock.now)
        self.shadow = Shadow({}, self.forwarder, lambda *_: None, lambda *_: None, clock.monotonic)
        first = loaded(text, "old")
        parts = Parts(
            keyring=Keyring(store.records, {0: b""}, clock, Throttle(clock)),
            routes=self.of.builder.build(first.table, "old"),
            admission=self.admission,
            forwarder=self.forwarder,
            meter=Meter(self.metrics, clock, lambda _: None),
            shadow=self.shadow,
            responses=Responses(store.homes),
        )
        self.of.routes = parts.routes
        parts.routes.open()
        self.plane = DataPlane(parts, first.table.bodies, None)
        self.fleet = Fleet(parts.routes, store, self.forwarder, self.metrics, clock, "g")
        self.readiness = Readiness(store)
        self.reloader = Reloader(
            self.plane,
            self.of.builder,
            self.fleet,
            {},
            first.table,
            TableStatus(self.readiness, self.metrics, clock, "old"),
        )

    async def apply(self, text: str, config_hash: str = "new", *warnings: Mistake) -> None:
        await self.reloader.apply(loaded(text, config_hash, *warnings))
        self.of.routes = self.plane.parts.routes

    def value(self, metric: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"trunkline_{metric}", labels)

    def state(self) -> tuple[Any, ...]:
        """Everything that a new table may change."""
        return (
            self.plane.parts,
            self.plane.bodies,
            self.fleet.routes,
            list(self.fleet.prober.names),
            self.admission._planner._rules,
            self.forwarder.limits,
            self.shadow.mirrors,
            self.readiness.config,
            [(target.name, len(target.load.freed)) for target in self.plane.parts.routes.targets.values()],
            self.value("config_info", hash="old"),
            self.value("config_info", hash="new"),
            self.value("config_reloads_total", outcome="applied"),
        )


@virtual
async def test_a_new_table_is_in_force_in_all_parts(tmp_path: Path) -> None:
    bench = Bench(OLD, tmp_path)
    before = bench.plane.parts
    await bench.apply(NEW)
    parts, new = bench.plane.parts, loaded(NEW).table
    assert parts is not before and [route.name for route in parts.routes] == ["r", "s"]
    assert bench.fleet.routes is parts.routes and list(bench.fleet.prober.names) == ["b", "c"]
    assert bench.plane.bodies == new.bodies and bench.forwarder.limits == AnswerLimits(2**20, 2**16, 2**23)
    assert bench.forwarder.memory.bound == 2**23
    assert bench.admission._planner._rules == rules(new)
    assert list(bench.shadow.mirrors) == ["s"] and bench.shadow.mirrors["s"].share == 0.5
    assert (bench.readiness.config, bench.readiness.config_error) == ("new", "")
    assert (bench.value("config_info", hash="old"), bench.value("config_info", hash="new")) == (None, 1)
    assert bench.value("config_reloads_total", outcome="applied") == 1
    for shared in ("keyring", "admission", "forwarder", "meter", "shadow"):
        assert getattr(parts, shared) is getattr(before, shared)
    assert all(len(target.load.freed) == 1 for target in parts.routes.targets.values())
    assert not before.routes.targets["a"].load.freed


@pytest.mark.parametrize("where", ["objection", "build", "mirrors", "policy"])
@virtual
async def test_a_table_that_cannot_be_used_changes_nothing(tmp_path: Path, where: str) -> None:
    bench = Bench(OLD, tmp_path)
    before, new = bench.state(), NEW
    if where == "objection":
        new = one(targets=[{"name": "c", "backend": "llamacpp", "launch": {"model": "embedded"}}])
    elif where == "build":
        bench.of.builder._capabilities = lambda _: (_ for _ in ()).throw(ValueError("no such adapter"))
    elif where == "mirrors":
        bench.of.builder.mirrors = lambda _: (_ for _ in ()).throw(ValueError("no such adapter"))  # type: ignore[method-assign]
    else:
        bench.of.builder._policies = lambda _: (_ for _ in ()).throw(ValueError("broken"))
    with pytest.raises(ValueError, match=r"does not run|no such adapter|broken"):
        await bench.apply(new)
    assert bench.state() == before
    assert sorted(await bench.of.tried()) == ["a", "b"], "it still serves"
    bench.of.idle()


@virtual
async def test_a_refused_table_is_told_of_until_a_good_one_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(OLD, tmp_path)
    assert bench.value("config_refused") == 0
    bench.reloader.refused("t:1:1: what is this?")
    assert bench.value("config_refused") == 1 and bench.value("config_reloads_total", outcome="refused") == 1
    assert bench.readiness.config == "old" and "cannot be used" in bench.readiness.config_error
    assert "what is this?" in caplog.text
    assert "what is this?" not in bench.readiness.config_error, "anybody may ask whether the gateway is ready"
    assert bench.value("config_info", hash="old") == 1
    await bench.apply(OLD, "old")
    assert bench.value("config_refused") == 0 and bench.readiness.config_error == ""
    assert bench.value("config_info", hash="old") == 1


@virtual
async def test_warnings_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(OLD, tmp_path)
    await bench.apply(NEW, "new", Mistake("t", 3, 1, "a variable is not set", True))
    assert "new is in force" in caplog.text and "a variable is not set" in caplog.text


@virtual
async def test_calls_end_on_the_table_they_began_with_and_the_next_go_by_the_new_one(tmp_path: Path) -> None:
    text = one(targets=targets("a", max_inflight=1))
    bench = Bench(text, tmp_path)
    held, attempt = await bench.of.first(call(id="c0"))
    waits = asyncio.create_task(bench.of.tried(call(id="c1")))
    await settle()
    await bench.apply(one(targets=targets("a", max_inflight=2)))
    later, other = await bench.of.first(call(id="c2"))
    assert other.target is not attempt.target and other.target.load is attempt.target.load
    attempt.first_token()
    attempt.answered(None)
    await held.aclose()
    await later.aclose()
    assert await waits == ["a"]
    bench.of.idle()


@virtual
async def test_a_queue_that_is_full_of_calls_outlives_many_reloads(tmp_path: Path) -> None:
    texts = [one(targets=targets("a", max_inflight=2), queue={"calls": size}) for size in (50, 60)]
    bench = Bench(texts[0], tmp_path)
    served = 0

    async def ask(number: int) -> None:
        nonlocal served
        calls, _ = await bench.of.first(call(id=f"c{number}"))
        await asyncio.sleep(0.1)
        await calls.aclose()
        served += 1

    tasks = [asyncio.create_task(ask(number)) for number in range(40)]
    for number in range(10):
        await asyncio.sleep(0.15)
        await bench.apply(texts[number % 2], f"h{number}")
    await asyncio.gather(*tasks)
    assert served == 40 and asyncio.get_running_loop().time() < 40 / 2 * 0.1 + 1
    bench.of.idle()


def test_limits_are_those_of_the_table() -> None:
    made = rules(loaded(NEW).table)
    assert (made.key.rpm, made.models["s"].rpm, made.models["r"].rpm, made.tenant.rpm) == (50, 7, None, None)
    assert made.key_models.keys() == {"r", "s"} and made.ietf_headers == Table(routes={}).limits.ietf_headers


def test_shadow_targets_are_found_by_route(tmp_path: Path) -> None:
    text = table(
        r={"targets": targets("a"), "shadow": {"target": {**targets("d")[0], "url": "http://d/"}, "share": 1.0}},
        s={"targets": targets("b")},
        t={
            "targets": targets("c"),
            "shadow": {"target": {"name": "e", "backend": "llamacpp", "launch": {"model": "embedded"}}, "share": 0.2},
        },
    )
    slots = TargetSlots(LocalStore(tmp_path / "keys.db").limits)
    builder = Builder({"e": "http://127.0.0.1:5/"}, registry.capabilities, slots, time.monotonic)
    found = builder.mirrors(loaded(text).table)
    assert {name: (mirror.address.url, mirror.share) for name, mirror in found.items()} == {
        "r": ("http://d", 1.0),
        "t": ("http://127.0.0.1:5", 0.2),
    }
