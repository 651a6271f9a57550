"""`trunkline plan`: what people and scripts are told of a new table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from harness.routing import key

from backends import registry
from gateway.cli import cli
from gateway.cli.plan import _Homes, moves
from gateway.config import RouteSpec, Timeouts, parse_table
from gateway.core.clock import SystemClock
from gateway.routing.policies.api import Prompt
from gateway.routing.tier import Tier
from gateway.targets.health import Breaker
from gateway.targets.target import Target

Plan = Callable[..., Result]


def table(*targets: str, extra: str = "") -> str:
    listed = ", ".join(f"{{{target}, backend: vllm, url: 'http://{target[6:8].strip(',')}'}}" for target in targets)
    return f"routes:\n  one: {{{extra} targets: [{listed}]}}\n"


ABCD = ("name: a", "name: b", "name: c", "name: d")
OLD = table(*ABCD)
NEW = table(*ABCD, "name: e")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Runs `trunkline plan` on two texts; `-` stands for standard input."""

    def run(old: str, new: str, *options: str, stdin: str | None = None) -> Result:
        names = []
        for name, text in (("old.yaml", old), ("new.yaml", new)):
            names.append("-" if text == "-" else str(tmp_path / name))
            if text != "-":
                (tmp_path / name).write_text(text)
        return CliRunner().invoke(cli, ["plan", *names, *options], input=stdin)

    return run


def told(result: Result) -> Any:
    return json.loads(result.stdout)


def test_a_new_target_for_people(plan: Plan) -> None:
    result = plan(OLD, NEW)
    assert result.exit_code == 0, result.output
    assert "routes.one.targets.e" in result.stdout and "http://e" in result.stdout
    assert re.search(r"another home.*\n  one: (19|20)\.\d%\n", result.stdout)


def test_a_new_target_for_scripts(plan: Plan) -> None:
    said = told(plan(OLD, NEW, "--json"))
    assert said["ok"] and said["changed"]
    assert [change["path"] for change in said["changes"]] == [["routes", "one", "targets", "e"]]
    (move,) = said["moves"]
    assert move["route"] == "one" and 0.18 < move["share"] < 0.22
    assert said["drained"] == said["replaced"] == said["restart"] == said["names"] == said["warnings"] == []


def test_nothing_changes(plan: Plan) -> None:
    result = plan(OLD, OLD + "# the same\n", "--exit-code")
    assert (result.exit_code, result.stdout) == (0, "Nothing changes.\n")
    assert told(plan(OLD, OLD, "--json"))["changed"] is False


@pytest.mark.parametrize("options", [["--exit-code"], ["--exit-code", "--json"]])
def test_a_script_can_tell_by_the_exit_code(plan: Plan, options: list[str]) -> None:
    assert plan(OLD, NEW, *options).exit_code == 2
    assert plan(OLD, OLD, *options).exit_code == 0
    assert plan(OLD, "routes: [", *options).exit_code == 1


@pytest.mark.parametrize("bad", ["routes: [", "routes: {one: {targets: []}}", ""])
def test_a_table_with_mistakes_is_told_as_check_tells_it(plan: Plan, bad: str, tmp_path: Path) -> None:
    for texts, name in (((OLD, bad), "new.yaml"), ((bad, NEW), "old.yaml")):
        result = plan(*texts)
        assert result.exit_code == 1
        assert f"{tmp_path / name}:1:" in result.stderr or f"{tmp_path / name}:2:" in result.stderr
        assert "1 mistake" in result.stderr
        said = plan(*texts, "--json")
        assert said.exit_code == 1 and not told(said)["ok"] and told(said)["mistakes"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["plan", str(tmp_path / "absent"), str(tmp_path / "absent")])
    assert result.exit_code == 1 and "cannot be read" in result.stderr


def test_one_table_may_come_from_standard_input(plan: Plan) -> None:
    """As of `git show HEAD:routing.yaml | trunkline plan - routing.yaml`."""
    assert told(plan("-", NEW, "--json", stdin=OLD)) | {"old": ""} == told(plan(OLD, NEW, "--json")) | {
        "old": "",
        "new": told(plan("-", NEW, "--json", stdin=OLD))["new"],
    }
    assert "standard input:1:" in plan("-", NEW, stdin="routes: [").stderr
    assert plan("-", "-", stdin=OLD).exit_code == 2


def test_warnings_of_the_new_table_are_shown(plan: Plan) -> None:
    result = plan(OLD, OLD.replace("name: a", "name: a, api_key: '${NOT_SET_HERE}'"))
    assert result.exit_code == 0 and "NOT_SET_HERE is missing" in result.stdout


def shares(old: str, new: str) -> dict[str, float]:
    before, after = (parse_table(text, "t", {})[0] for text in (old, new))
    return {move.route: move.share for move in moves(before, after)}


def test_only_conversations_that_must_move_do() -> None:
    assert 0.18 < shares(OLD, NEW)["one"] < 0.22
    assert 0.18 < shares(NEW, OLD)["one"] < 0.22
    assert 0.23 < shares(OLD, table("name: a", "name: b", "name: c", "name: x"))["one"] < 0.44
    heavier = shares(OLD, table("name: a, weight: 2", *ABCD[1:]))["one"]
    assert 0.13 < heavier < 0.17, "it has a quarter, and gets two fifths"
    assert 0.09 < shares(OLD, table(*ABCD, "name: e, canary: 0.1"))["one"] < 0.11


def test_routes_without_homes_have_none_to_move() -> None:
    for policy in ("least-tokens", "round-robin"):
        assert shares(table(*ABCD, extra=f"policy: {policy},"), table(*ABCD[:3], extra=f"policy: {policy},")) == {}
    assert shares(OLD, OLD.replace("  one", "  two")) == {}
    assert shares(OLD, table(*reversed(ABCD))) == {}, "the order of targets says nothing"


def tier(route: RouteSpec) -> Tier:
    clock = SystemClock().monotonic
    capabilities = registry.capabilities("vllm")
    targets = [
        Target(spec, spec.url or "", capabilities, Timeouts(), Breaker(spec.name, clock), clock)
        for spec in route.targets
    ]
    return Tier(targets, "session")


@pytest.mark.parametrize(
    "text", [OLD, table("name: a, weight: 3", *ABCD[1:]), table(*ABCD, "name: e, canary: 0.2", "name: f, canary: 0.1")]
)
def test_homes_are_where_the_gateway_sends_conversations(text: str) -> None:
    route = parse_table(text, "t", {})[0].routes["one"]
    homes, real = _Homes(route), tier(route)
    found = set()
    for number in range(500):
        prompt = Prompt(tokens=100, conversation=key(number))
        place = real.pick(prompt, real.usable(prompt, 0.0), 0.0).index
        assert homes.home(key(number)) == real.names[place]
        found.add(place)
    assert len(found) == len(route.targets)
