"""Targets in the admin interface: reports of many workers in one, orders, and names that are none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from harness.admin_app import TARGETS, Admin, admin_app
from harness.around import Around

from gateway.admin import targets
from gateway.admin.standing import Holding
from gateway.admin.targets import Listed
from gateway.config import parse_table
from gateway.core.types import Report, TargetState
from gateway.store.local import LocalStore


class Reported(Around):
    """A board with what several workers would have reported to Redis."""

    words: dict[str, tuple[bytes, float]] = {}

    async def reports(self) -> dict[str, tuple[bytes, float]]:
        return self.words


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[Admin]:
    with admin_app(tmp_path) as started:
        yield started


@pytest.fixture
def elsewhere(tmp_path: Path) -> LocalStore:
    """The store behind which `reported` stands."""
    return LocalStore(tmp_path / "other.json")


@pytest.fixture
def reported(elsewhere: LocalStore) -> Reported:
    board = Reported(elsewhere.board)
    elsewhere.board = board  # type: ignore[assignment]
    return board


def says(boot: str, *states: TargetState, age: float = 0.5) -> dict[str, tuple[bytes, float]]:
    return {boot: (msgspec.msgpack.encode(Report(gateway=boot, config_hash="c0ffee", targets=states)), age)}


def state(name: str = "a", **fields: Any) -> TargetState:
    return TargetState(**{"name": name, "route": "big", "state": "up", **fields})


def test_the_list_has_the_targets_of_the_table_in_its_order(admin: Admin) -> None:
    shown = admin.said("GET", "/targets")["data"]
    assert [(each["name"], each["route"], each["tier"], each["backend"], each["url"]) for each in shown] == [
        ("a", "big", 0, "vllm", "http://a:8000"),
        ("b/2", "big", 0, "vllm", "http://b:8000"),
        ("spare", "big", 1, "tgi", "http://spare:80"),
    ]
    assert {(each["state"], each["why"], each["listed"]) for each in shown} == {("unknown", "no gateway reports", True)}
    assert shown[1]["weight"] == 2.0 and shown[0]["order"] is None and shown[0]["gateways"] == []


def test_what_the_gateway_reports_is_shown(admin: Admin) -> None:
    worker = LocalStore(admin.state, lambda: time.time() - 2, boot="w1")
    full = state(
        running=3, waiting=1, prefill=500, max_inflight=8, context=4096, kv_tokens=9000, version="0.9", attempts=7
    )
    asyncio.run(worker.board.report(says("w1", full)["w1"][0]))
    shown = admin.said("GET", "/targets/a")
    fields = ("running", "waiting", "prefill", "max_inflight", "context", "kv_tokens", "version", "attempts")
    assert [shown[field] for field in fields] == [3, 1, 500, 8, 4096, 9000, "0.9", 7]
    assert shown["gateways"] == [
        {
            "gateway": "w1",
            "age": pytest.approx(2, abs=1),
            "config_hash": "c0ffee",
            "state": "up",
            "why": "",
            "order": 0,
            "running": 3,
            "waiting": 1,
            "prefill": 500,
        }
    ]


async def test_reports_of_many_workers_become_one(elsewhere: LocalStore, reported: Reported) -> None:
    one = state(state="up", running=2, waiting=1, prefill=10, version="old", weight=1.0, attempts=5)
    two = state(state="full", why="8 calls", running=3, waiting=0, prefill=20, version="new", weight=0.4, attempts=6)
    reported.words = {**says("w1", one, age=1.5), **says("w2", two, age=0.2), "w3": (b"{nonsense", 0.1)}
    shown = await targets.target(elsewhere, TARGETS, "a", 0.0)
    assert (shown.state, shown.why) == ("full", "8 calls")
    assert (shown.running, shown.waiting, shown.prefill, shown.attempts) == (5, 1, 30, 11)
    assert (shown.version, shown.weight, shown.url) == ("new", 0.4, "http://a:8000")
    assert [at.gateway for at in shown.gateways] == ["w1", "w2"]


@pytest.mark.parametrize(
    ("states", "worst"),
    [
        (("up", "down", "up"), "down"),
        (("drained", "ejected"), "ejected"),
        (("resting", "full", "up"), "resting"),
        (("up", "unknown"), "unknown"),
        (("up", "up"), "up"),
    ],
)
async def test_the_worst_of_the_states_is_told(
    elsewhere: LocalStore, reported: Reported, states: tuple[Any, ...], worst: str
) -> None:
    for index, each in enumerate(states):
        reported.words = {**reported.words, **says(f"w{index}", state(state=each, why=f"is {each}"))}
    shown = await targets.target(elsewhere, TARGETS, "a", 0.0)
    assert (shown.state, shown.why) == (worst, f"is {worst}")


async def test_a_target_that_left_the_table_is_shown_while_gateways_have_it(
    elsewhere: LocalStore, reported: Reported
) -> None:
    gone = state("gone", state="drained", running=1, url="http://gone", backend="vllm", tier=2)
    reported.words = says("w1", gone, state("a"))
    shown = await targets.targets(elsewhere, TARGETS, 0.0)
    assert [(each.name, each.listed) for each in shown] == [
        ("a", True),
        ("b/2", True),
        ("spare", True),
        ("gone", False),
    ]
    assert (shown[-1].url, shown[-1].backend, shown[-1].tier, shown[-1].running) == ("http://gone", "vllm", 2, 1)


def test_a_target_is_drained_and_opened_and_the_log_says_by_whom(admin: Admin) -> None:
    drained = admin.said("PATCH", "/targets/b/2", {"state": "drained", "reason": "new driver"})
    assert drained["name"] == "b/2"
    assert drained["order"] == {"state": "drained", "until": None, "reason": "new driver", "version": 1}
    assert admin.said("GET", "/targets/b/2") == drained == admin.said("GET", "/targets")["data"][1]
    assert admin.said("PATCH", "/targets/b/2", {"state": "open"})["order"] is None
    entries = admin.said("GET", "/audit")["data"]
    assert [entry["action"] for entry in entries[:2]] == ["target.undrain", "target.drain"]
    assert entries[0]["actor"].startswith("admin:") and entries[0]["subject"] == "target:b/2"


def test_an_ejection_lasts_as_long_as_was_said(admin: Admin) -> None:
    now = admin.clock.now()
    assert admin.said("PATCH", "/targets/a", {"state": "ejected"})["order"]["until"] == now + 60
    assert admin.said("PATCH", "/targets/a", {"state": "ejected", "seconds": 5})["order"]["until"] == now + 5
    admin.clock.advance(4.9)
    assert admin.said("GET", "/targets/a")["order"]["state"] == "ejected"
    admin.clock.advance(0.1)
    assert admin.said("GET", "/targets/a")["order"] is None


@pytest.mark.parametrize(
    ("body", "said", "param"),
    [
        ({}, "state", None),
        ({"state": "closed"}, "closed", "state"),
        ({"state": "ejected", "seconds": 0}, "seconds", "seconds"),
        ({"state": "ejected", "seconds": 86401}, "seconds", "seconds"),
        ({"state": "ejected", "seconds": "5"}, "seconds", "seconds"),
        ({"state": "drained", "seconds": 5}, "only an ejection has an end", None),
        ({"state": "drained", "reason": "x" * 201}, "reason", "reason"),
        ({"state": "drained", "reason": "two\nlines"}, "printable", None),
        ({"state": "drained", "why": "?"}, "no such field", "why"),
    ],
)
def test_an_order_that_cannot_be(admin: Admin, body: dict[str, Any], said: str, param: str | None) -> None:
    message, field = admin.wrong("PATCH", "/targets/a", body)
    assert said in message and field == param
    assert admin.said("GET", "/targets/a")["order"] is None


def test_a_name_that_is_none_is_told_which_there_are(admin: Admin) -> None:
    for method, body in (("GET", None), ("PATCH", {"state": "drained"}), ("PATCH", {"state": "open"})):
        message, _ = admin.wrong(method, "/targets/A", body, status=404)
        assert message == "There is no target 'A'; targets: a, b/2, spare."


def test_many_targets_are_not_all_named() -> None:
    said = str(targets.unknown("x", [f"t{n}" for n in range(1000)]))
    assert said.endswith("t18, t19 and 980 more")


def test_the_desk_goes_by_another_table_from_the_next_call_on(tmp_path: Path) -> None:
    with admin_app(tmp_path) as admin:
        admin.said("PATCH", "/targets/a", {"state": "drained"})
        admin.context.replace(("new",), {"n": Listed("n", "new", 0, "vllm", "http://n", 1.0)}, Holding())
        assert [each["name"] for each in admin.said("GET", "/targets")["data"]] == ["n"]
        admin.said("POST", "/keys", {"name": "k", "model_limits": {"new": {"rpm": 1}}})
        assert "no route 'big'" in admin.wrong("POST", "/keys", {"name": "k", "model_limits": {"big": {"rpm": 1}}})[0]
        admin.wrong("PATCH", "/targets/a", {"state": "ejected"}, status=404)
        assert admin.said("GET", "/targets/a")["listed"] is False
        assert admin.said("PATCH", "/targets/a", {"state": "open"})["order"] is None


def test_the_targets_of_a_table_by_name() -> None:
    table, _ = parse_table(
        """
routes:
  m:
    targets:
      - {name: a, backend: vllm, url: "http://a:8000", weight: 3}
    fallback:
      - {name: c, backend: tgi, url: "http://c"}
      - {name: d, backend: tgi, url: "http://d", tier: 2}
    shadow: {target: {name: s, backend: vllm, url: "http://s"}, share: 0.1}
""",
        environment={},
    )
    assert targets.listed(table) == {
        "a": Listed("a", "m", 0, "vllm", "http://a:8000", 3.0),
        "c": Listed("c", "m", 1, "tgi", "http://c", 1.0),
        "d": Listed("d", "m", 2, "tgi", "http://d", 1.0),
    }


def test_a_store_that_is_down_is_told(admin: Admin) -> None:
    token = admin.token
    admin.said("GET", "/targets")
    admin.records.down = True
    assert admin.ask("GET", "/targets", token=token).status_code == 503
