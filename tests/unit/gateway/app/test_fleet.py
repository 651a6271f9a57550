"""What is asked of targets, ordered by operators and told by other gateways reaches the targets in force."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from unit.gateway.app.servers import LoopClock, Servers, threadless
from unit.gateway.routing.building import World, call, one, table, targets, virtual

from backends import registry
from gateway.app.fleet import Fleet
from gateway.core.types import Report, TargetOrder, TargetState
from gateway.metering import Metrics
from gateway.store import StoreDown
from gateway.store.local import LocalStore
from gateway.upstream import AnswerLimits, Forwarder


class Bench:
    """A fleet that looks after the routes of a table."""

    def __init__(self, text: str, folder: Path, *hosts: str) -> None:
        threadless()
        self.clock, self.servers, self.metrics = LoopClock(), Servers(*hosts), Metrics()
        self.store = LocalStore(folder / "keys.json", now=self.clock.now, boot="g")
        self.of = World(text, limits=self.store.limits, adapters=registry.load)
        forwarder = Forwarder(AnswerLimits(2**20, 2**20), self.servers)
        self.fleet = Fleet(self.of.routes, self.store, forwarder, self.metrics, self.clock, "g")

    def reload(self, text: str) -> None:
        self.of.reload(text)
        self.fleet.adopt(self.of.routes)

    async def order(self, name: str, state: str, version: int, until: float | None = None) -> None:
        await self.store.records.put(TargetOrder(id=name, created=0.0, version=version, state=state, until=until))  # type: ignore[arg-type]

    def value(self, metric: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"trunkline_{metric}", labels)

    def state(self, name: str) -> TargetState:
        return self.fleet.state(name)

    async def reported(self) -> Report:
        """What an operator's command reads."""
        ((word, _),) = (await self.store.board.reports()).values()
        return msgspec.msgpack.decode(word, type=Report)


@asynccontextmanager
async def bench(text: str, folder: Path, *hosts: str) -> AsyncIterator[Bench]:
    made = Bench(text, folder, *hosts)
    await made.store.open()
    await made.fleet.open()
    await asyncio.sleep(0.5)
    try:
        yield made
    finally:
        await made.fleet.close()
        await made.store.close()


@virtual
async def test_probes_reach_the_targets(tmp_path: Path) -> None:
    async with bench(one("a", "b"), tmp_path, "a") as of:
        a, b = of.of["a"], of.of["b"]
        assert (a.up, a.why, b.up, b.why) == (True, "", False, "unreachable")
        assert (of.value("target_up", target="a"), of.value("target_up", target="b")) == (1, 0)
        assert (of.state("a").state, of.state("b").state, of.state("b").why) == ("up", "down", "unreachable")
        of.servers.answers["a"]["/health"] = 503
        await asyncio.sleep(6)
        assert (a.up, a.why) == (False, "status 503")
        of.servers.answers["a"]["/health"] = 200
        await asyncio.sleep(6)
        assert (a.up, a.since > 0) == (True, True), "it begins slowly"


@virtual
async def test_calls_that_wait_learn_that_a_target_is_back(tmp_path: Path) -> None:
    text = one("a", fallback=targets("spare"))
    async with bench(text, tmp_path, "spare") as of:
        of.of["spare"].rest(8.0)
        waits = asyncio.create_task(of.of.tried(call()))
        await asyncio.sleep(0.5)
        assert not waits.done()
        of.servers.answers["a"] = {"/health": 200}
        await asyncio.sleep(1)
        assert waits.done() and waits.result()[0] == "a"


@virtual
async def test_what_an_engine_tells_is_shown_and_calls_that_wait_in_it_keep_none_away(tmp_path: Path) -> None:
    """To be sent elsewhere would not spare a call the wait: there its prompt is not cached."""
    async with bench(one("a", policy="home-cost"), tmp_path, "a") as of:
        of.servers.load("a", running=5, waiting=3, blocks=1000)
        await asyncio.sleep(5)
        assert (of.of["a"].kv_tokens, of.state("a").kv_tokens) == (16_000, 16_000)
        for metric, shown in (("engine_running", 5), ("engine_waiting", 3)):
            assert of.value(metric, target="a") == shown
        held = [await of.of.first(call(id=f"c{n}")) for n in range(20)]
        assert {attempt.target.name for _, attempt in held} == {"a"} and of.of.route.queue.waiting == 0
        assert of.state("a").max_inflight is None
        for calls, _ in held:
            await calls.aclose()


