"""Engines: freshness, when facts are read, drift, and one poller that no target can hold up."""

from __future__ import annotations

import asyncio
import logging

import pytest
from harness.clock import FixedClock

from backends.api import Facts, Gauges
from gateway.targets import engines
from gateway.targets.engines import FIELDS, Engines, differences


class Fleet:
    """Servers that tell what a test sets, and what was passed on of it."""

    def __init__(self, clock: FixedClock) -> None:
        self.clock = clock
        self.gauges: dict[str, Gauges | Exception | None] = {}
        self.facts: dict[str, Facts | Exception | None] = {}
        self.scraped: list[str] = []
        self.described: list[str] = []
        self.seen: list[tuple[str, Gauges | None]] = []
        self.learned: list[tuple[str, Facts]] = []

    async def read_gauges(self, name: str) -> Gauges | None:
        self.scraped.append(name)
        told = self.gauges.get(name)
        if isinstance(told, Exception):
            raise told
        return told

    async def read_facts(self, name: str) -> Facts | None:
        self.described.append(name)
        told = self.facts.get(name)
        if isinstance(told, Exception):
            raise told
        return told

    def gauges_read(self, name: str, gauges: Gauges | None) -> None:
        self.seen.append((name, gauges))

    def facts_read(self, name: str, facts: Facts) -> None:
        self.learned.append((name, facts))

    def engines(self, *names: str) -> Engines:
        return Engines(names, self, self.clock, every=(0.0, 0.001))


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def fleet(clock: FixedClock) -> Fleet:
    return Fleet(clock)


async def told(engines: Engines, fleet: Fleet, *loads: Gauges | None) -> None:
    for load in loads:
        fleet.gauges["a"] = load
        await engines.look("a")


BUSY = Gauges(running=8, waiting=2)
FULL = Gauges(running=8, waiting=0)


async def test_a_load_is_passed_on_and_once_that_there_is_none(fleet: Fleet) -> None:
    engines = fleet.engines("a")
    await told(engines, fleet, None, BUSY, FULL, None, None)
    assert fleet.seen == [("a", BUSY), ("a", FULL), ("a", None)]


async def test_errors_of_an_adapter_are_its_own(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    engines = fleet.engines("a")
    fleet.gauges["a"] = fleet.facts["a"] = ZeroDivisionError("secret")
    with caplog.at_level(logging.ERROR):
        await engines.look("a")
    assert "its load cannot be read: ZeroDivisionError" in caplog.text
    assert "its facts cannot be read: ZeroDivisionError" in caplog.text
    assert "secret" not in caplog.text


async def test_facts_are_read_at_first_and_every_minute(fleet: Fleet, clock: FixedClock) -> None:
    engines = fleet.engines("a")
    fleet.facts["a"] = small = Facts(context=2048)
    await told(engines, fleet, FULL, FULL)
    assert fleet.learned == [("a", small)] and len(fleet.described) == 1
    clock.advance(59)
    await told(engines, fleet, FULL)
    assert len(fleet.described) == 1
    clock.advance(1.1)
    await told(engines, fleet, FULL)
    assert len(fleet.described) == 2
    fleet.facts["a"] = large = Facts(context=4096)
    clock.advance(61)
    await told(engines, fleet, FULL)
    assert fleet.learned == [("a", small), ("a", small), ("a", large)]


async def test_facts_not_told_are_asked_for_again_soon(fleet: Fleet, clock: FixedClock) -> None:
    engines = fleet.engines("a")
    await told(engines, fleet, None)
    assert not fleet.learned
    clock.advance(4)
    await told(engines, fleet, None)
    assert len(fleet.described) == 1
    clock.advance(1.1)
    fleet.facts["a"] = Facts(context=2048)
    await told(engines, fleet, None)
    assert fleet.learned == [("a", Facts(context=2048))], "of a target without gauges, too"
    fleet.facts["a"] = None
    clock.advance(61)
    await told(engines, fleet, None)
    assert len(fleet.described) == 3 and len(fleet.learned) == 1


@pytest.mark.parametrize(
    ("before", "after", "again"),
    [
        (Gauges(started=1.0, running=1), Gauges(started=1.0, running=0), False),
        (Gauges(started=1.0, running=1), Gauges(started=2.0, running=1), True),
        (Gauges(prefix_queries=10), Gauges(prefix_queries=11), False),
        (Gauges(prefix_queries=10), Gauges(prefix_queries=9), True),
        (Gauges(prefix_queries=10), Gauges(), False),
        (Gauges(), Gauges(prefix_queries=0), False),
        (Gauges(started=1.0, prefix_queries=9), Gauges(started=1.0, prefix_queries=0), False),
    ],
)
async def test_a_server_started_anew_is_asked_what_it_is(
    fleet: Fleet, before: Gauges, after: Gauges, again: bool
) -> None:
    engines = fleet.engines("a")
    fleet.facts["a"] = Facts(context=2048)
    await told(engines, fleet, before, after)
    assert len(fleet.described) == 1 + again


async def test_a_server_that_came_back_is_asked_what_it_is(fleet: Fleet) -> None:
    engines = fleet.engines("a")
    fleet.facts["a"] = Facts(context=2048)
    await told(engines, fleet, FULL, None, None)
    assert len(fleet.described) == 1
    await told(engines, fleet, FULL)
    assert len(fleet.described) == 2
    engines.recovered("a")
    engines.recovered("unknown")
    await told(engines, fleet, FULL, FULL)
    assert len(fleet.described) == 3


async def test_a_recovery_while_it_is_asked_is_not_lost(fleet: Fleet, clock: FixedClock) -> None:
    engines = fleet.engines("a")

    async def describe(name: str) -> Facts | None:
        fleet.described.append(name)
        if len(fleet.described) == 1:
            clock.advance(1)
            engines.recovered(name)
        return Facts(version=str(len(fleet.described)))

    fleet.read_facts = describe  # type: ignore[method-assign]
    engines = Engines(["a"], fleet, clock)
    await told(engines, fleet, FULL, FULL, FULL)
    assert fleet.learned == [("a", Facts(version="1")), ("a", Facts(version="2"))]


async def test_one_task_looks_at_all_again_and_again(fleet: Fleet) -> None:
    """On a clock that stands still nothing is due twice, so here it runs."""
    names = [f"t{i}" for i in range(100)]
    engines = fleet.engines(*names)
    engines._clock = asyncio.get_running_loop().time
    engines.replace(names, anew=names)
    engines.open()
    while min(fleet.scraped.count(name) for name in names) < 3:
        await asyncio.sleep(0)
    await engines.close()


async def test_targets_that_hang_hold_up_nobody(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "SCRAPE_SECONDS", 0.05)
    monkeypatch.setattr(engines, "DESCRIBE_SECONDS", 0.05)
    hanging = [f"hangs{i}" for i in range(engines.AT_ONCE * 2)]
    most = current = 0

    async def scrape(name: str) -> Gauges | None:
        nonlocal most, current
        fleet.scraped.append(name)
        if name == "well":
            return FULL
        current += 1
        most = max(most, current)
        try:
            await asyncio.sleep(3600)
        finally:
            current -= 1
        return None

    fleet.read_gauges = scrape  # type: ignore[method-assign]
    poller = Engines([*hanging, "well"], fleet, asyncio.get_running_loop().time, every=(0.001, 0.002))
    poller.open()
    while fleet.scraped.count("well") < 20:
        await asyncio.sleep(0.001)
    assert most <= engines.AT_ONCE
    assert max(fleet.scraped.count(name) for name in hanging) == 1, "those that hang are looked at less often"
    await poller.close()
    assert current == 0
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("engine")]


