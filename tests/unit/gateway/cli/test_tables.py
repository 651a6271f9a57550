"""Records as people read them."""

from __future__ import annotations

import pytest

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