@virtual
async def test_an_engine_that_sleeps_is_down_until_it_wakes_or_tells_nothing(tmp_path: Path) -> None:
    async with bench(one("a", "b"), tmp_path, "a", "b") as of:
        asleep = 'vllm:num_requests_running 0.0\nvllm:engine_sleep_state{sleep_state="awake"} 0.0\n'
        of.servers.answers["a"]["/metrics"] = asleep
        await asyncio.sleep(3)
        assert of.of["a"].asleep and of.state("a").state == "down"
        of.servers.load("a", 0, 0)
        await asyncio.sleep(3)
        assert not of.of["a"].asleep and of.state("a").state == "up"
        of.servers.answers["a"]["/metrics"] = asleep
        await asyncio.sleep(3)
        del of.servers.answers["a"]["/metrics"]
        await asyncio.sleep(20)
        assert not of.of["a"].asleep, "nobody would ever say that it is awake"


@virtual
async def test_what_engines_are_bounds_what_they_are_sent(tmp_path: Path) -> None:
    made = Bench(one("a", "b"), tmp_path, "a", "b")
    made.servers.facts("a", 1000)
    made.servers.facts("b", 9000)
    await made.store.open()
    await made.fleet.open()
    await asyncio.sleep(0.5)
    assert [made.of[name].context for name in "ab"] == [1000, 9000]
    assert await made.of.tried(call(max_tokens=5000)) == ["b"]
    assert made.state("a").context == 1000 and made.state("a").version == "0.11"
    assert made.value("route_drift", route="r", field="context") == 1
    assert made.value("route_drift", route="r", field="version") == 0
    made.reload(one("a", "c"))
    assert made.value("route_drift", route="r", field="context") == 0, "the one that differed is gone"
    await made.fleet.close()
    await made.store.close()


@virtual
async def test_a_fallback_may_be_another_kind_of_server(tmp_path: Path) -> None:
    """Only targets that are equally welcome should be alike."""
    made = Bench(one("a", "b", fallback=targets("c", "d")), tmp_path, "a", "b", "c", "d")
    for name, context in (("a", 1000), ("b", 1000), ("c", 500), ("d", 500)):
        made.servers.facts(name, context)
    await made.fleet.open()
    await asyncio.sleep(0.5)
    assert made.value("route_drift", route="r", field="context") == 0
    made.servers.facts("a", 2000)
    await asyncio.sleep(70)
    assert made.value("route_drift", route="r", field="context") == 1
    made.servers.facts("c", 600)
    made.servers.facts("d", 600)
    await asyncio.sleep(70)
    assert made.value("route_drift", route="r", field="context") == 1, "the fallbacks agree, the targets do not"
    await made.fleet.close()


@virtual
async def test_operators_are_heard_soon(tmp_path: Path) -> None:
    async with bench(one("a", "b"), tmp_path, "a", "b") as of:
        await of.order("a", "drained", 1)
        await asyncio.sleep(0.5)
        assert (of.of["a"].order, of.state("a").state, of.state("a").order) == ("drained", "drained", 1)
        assert await of.of.tried() == ["b"]
        await of.order("a", "ejected", 2, until=of.clock.now() + 5)
        await asyncio.sleep(1)
        assert (of.of["a"].order, of.state("a").state) == ("ejected", "ejected")
        await asyncio.sleep(6)
        assert (of.of["a"].order, of.state("a").order) == ("open", 2)


@virtual
async def test_orders_outlive_the_store(tmp_path: Path) -> None:
    async with bench(one("a", "b"), tmp_path, "a", "b") as of:
        await of.order("a", "drained", 1)
        await asyncio.sleep(1)

        async def away(kind: object) -> list[object]:
            raise StoreDown("away")

        of.store.records.all = away  # type: ignore[method-assign,assignment]
        await asyncio.sleep(30)
        of.reload(one("a", "b", "c"))
        assert of.of["a"].order == "drained"