async def test_targets_come_and_go(fleet: Fleet) -> None:
    engines = fleet.engines("a", "b")
    fleet.facts["a"] = fleet.facts["b"] = Facts(context=1)
    fleet.gauges["a"] = fleet.gauges["b"] = BUSY
    for name in ("a", "a", "b", "b"):
        await engines.look(name)
    assert fleet.described == ["a", "b"]
    engines.replace(["a", "c"])
    await engines.look("a")
    engines.replace(["a", "c"], anew=["a"])
    await engines.look("a")
    assert fleet.described == ["a", "b", "a"], "another server under the same name"


async def test_what_a_target_says_after_it_was_removed_is_not_heard(fleet: Fleet) -> None:
    engines = fleet.engines("a")
    asked, answer = asyncio.Event(), asyncio.Event()

    async def scrape(name: str) -> Gauges | None:
        asked.set()
        await answer.wait()
        return BUSY

    fleet.read_gauges = scrape  # type: ignore[method-assign]
    look = asyncio.create_task(engines.look("a"))
    await asked.wait()
    engines.replace(["a"], anew=["a"])
    answer.set()
    await look
    assert not fleet.seen and not fleet.described


async def test_new_targets_are_looked_at_at_once(fleet: Fleet) -> None:
    engines = fleet.engines()
    engines.open()
    await asyncio.sleep(0)
    fleet.gauges["new"] = FULL
    engines.replace(["new"])
    while not fleet.seen:
        await asyncio.sleep(0)
    assert fleet.seen == [("new", FULL)]
    await engines.close()


async def test_a_fault_of_who_is_told_does_not_end_the_looks(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    def seen(name: str, gauges: Gauges | None) -> None:
        raise RuntimeError(name)

    fleet.gauges["a"] = FULL
    fleet.gauges_read = seen  # type: ignore[method-assign]
    poller = Engines(["a"], fleet, asyncio.get_running_loop().time, every=(0.0, 0.001))
    poller.open()
    while len(fleet.scraped) < 3:
        await asyncio.sleep(0)
    await poller.close()
    assert "a look at its engine failed" in caplog.text


SAME = Facts(context=4096, models=("m",), version="1", loras=())


@pytest.mark.parametrize(
    ("other", "fields"),
    [
        (("vllm", SAME), ()),
        (("vllm", Facts()), ()),
        (("vllm", Facts(context=2048)), ("context",)),
        (("tgi", Facts(context=2048, models=("org/m",), version="3.3")), ("context",)),
        (("vllm", Facts(models=("n",), version="2")), ("models", "version")),
        (("vllm", Facts(loras=("fr",))), ("loras",)),
        (("vllm", Facts(kv_tokens=5, prompt=3)), ()),
    ],
)
def test_differences(other: tuple[str, Facts], fields: tuple[str, ...]) -> None:
    assert differences([("vllm", SAME), other]) == fields
    assert differences([other, ("vllm", SAME), ("vllm", SAME)]) == fields
    assert set(fields) <= set(FIELDS)


def test_nobody_and_one_alone_do_not_differ() -> None:
    assert differences([]) == differences([("vllm", SAME)]) == ()


async def test_an_engine_that_is_in_doubt_is_looked_at_soon_however_many_there_are(clock: FixedClock) -> None:
    made = Fleet(clock)
    looked = Engines([str(number) for number in range(4 * engines.MANY)], made, clock, every=(1.0, 1.0))
    looked.doubt("3")
    for name in ("3", "4"):
        looked._start(name)
    await asyncio.gather(*looked._looks)
    await asyncio.sleep(0)
    assert [looked._engines[name].due - clock() for name in ("3", "4")] == [1.0, 4.0]
