"""Reads what servers say of themselves in OpenAI's list of models, with the fields that engines add to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from backends.api import Facts

MODELS = "/v1/models"


class _Meta(Struct):
    n_ctx: int | None = None  # llama.cpp's: of one slot


class _Card(Struct):
    id: str
    max_model_len: int | None = None
    parent: str | UnsetType | None = UNSET  # of a LoRA adapter: the model it adapts
    meta: _Meta | None = None

    @property
    def context(self) -> int | None:
        return self.max_model_len or (self.meta and self.meta.n_ctx) or None


class _Models(Struct):
    data: list[_Card]


def listed(answers: Mapping[str, bytes], model: str | None) -> Facts:
    """The facts in the answer of `/v1/models`, if there is one.

    A server may list models of different contexts: then only that of `model` counts.
    """
    found = understood(answers, MODELS, _Models)
    if found is None:
        return Facts()
    cards = found.data
    bases = [card for card in cards if not card.parent]
    adapted = [card.id for card in cards if card.parent]
    loras = _sorted(adapted) if any(card.parent is not UNSET for card in cards) else None
    asked = [card for card in cards if card.id == model and card.context] or cards
    contexts = {card.context for card in asked if card.context}
    context = contexts.pop() if len(contexts) == 1 else None
    return Facts(context=context, models=_sorted(card.id for card in bases), loras=loras)


def understood(answers: Mapping[str, bytes], path: str, type: type[Any]) -> Any:
    """The answer of this path as a value of this type; None when it is missing or something else."""
    try:
        return msgspec.json.decode(answers.get(path, b""), type=type)
    except (ValueError, RecursionError):  # UnicodeDecodeError is no DecodeError
        return None


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))
