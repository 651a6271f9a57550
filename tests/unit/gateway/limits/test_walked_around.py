"""Limits that cannot be walked around: what a call, or its target, says of it is not just believed."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from backends import large
from backends.api import Call, Endpoint
from backends.asked import Asked
from backends.body import Body
from gateway.limits import Estimator
from gateway.routing.features import read as features

WORDS = "The quick brown fox jumps over the lazy dog. "
PIXELS = base64.b64encode(bytes(range(256)) * 400).decode()


def call(endpoint: Endpoint = "completions", **fields: Any) -> Call:
    return Call("c", endpoint, "m", Body(json.dumps({"model": "m", **fields}).encode()))


def reserved(asked: Call) -> int:
    return Estimator().estimate(asked, "k", "r").output


def in_windows(endpoint: Endpoint, **fields: Any) -> Asked:
    """What a body asks for that is read as large ones are."""
    steps = large.read(endpoint, json.dumps({"model": "m", **fields}).encode(), 10**6)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: Asked = end.value[1]
            return found


PROMPTS: list[tuple[dict[str, Any], int]] = [
    ({"prompt": ["x"] * 1000}, 1000),
    ({'prompt': ['a [b] "c"'] * 10}, 10),
    ({"prompt": [[1, 2]] * 30}, 30),
    ({"prompt": ["x", [1, 2], "y", [3]]}, 4),
    ({"prompt": [[1, "of both"], [2]]}, 2),
    ({"prompt": [1, "of both", 2]}, 1),
    ({"prompt": [{"prompt_string": "x", "multimodal_data": ["eA=="]}] * 3}, 3),
    ({"prompt_embeds": ["eA=="] * 5}, 5),
    ({"prompt": ["x", "y"], "prompt_embeds": ["eA=="] * 5}, 7),
    ({"prompt": None, "prompt_embeds": "eA=="}, 1),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "prompts"), PROMPTS, ids=[str(number) for number in range(len(PROMPTS))])
def test_each_prompt_of_a_list_reserves_its_answers(fields: dict[str, Any], prompts: int) -> None:
    assert reserved(call(**fields, max_tokens=100)) == 100 * prompts
    assert reserved(call(**fields, max_tokens=100, n=2, best_of=3)) == 300 * prompts
    assert in_windows("completions", **fields, max_tokens=100).answers == prompts


def test_texts_beside_token_ids_are_counted_as_well() -> None:
    long = WORDS * 1000
    assert Estimator().estimate(call(prompt=[[1, 2], long]), "k", "r").input > len(long) / 5
    assert Estimator().estimate(call(prompt=[[1, long]]), "k", "r").input > len(long) / 5


def context(asked: Call) -> int:
    """Tokens that the longest of its prompts is taken to need, with its answer."""
    tokens = Estimator().estimate(asked, "k", "r").input
    return features(asked, {}, model="m", tenant="t", tokens=tokens).context


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ([WORDS] * 100, len(WORDS) // 4),
        ([WORDS] * 99 + [WORDS * 100], len(WORDS) * 25),
        ([[1] * 50] * 40 + [[1] * 2000], 2000),
        ([1] * 3000, 3000),
        ([WORDS * 100], len(WORDS) * 25),
    ],
    ids=["short ones", "a long one", "token ids", "one of token ids", "one"],
)
def test_the_context_is_checked_for_each_prompt(prompt: Any, tokens: int) -> None:
    assert tokens + 100 <= context(call(prompt=prompt, max_tokens=100)) <= tokens * 1.1 + 120
    assert in_windows("completions", prompt=prompt).longest <= 1
