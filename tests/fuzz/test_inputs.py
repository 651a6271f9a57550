"""Inputs that once did harm, or are likely to, and some that nobody has thought of."""

from __future__ import annotations

import pytest
from fuzz.feeding import CORPUS, Harness
from fuzz.mutations import inputs
from fuzz.targets import HARNESSES
from hypothesis import given

KEPT = [(harness, name, data) for harness in HARNESSES for name, data in harness.kept()]
MOST_CORPUS = 200 * 1024


@pytest.mark.parametrize(("harness", "name", "data"), KEPT, ids=[f"{harness.name}-{name}" for harness, name, _ in KEPT])
def test_the_corpus_passes(harness: Harness, name: str, data: bytes) -> None:
    harness.check(data)


@pytest.mark.parametrize("harness", HARNESSES, ids=lambda harness: harness.name)
def test_the_seeds_pass(harness: Harness) -> None:
    for seed in (*harness.seeds(), *harness.tokens(), b""):
        harness.check(seed)


@pytest.mark.parametrize("harness", HARNESSES, ids=lambda harness: harness.name)
def test_no_input_does_harm(harness: Harness) -> None:
    @given(inputs(harness))
    def passes(data: bytes) -> None:
        harness.check(data)

    passes()


def test_every_folder_of_the_corpus_belongs_to_a_harness_and_all_are_small() -> None:
    folders = {path.name for path in CORPUS.iterdir()}
    assert folders <= {harness.name for harness in HARNESSES} | {"wire"}
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < MOST_CORPUS
