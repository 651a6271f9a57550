"""The routing table changes while calls flow: none is lost, none goes where it must not."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Upstream
from integration.client import ask, eventually, get, samples, total
from integration.engine import Engine, engines, send, served, table, talk, where
from integration.storm import BROKEN, Storm, storm

pytestmark = pytest.mark.slow

CALLS = 2000
"""The full size is in tests/faults."""
NAMES = ("reload-a", "reload-b")


async def test_no_call_is_lost_or_misrouted_in_a_storm_of_reloads(upstream: Upstream) -> None:
    weather = Storm(upstream)
    with gateway_process(weather.text(0)) as gateway:
        issued = await asyncio.to_thread(gateway.issue)
        calls = await storm(gateway, weather, issued.secret, CALLS)
        assert len(calls) >= CALLS
        assert {call.status for call in calls} == {200} and all(call.whole for call in calls)
        for call in calls:
            allowed = (f"storm-{call.label}", f"storm-{call.label}-extra")
            assert call.headers["x-trunkline-target"] in allowed
        hashes = {call.headers["x-trunkline-config"] for call in calls}
        assert len(hashes) > weather.reloads / 2, "calls were served by most of the tables"
        assert sum(len(engine.calls) for engine in weather.engines.values()) == len(calls)
        found = samples(gateway)
        assert total(found, "config_reloads_total", outcome="refused") >= 1
        assert total(found, "config_reloads_total", outcome="applied") >= weather.reloads - 1


@pytest.fixture
def fleet(upstream: Upstream) -> Iterator[list[Engine]]:
    made = engines(upstream, *NAMES)
    yield made
    for engine in made:
        engine.release()


def listing(*fleet: Engine) -> str:
    return table({"m": {"targets": [engine.spec() for engine in fleet], "policy": "round-robin"}})


@contextmanager
def serving(text: str) -> Iterator[tuple[GatewayProcess, str]]:
    with gateway_process(text) as gateway:
        yield gateway, gateway.issue().secret


def in_force(gateway: GatewayProcess, before: str) -> str:
    """The table's hash once it is another one."""

    def changed() -> str | None:
        ready = get(gateway, "/ready").json()
        return ready["config"] if ready["config"] != before and not ready["config_error"] else None

    return eventually(changed, "the new table is in force")


def test_a_target_that_is_removed_gets_no_new_calls_and_finishes_those_it_has(fleet: list[Engine]) -> None:
    kept, removed = fleet
    with serving(listing(*fleet)) as (gateway, key):
        config = get(gateway, "/ready").json()["config"]
        kept.holding = removed.holding = 1
        running = [send(gateway, talk("m", f"{n}", stream=True), key) for n in range(6)]
        eventually(lambda: kept.running + removed.running == 6 or None, "all run")
        kept.holding = removed.holding = 0
        gateway.routing.write_text(listing(kept))
        in_force(gateway, config)
        held = len(removed.calls)
        assert held == 3
        assert {served(gateway, talk("m", f"New {n}"), key) for n in range(10)} == {kept.name}
        assert len(removed.calls) == held
        kept.release()
        removed.release()
        answers = [client.answer() for client in running]
        assert [answer.data[-1] for answer in answers] == [b"[DONE]"] * 6
        assert sorted(where(answer) for answer in answers) == [kept.name] * 3 + [removed.name] * 3
        assert total(samples(gateway), "target_running", target=removed.name) == 0
        probes = len(removed.target.probes)
        gateway.routing.write_text(listing(*fleet))
        in_force(gateway, config[:0] + get(gateway, "/ready").json()["config"])
        eventually(lambda: len(removed.target.probes) > probes or None, "it is probed again")
        eventually(lambda: served(gateway, talk("m", "Again"), key) == removed.name or None, "and used again")


def test_a_broken_table_leaves_the_old_one_and_everybody_is_told(fleet: list[Engine]) -> None:
    with serving(listing(*fleet)) as (gateway, key):
        before = get(gateway, "/ready").json()
        assert before["config"] and not before["config_error"]
        gateway.routing.write_text(BROKEN)
        error = eventually(lambda: get(gateway, "/ready").json()["config_error"], "it is told by /ready")
        ready = get(gateway, "/ready")
        assert (ready.status, ready.json()["ready"], ready.json()["config"]) == (200, True, before["config"])
        assert "routing.yaml" not in error, "what a table says is for the log"
        found = samples(gateway)
        assert total(found, "config_refused") == 1
        assert total(found, "config_reloads_total", outcome="refused") == 1
        assert total(found, "config_info", hash=before["config"]) == 1
        assert "stays in force" in gateway.stderr() and "routing.yaml:1:" in gateway.stderr()
        assert ask(gateway, talk("m", "Still?"), key).header("x-trunkline-config") == before["config"]
        gateway.routing.write_text(listing(*fleet))
        eventually(lambda: not get(gateway, "/ready").json()["config_error"] or None, "all is well again")
        assert total(samples(gateway), "config_refused") == 0


def test_a_table_whose_own_tests_fail_is_refused(fleet: list[Engine]) -> None:
    with serving(listing(*fleet)) as (gateway, _):
        wrong = {**json.loads(listing(fleet[0])), "tests": [{"ask": {"model": "m"}, "expect": {"route": "other"}}]}
        gateway.routing.write_text(json.dumps(wrong))
        error = eventually(lambda: get(gateway, "/ready").json()["config_error"], "it is told")
        assert "m" in error and total(samples(gateway), "config_refused") == 1


def test_a_signal_reloads_every_worker_and_restarts_none(fleet: list[Engine]) -> None:
    with serving(listing(*fleet)) as (gateway, key):
        applied = total(samples(gateway), "config_reloads_total")
        fleet[0].holding = fleet[1].holding = 1
        running = send(gateway, talk("m", "Run", stream=True), key)
        eventually(lambda: fleet[0].running + fleet[1].running or None, "it runs")
        gateway.process.send_signal(signal.SIGHUP)
        eventually(lambda: total(samples(gateway), "config_reloads_total") > applied or None, "it is read again")
        fleet[0].release()
        fleet[1].release()
        assert running.answer().data[-1] == b"[DONE]"
