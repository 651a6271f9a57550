"""What can be limited: the one table that routing tables, records, options, plans and error messages are made from.

A new one is a line here and a field of `core.types.Limit`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal

from msgspec import Meta, Struct


class Counted(Struct, frozen=True):
    """A limit that is a number."""

    name: str
    """What tables, records, options and metrics call it."""
    kind: Literal["rate", "lease"]
    """`rate`: so many in `window`; `lease`: so many at once."""
    unit: Literal["requests", "tokens", "input", "output", "calls"]
    """What a call takes of it: itself, or some of its tokens."""
    text: str
    """What it counts, to operators."""
    words: str
    """The same to clients, after the number."""
    note: str = ""
    window: float = 60.0
    """Seconds, of a rate."""


COUNTED: Final = (
    Counted(
        "rpm",
        "rate",
        "requests",
        "Requests a minute",
        "requests per minute",
        "as many may come at once after a quiet minute",
    ),
    Counted("tpm", "rate", "tokens", "Tokens a minute, prompt and completion together", "tokens per minute"),
    Counted("itpm", "rate", "input", "Prompt tokens a minute", "prompt tokens per minute"),
    Counted("otpm", "rate", "output", "Completion tokens a minute", "completion tokens per minute"),
    Counted("concurrency", "lease", "calls", "Calls at the same time", "calls at the same time"),
)
COUNTS: Final = tuple(counted.name for counted in COUNTED)
BUDGET: Final = "budget"
"""The other dimension: tokens and money by calendar period."""
DIMENSIONS: Final = (*COUNTS, BUDGET)
WORDS: Final = {counted.name: counted.words for counted in COUNTED}


def count_fields(annotated: Callable[[Meta], Any], default: Any, form: str = "{text}") -> list[tuple[str, Any, Any]]:
    """A field for each number, for `msgspec.defstruct`: all of one type, each with a description made by `form`."""
    fields = []
    for counted in COUNTED:
        note = f"; {counted.note}" if counted.note else ""
        description = Meta(description=form.format(text=counted.text, note=note))
        fields.append((counted.name, annotated(description), default))
    return fields
