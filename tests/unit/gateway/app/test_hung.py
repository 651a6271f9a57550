"""What becomes of a target whose engine hangs, and of its calls; the last of a route stays."""

from __future__ import annotations

import asyncio

import pytest
from unit.gateway.app.servers import LoopClock
from unit.gateway.routing.building import World, call, one, virtual

from backends.api import Gauges
from backends.api import Target as Address
from gateway.app.hung import HungEngines
from gateway.metering import Metrics

STILL = Gauges(running=1, steps=7)


class Calls:
    """The forwarder, as far as it knows who waits: one call for each target."""

    def __init__(self) -> None:
        self.given_up: list[str] = []

    def waited_for(self, address: Address) -> tuple[int, float]:
        return 1, float("-inf")

    def give_up(self, address: Address) -> int:
        self.given_up.append(address.name)
        return 1


class Bench:
    def __init__(self, *names: str) -> None:
        self.of, self.calls, self.metrics = World(one(*names)), Calls(), Metrics()
        self.engines = HungEngines(self.calls, self.metrics, LoopClock())  # type: ignore[arg-type]

    async def look(self, seconds: float, **gauges: Gauges) -> None:
        """Look at targets every second, which tell this."""
        for _ in range(round(seconds)):
            for name, told in gauges.items():
                self.engines.look(self.of[name], told, self.of.route)
            await asyncio.sleep(1)

    def hung(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value("trunkline_target_hung", {"target": name})


@virtual
async def test_its_calls_are_taken_away_and_it_is_back_after_progress() -> None:
    of = Bench("a", "b")
    await of.look(8, a=STILL)
    a = of.of["a"]
    assert of.calls.given_up == ["a"] and of.hung("a") == 1 and a.progress.hung
    assert not a.breaker.closed and await of.of.tried(call()) == ["b"]
    await of.look(2, a=Gauges(running=1, steps=8))
    assert of.hung("a") == 0 and not a.breaker.ejections
    assert a.since > 0, "it begins slowly"


@virtual
async def test_one_call_tries_it_and_is_taken_away_as_well() -> None:
    of = Bench("a", "b")
    await of.look(8, a=STILL)
    a = of.of["a"]
    await asyncio.sleep(10)
    assert a.breaker.closed and a.breaker.attempt() and not a.breaker.closed
    await of.look(8, a=STILL)
    assert of.calls.given_up[1:] and a.breaker.ejections == 1, "the failure of the call ejects it for longer"


@virtual
async def test_the_last_target_of_a_route_stays(caplog: pytest.LogCaptureFixture) -> None:
    of = Bench("a", "b")
    await of.look(30, a=STILL, b=STILL)
    assert len(set(of.calls.given_up)) == 1
    (last,) = {"a", "b"} - set(of.calls.given_up)
    assert of.of[last].breaker.closed and of.hung(last) == 1
    assert [record.message for record in caplog.records if f"target {last} hangs" in record.message] == [
        f"target {last} hangs: its engine makes no progress; as the last of its route it is not ejected"
    ]


@virtual
async def test_a_target_alone_stays() -> None:
    of = Bench("a")
    await of.look(30, a=STILL)
    assert not of.calls.given_up and of.of["a"].breaker.closed and of.of["a"].progress.hung
