"""`trunkline usage`: its sums, its options, what it says to people and to scripts."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from gateway.cli import cli, usage
from gateway.core.types import Entry, KeyRecord, Secret
from gateway.store.local import LocalStore

NOON = datetime.now(UTC).replace(hour=12, minute=0, second=0, microsecond=0)
TODAY = NOON.date().isoformat()
MONTH = NOON.date().replace(day=1).isoformat()
LONG_AGO = NOON - timedelta(days=40)


def entry(call: int, key: str, tenant: str, route: str, at: datetime = NOON) -> Entry:
    return Entry(
        call_id=str(call),
        time=at.timestamp(),
        key_id=key,
        tenant=tenant,
        route=route,
        target="t",
        input=1000 * call,
        cached=10 * call,
        output=call,
        cost_micros=1_234_567 * call,
    )


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"

    async def write() -> None:
        store = LocalStore(path)
        await store.open()
        await store.records.put(KeyRecord(id="k1", name="search [bold]", secrets=(Secret(digest="0"),), created=1.0))
        entries = [
            entry(1, "k1", "team-a", "llama"),
            entry(2, "k1", "team-a", "qwen"),
            entry(3, "k2", "team-b", "llama"),
            entry(4, "k2", "team-b", "llama", LONG_AGO),
        ]
        await store.ledger.append("b", entries)
        await store.close()

    asyncio.run(write())
    return path


def run(state: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["usage", "--state", str(state), *options])


def told(state: Path, *options: str) -> Any:
    result = run(state, "--json", *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_by_default_this_month_by_tenant_and_model(state: Path) -> None:
    found = told(state)
    assert (found["from"], found["to"], found["by"]) == (MONTH, TODAY, ["tenant", "model"])
    assert found["rows"] == [
        {"tenant": tenant, "model": model, "calls": 1, **numbers(call)}
        for tenant, model, call in (("team-a", "llama", 1), ("team-a", "qwen", 2), ("team-b", "llama", 3))
    ]
    assert found["total"] == {"calls": 3, **numbers(6)}


def numbers(call: int) -> dict[str, int]:
    counts = {"input": 1000 * call, "cached": 10 * call, "output": call}
    return {**counts, "cost_micros": 1_234_567 * call, "tokens": 1001 * call}


def test_days_are_those_asked_for(state: Path) -> None:
    old = LONG_AGO.date().isoformat()
    assert told(state, "--from", old, "--to", old)["total"]["input"] == 4000
    assert told(state, "--from", old)["total"]["calls"] == 4
    assert told(state, "--to", old)["total"]["calls"] == 1, "from the first of that month"
    assert [row["day"] for row in told(state, "--from", old, "--by", "day")["rows"]] == [old, TODAY]


@pytest.mark.parametrize(
    ("options", "inputs"),
    [
        (["--tenant", "team-a"], 3000),
        (["--key", "k2"], 3000),
        (["--model", "llama"], 4000),
        (["--model", "llama", "--tenant", "team-a"], 1000),
        (["--model", "nothing"], 0),
    ],
)
def test_only_what_was_asked_for(state: Path, options: list[str], inputs: int) -> None:
    found = told(state, *options)
    assert found["total"]["input"] == inputs == sum(row["input"] for row in found["rows"])


def test_keys_have_their_names_beside_their_ids(state: Path) -> None:
    rows = told(state, "--by", "key")["rows"]
    assert [(row["key"], row["name"]) for row in rows] == [("k1", "search [bold]"), ("k2", None)]
    assert list(rows[0])[:2] == ["key", "name"]
    shown = run(state, "--by", "model,key").output
    assert "search [bold]" in shown


def test_a_person_gets_a_table_with_a_total(state: Path) -> None:
    lines = [line.split() for line in run(state).output.splitlines()]
    assert lines[0] == ["tenant", "model", "calls", "input", "cached", "output", "tokens", "cost"]
    assert lines[2] == ["team-a", "qwen", "1", "2,000", "20", "2", "2,002", "2.469134"]
    assert lines[-1] == ["total", "3", "6,000", "60", "6", "6,006", "7.407402"]


def test_one_row_needs_no_total(state: Path) -> None:
    assert "total" not in run(state, "--by", "model", "--tenant", "team-b").output


def test_nothing_is_said_to_be_nothing(tmp_path: Path) -> None:
    absent = tmp_path / "absent" / "keys.json"
    result = run(absent)
    assert result.exit_code == 0 and "Nothing was used" in result.output and TODAY in result.output
    assert told(absent)["rows"] == [] and told(absent)["total"]["calls"] == 0
    assert not absent.parent.exists(), "asking leaves nothing behind"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--by", "route"], ["'route'", "day, key, tenant, model"]),
        (["--by", ""], ["expected some of"]),
        (["--from", "yesterday"], ["'yesterday'", "2026-11-22"]),
        (["--to", "2026-13-01"], ["'2026-13-01'"]),
        (["--from", "2026-11-02", "--to", "2026-11-01"], ["2026-11-02", "after"]),
    ],
)
def test_mistakes_are_told(state: Path, options: list[str], said: list[str]) -> None:
    result = run(state, *options)
    assert result.exit_code != 0
    for words in said:
        assert words in " ".join(result.output.split())


def test_a_column_that_is_named_twice_is_one(state: Path) -> None:
    assert told(state, "--by", "model, tenant,model")["by"] == ["model", "tenant"]


def test_at_80_columns_no_number_is_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.cli.tables.console", lambda: Console(width=80, highlight=False))
    number = 123_456_789_012
    row = dict.fromkeys(("calls", "input", "cached", "output", "cost_micros"), number)
    usage._show([{"tenant": "acme-production", "model": "qwen2.5-7b", **row}] * 2, row)
    said = capsys.readouterr()
    assert said.out.count("123,456,789,012") >= 9 and "total" in said.out and "…" not in said.out
    assert "No room for cached, tokens" in said.err
