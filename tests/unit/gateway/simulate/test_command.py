"""`trunkline simulate` as it is typed: figures as a table, as JSON and as a plot; sentences for what is wrong."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gateway.cli.simulate import simulate

QUICK = ("--seconds", "20", "--replicas", "4")
TABLE = """
routes:
  small:
    targets: [{name: one, backend: vllm, url: "http://one"}]
  large:
    targets:
      - {name: a, backend: vllm, url: "http://a", weight: 3}
      - {name: b, backend: vllm, url: "http://b", kv_tokens: 2M}
      - {name: new, backend: vllm, url: "http://new", canary: 0.1}
"""
drawn = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="the extra `plot` is not installed")


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(simulate, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def said(*arguments: str) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    last: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return last


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code in (1, 2), result.output
    return result.stderr


@pytest.fixture
def table(tmp_path: Path) -> str:
    (tmp_path / "routing.yaml").write_text(TABLE)
    return str(tmp_path / "routing.yaml")


def test_the_last_line_is_one_object() -> None:
    answer = said(*QUICK, "--workload", "chats", "--share-ms", "0", "--kv-tokens", "1M", "--seed", "7")
    assert [each["policy"] for each in answer["policies"]] == ["home-cost", "least-tokens", "round-robin", "session"]
    for each in answer["policies"]:
        assert each["calls"] > 0
        assert 0 < each["ttft_p50"] <= each["ttft_p95"] <= each["ttft_p99"]
        assert each["ttft_mean"] > 0 and 0 < each["hit_ratio"] < 1
        assert each["imbalance"] >= 1
    del answer["policies"]
    assert answer == {
        "workload": "chats", "calls_per_second": 54, "replicas": 4, "gateways": 4, "share_ms": 0,
        "kv_tokens": 1_000_000, "rate": 8000, "skip": 0, "load": 1, "seed": 7,
    }  # fmt: skip


def test_a_table_is_printed_for_people_without_a_bar_where_there_is_no_terminal() -> None:
    result = run(*QUICK, "--workload", "d", "--policies", "session, oracle")
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0].startswith("unique at 19 calls/s, load x1: 4 targets with 512k tokens of cache")
    assert [row.split()[0] for row in lines[-2:]] == ["session", "oracle"]


def test_targets_are_those_of_a_route(table: str) -> None:
    assert said(table, *QUICK[:2], "--policies", "session")["replicas"] == 1
    assert said(table, *QUICK[:2], "--route", "large", "--policies", "session")["replicas"] == 2
    assert said(table, *QUICK, "--route", "large", "--policies", "session")["replicas"] == 4


def test_a_target_has_the_cache_that_the_table_says(table: str) -> None:
    arguments = (table, *QUICK[:2], "--route", "large", "--policies", "session")
    assert said(*arguments)["kv_tokens"] == 2_000_000
    assert said(*arguments, "--kv-tokens", "64k")["kv_tokens"] == 64_000


def test_the_weights_of_a_route_count(table: str) -> None:
    arguments = (*QUICK[:2], "--policies", "session", "--workload", "unique", "--calls-per-second", "8")
    (weighted,) = said(table, *arguments, "--route", "large")["policies"]
    (equal,) = said(*arguments, "--replicas", "2")["policies"]
    assert weighted["ttft_p50"] < 0.6 * equal["ttft_p50"]


def test_more_load_takes_longer() -> None:
    arguments = (*QUICK, "--workload", "unique", "--policies", "home-cost")
    calm, busy = (said(*arguments, "--load", load) for load in ("0.2", "1"))
    assert calm["calls_per_second"] < busy["calls_per_second"]
    assert calm["policies"][0]["ttft_mean"] < busy["policies"][0]["ttft_mean"]


def test_a_trace(tmp_path: Path) -> None:
    lines = [
        {"timestamp": 50 * number, "input_length": 600, "output_length": 9, "hash_ids": [number % 20, 100 + number]}
        for number in range(400)
    ]
    (tmp_path / "calls.jsonl").write_text("\n".join(map(json.dumps, lines)))
    answer = said("--trace", str(tmp_path / "calls.jsonl"), "--policies", "home-cost")
    assert answer["trace"] == "calls.jsonl"
    assert answer["policies"][0]["hit_ratio"] > 0.5


def test_workloads_are_listed() -> None:
    listed = run("--workload", "list").stdout
    for name in ("groups", "chats", "agents", "documents"):
        assert f"\n{name} " in listed


@drawn
@pytest.mark.parametrize(("name", "begins"), [("ttft.png", b"\x89PNG"), ("ttft.svg", b"<?xml")])
def test_a_plot(tmp_path: Path, name: str, begins: bytes) -> None:
    said(*QUICK, "--policies", "session,round-robin", "--plot", str(tmp_path / name))
    assert (tmp_path / name).read_bytes().startswith(begins)


@drawn
def test_a_plot_that_cannot_be_written(tmp_path: Path) -> None:
    assert "cannot be written" in refused(*QUICK, "--policies", "session", "--plot", str(tmp_path / "no" / "x.svg"))


def test_a_plot_without_matplotlib_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'trunkline[plot]'" in refused("--plot", str(tmp_path / "x.svg"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policies", "best"), "'best': expected one or more of home-cost"),
        (("--policies", ","), "expected one or more of"),
        (("--workload", "coffee"), "'coffee': expected one of groups"),
        (("--trace", "nowhere.jsonl"), "nowhere.jsonl: cannot be read"),
        (("--trace", "x", "--workload", "d"), "leave --workload"),
        (("--plot", "x.gif"), "a plot is a file of type .png or .svg"),
        (("--route", "large"), "give the table"),
        (("--kv-tokens", "few"), "'few': expected a number"),
        (("--replicas", "0"), "--replicas"),
        (("--load", "0"), "--load"),
        (("nowhere.yaml",), "nowhere.yaml:1:1"),
    ],
)
def test_what_cannot_be_simulated_is_said(arguments: tuple[str, ...], message: str) -> None:
    assert message in refused(*arguments)


def test_an_unknown_route_is_said_with_those_there_are(table: str) -> None:
    assert "'medium': expected one of small, large" in refused(table, "--route", "medium")
