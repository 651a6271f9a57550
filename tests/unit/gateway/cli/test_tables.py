"""Records as people read them."""

from __future__ import annotations

import pytest
from rich.console import Console

from gateway.cli.tables import differences, fields, limits, rows
from gateway.core.types import Allowance, Budget, Limit


def test_a_limit_in_a_line() -> None:
    budget = Budget(day=Allowance(tokens=2_000_000), month=Allowance(tokens=5, cost_micros=12_500_000))
    assert limits(Limit(rpm=600, tpm=20_000, concurrency=3, budget=budget)) == (
        "600 rpm, 20k tpm, 3 concurrency, 2M tokens/day, 5 tokens/month, 12.5 money/month"
    )
    assert limits(Limit()) == ""


def test_what_changed_leaf_by_leaf() -> None:
    before = {"id": "k", "version": 1, "limit": {"rpm": 5, "tpm": 9}, "labels": {"a": "b"}, "expires": 1_800_000_000.0}
    after = {"id": "k", "version": 2, "limit": {"rpm": 6, "tpm": 9}, "labels": {}, "expires": None}
    assert list(differences(before, after)) == [
        "expires: 2027-01-15 08:00:00 UTC -> -",
        "labels.a: b -> -",
        "limit.rpm: 5 -> 6",
    ]


def test_tables_show_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """Names are somebody else's: nothing in them may colour or hide the rest."""
    rows(("name",), [("[red]x[/red]",)], "nothing")
    fields({"name": "[bold]y", "empty": {}, "none": None, "limit": Limit(), "models": ("a", "b")})
    shown = capsys.readouterr().out
    assert "[red]x[/red]" in shown and "[bold]y" in shown
    assert "empty" not in shown and "none" not in shown
    assert "the defaults of the table" in shown and "a, b" in shown


def test_nothing_is_said_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    rows(("name",), [], "No keys yet.")
    assert capsys.readouterr().out == "No keys yet.\n"


IDS = [("k" * 12, "a name of some words", "1234567890", "600 rpm, 20k tpm, 2M tokens/day, 50 money/month", "x" * 20)]
HEADS = ("id", "name", "calls", "limits", "spare")


@pytest.mark.parametrize("width", [200, 100, 80, 60, 44, 30])
def test_no_number_and_no_id_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr("gateway.cli.tables.console", lambda: Console(width=width, highlight=False))
    rows((*HEADS, "empty"), [(*line, "") for line in IDS], "", spare=("spare",))
    said = capsys.readouterr()
    for word in " ".join(IDS[0][:4]).split():
        assert word in said.out
    assert ("x" * 20 in said.out) != ("No room for spare" in said.err)
    assert "…" not in said.out
    lines = said.out.splitlines()
    assert width < 60 or max(map(len, lines)) <= width


def test_an_id_that_is_wider_than_the_window_is_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.cli.tables.console", lambda: Console(width=20, highlight=False))
    rows(("id", "n"), [("i" * 40, 5), ("j" * 40, 6)], "")
    fields({"secret_id": "s" * 40})
    out = capsys.readouterr().out.split()
    assert "i" * 40 in out and "j" * 40 in out and "s" * 40 in out
