"""A limit is declared once: whatever names limits has those of the table in `core.dimensions`, and no others."""

from __future__ import annotations

import ast
from pathlib import Path

import click
import msgspec
import pytest

from gateway.admin.models import LimitBody, OutageBody
from gateway.cli.keys import keys
from gateway.config.limits import LimitSpec, OutageSpec
from gateway.core.dimensions import BUDGET, COUNTED, COUNTS, DIMENSIONS
from gateway.core.types import Limit

ROOT = Path(__file__).parents[2]
ALLOWED = {"gateway/core/dimensions.py", "gateway/core/types.py"}
"""A new dimension touches these."""


def names(kind: type[msgspec.Struct]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(kind)]


def test_a_limit_of_records_has_a_field_for_each() -> None:
    assert names(Limit) == [*COUNTS, BUDGET, "outage"]


@pytest.mark.parametrize("kind", [LimitSpec, LimitBody], ids=lambda kind: kind.__name__)
def test_tables_and_bodies_have_a_field_for_each(kind: type[msgspec.Struct]) -> None:
    assert names(kind) == [*COUNTS, BUDGET, "outage"]


@pytest.mark.parametrize("kind", [OutageSpec, OutageBody], ids=lambda kind: kind.__name__)
def test_each_has_a_rule_for_outages(kind: type[msgspec.Struct]) -> None:
    assert names(kind) == list(DIMENSIONS)


def test_each_has_an_option_with_its_text() -> None:
    options = {option.name: option for option in keys.commands["create"].params if isinstance(option, click.Option)}
    assert {counted.name: options[counted.name].help for counted in COUNTED} == {
        counted.name: f"{counted.text}." for counted in COUNTED
    }


def test_the_admin_interface_describes_each() -> None:
    schema = msgspec.json.schema(LimitBody)["$defs"]["LimitBody"]["properties"]
    assert {counted.name: schema[counted.name]["description"] for counted in COUNTED} == {
        counted.name: counted.text for counted in COUNTED
    }


def test_a_rate_is_declared_nowhere_else() -> None:
    """`itpm` is written where rates are declared, and in examples that operators read."""
    holders = set()
    for file in sorted((ROOT / "gateway").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if (isinstance(node, ast.Constant) and node.value == "itpm") or getattr(node, "id", "") == "itpm":
                holders.add(str(file.relative_to(ROOT)))
    assert holders <= ALLOWED
