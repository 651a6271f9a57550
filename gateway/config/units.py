"""Numbers as operators write them: `2s`, `20MiB`, `200k`; and secrets, which they must not write at all."""

from __future__ import annotations

import re
from typing import Annotated, Any, get_args

from msgspec import Meta, Struct

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")


MAX = 1e12


class Unit(Struct, frozen=True):
    """How one kind of quantity is written."""

    what: str
    example: str
    factors: dict[str, float]
    bare: bool
    """A number without a unit is understood."""
    whole: bool = True

    @property
    def pattern(self) -> str:
        names = "|".join(filter(None, self.factors))
        return rf"^\d+(\.\d+)?\s*({names}){'?' if self.bare else ''}$"

    def parse(self, value: Any) -> float:
        """Read a quantity; `ValueError` says what is allowed."""
        allowed = f"{self.what} such as {self.example}"
        match = None if isinstance(value, bool) else _NUMBER.fullmatch(str(value))
        if match is None or (match[2] not in self.factors if match[2] else not self.bare):
            raise ValueError(f"expected {allowed} (units: {', '.join(self.factors)})")
        number = float(match[1]) * self.factors.get(match[2], 1)
        if number > MAX:
            raise ValueError(f"expected {allowed}, at most {MAX:g}")
        if self.whole and number != int(number):
            raise ValueError(f"expected a whole number: {allowed}")
        return int(number) if self.whole else number

    def shown(self, value: float) -> str | float:
        """The shortest way to write `value`."""
        for name, factor in sorted(self.factors.items(), key=lambda pair: -pair[1]):
            if value and value % factor == 0:
                return f"{value / factor:.0f}{name}"
        return value


DURATION = Unit("a duration", "2s", {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}, bare=False, whole=False)
SIZE = Unit(
    "a size", "20MiB", {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "MB": 10**6, "GB": 10**9}, bare=True
)
COUNT = Unit("a number", "200k", {"k": 1000, "M": 1_000_000}, bare=True)

Seconds = Annotated[float, Meta(extra={"unit": DURATION}, extra_json_schema={"type": "string"})]
Size = Annotated[int, Meta(extra={"unit": SIZE}, extra_json_schema={"type": ["integer", "string"]})]
Count = Annotated[int, Meta(extra={"unit": COUNT}, extra_json_schema={"type": ["integer", "string"]})]
SecretRef = Annotated[
    str,
    Meta(
        description="A reference: ${NAME} (environment) or ${file:/run/secrets/name}",
        pattern=r"^\$\{.+\}$",
        extra={"secret": True},
    ),
]
"""Decoded by `located` from the reference to the secret itself."""


def unit_of(kind: Any) -> Unit | None:
    """The unit that an annotated type carries."""
    return next((meta.extra["unit"] for meta in _metas(kind) if meta.extra and "unit" in meta.extra), None)


def is_secret(kind: Any) -> bool:
    """Whether values of this type are secrets."""
    return any(meta.extra and "secret" in meta.extra for meta in _metas(kind))


def _metas(kind: Any) -> list[Meta]:
    return [argument for argument in get_args(kind) if isinstance(argument, Meta)]