@virtual
async def test_operators_read_how_targets_stand(tmp_path: Path) -> None:
    text = one(targets=[*targets("a", max_inflight=9, context="1k", weight=2), *targets("b")], fallback=targets("c"))
    async with bench(text, tmp_path, "a", "b") as of:
        calls, attempt = await of.of.first(tokens=500)
        name = attempt.target.name
        await asyncio.sleep(1.1)
        report = await of.reported()
        assert (report.gateway, report.config_hash) == ("g", "hash")
        shown = {state.name: state for state in report.targets}
        assert [(state.tier, state.route, state.backend) for state in report.targets] == [
            (0, "r", "vllm"),
            (0, "r", "vllm"),
            (1, "r", "vllm"),
        ]
        assert (shown["a"].max_inflight, shown["b"].max_inflight, shown["a"].context) == (9, None, 1000)
        assert (shown["a"].weight, shown["a"].url) == (2.0, "http://a")
        assert (shown[name].running, shown[name].waiting, shown[name].prefill, shown[name].attempts) == (1, 1, 500, 1)
        assert of.value("target_running", target=name) == 1 and of.value("target_prefill_tokens", target=name) == 500
        await calls.aclose()
        await asyncio.sleep(1.1)
        assert of.value("target_running", target=name) == 0
        assert (await of.reported()).targets[0].running == 0


@virtual
async def test_a_new_table_is_looked_after_at_once(tmp_path: Path) -> None:
    async with bench(one("a", "b"), tmp_path, "a", "b", "c") as of:
        await of.order("c", "drained", 1)
        of.servers.facts("b", 1000)
        await asyncio.sleep(1)
        of.reload(table(r={"targets": targets("a", "c")}, s={"targets": targets("d")}))
        assert of.of["c"].order == "drained", "before a single call could go there"
        assert (of.of["a"].up, of.of["c"].up) == (True, None)
        assert of.value("target_up", target="b") is None, "metrics tell of no target that is gone"
        await asyncio.sleep(1)
        assert (of.of["c"].up, of.of["d"].up) == (True, False)
        of.servers.asked.clear()
        await asyncio.sleep(15)
        assert {host for host, _ in of.servers.asked} == {"a", "c", "d"}, "nobody asks the one that is gone"
        assert [state.name for state in (await of.reported()).targets] == ["a", "c", "d"]


@virtual
async def test_another_server_behind_a_name_is_asked_anew(tmp_path: Path) -> None:
    made = Bench(one("a", "b"), tmp_path, "a", "b", "z")
    made.servers.facts("a", 1000)
    made.servers.facts("z", 2000, "0.12")
    await made.fleet.open()
    await asyncio.sleep(0.5)
    assert made.state("a").version == "0.11"
    made.reload(one(targets=[{**targets("a")[0], "url": "http://z"}, *targets("b")]))
    assert (made.of["a"].up, made.state("a").version) == (None, "")
    await asyncio.sleep(0.5)
    assert (made.of["a"].up, made.of["a"].context, made.state("a").version) == (True, 2000, "0.12")
    await made.fleet.close()


@virtual
async def test_a_target_that_is_back_is_asked_what_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may be another by now: what has changed is in the log, by the names of the fields."""
    caplog.set_level(logging.INFO)
    made = Bench(one("a", "b"), tmp_path, "a", "b")
    made.servers.facts("a", 1000)
    await made.fleet.open()
    await asyncio.sleep(0.5)
    made.servers.answers["a"]["/health"] = 503
    await asyncio.sleep(6)
    made.servers.facts("a", 2000, "0.12")
    made.servers.answers["a"]["/health"] = 200
    await asyncio.sleep(9)
    assert (made.of["a"].context, made.state("a").version) == (2000, "0.12")
    said = [record.getMessage() for record in caplog.records if "target a" in record.getMessage()]
    assert said == [
        "target a is up",
        "target a is down: status 503",
        "target a is up",
        "target a has changed: context, version",
    ]
    await made.fleet.close()
