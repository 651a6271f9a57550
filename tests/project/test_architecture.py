"""`docs/architecture.md` shows the house as it stands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
NAMED = sorted(set(re.findall(r"`((?:gateway|backends|docs|tests)/[\w./]*)`", PAGE)))
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]


@pytest.mark.parametrize("path", NAMED)
def test_what_is_named_is_there(path: str) -> None:
    assert (ROOT / path).exists()


def room_of(word: str) -> str:
    """`http` for `http/`, `call` for `call.py`; nothing for other words."""
    match = re.fullmatch(r"(\w+)(?:/|\.py)", word)
    return match[1] if match else ""


def test_the_picture_has_the_floors_that_are_enforced() -> None:
    (layers,) = (contract["layers"] for contract in CONTRACTS if contract["name"] == "Floors")
    floors = [{room.strip() for room in layer.split("|")} for layer in layers if layer != "__main__"]
    picture = PAGE.split("```")[1]
    drawn = [{room for word in line.split() if (room := room_of(word))} for line in picture.strip().splitlines()]
    assert [floor - {"backends"} for floor in drawn] == floors
