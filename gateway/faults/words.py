"""What the fake model says: "w1 w2 w3 ...", on from where the prompt ends, so that a resumed answer can be checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

_SAID = re.compile(r"(?:^|\s)w(\d+)\s*$")
_SPACE = re.compile(r"\s$")
UNBOUNDED: Final = 10**6
"""Words that one answer may have at most."""


class Ask(Struct, frozen=True):
    """What is to be said: from word `first` to word `last`."""

    first: int
    last: int
    glue: str
    """What stands before the first word."""
    finish: str
    """"stop" or "length", in OpenAI's words."""
    prompt: str
    """All that the model reads."""

    def tokens(self) -> Iterator[str]:
        """One word each, with the space before it."""
        for number in range(self.first, self.last + 1):
            yield f"{self.glue if number == self.first else ' '}w{number}"

    @property
    def text(self) -> str:
        return "".join(self.tokens())

    @property
    def count(self) -> int:
        return max(0, self.last - self.first + 1)


def ask(prompt: str, begun: str, tokens: int, limit: int | None) -> Ask:
    """What follows `begun`, which ends with what was said of an answer of `tokens` words; `limit` words at most.

    `prompt` is all that the model reads, `begun` included.
    """
    first = said(begun) + 1
    wanted = max(0, min(tokens, UNBOUNDED) - first + 1)
    cut = limit is not None and limit < wanted
    last = first - 1 + (limit if cut and limit is not None else wanted)
    glue = "" if not begun or _SPACE.search(begun) else " "
    return Ask(first, last, glue, "length" if cut else "stop", prompt)


def said(text: str) -> int:
    """The number of the word that ends a text; 0: it ends in no word of ours."""
    match = _SAID.search(text)
    return int(match[1]) if match else 0


def text_of(content: Any) -> str:
    """A message's content, or a prompt, as text: lists are joined, what is no text counts as nothing."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return " ".join(text_of(part.get("text") if isinstance(part, dict) else part) for part in content)
    return ""
