"""Quantities as operators write them: `2s`, `20MiB`, `200k`, `12.50`; and secrets, which they must not write at all."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, get_args

from msgspec import Meta, Struct

_NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_AMOUNT = re.compile(r"\d+(\.\d{1,6})?")

MAX = 1e12
MAX_MONEY = 999_999_999
"""Up to here a number in YAML, which is a float, holds all six decimals."""


class Unit(Struct, frozen=True):
    """How one kind of quantity is written."""

    what: str
    example: str
    factors: dict[str, float]
    bare: bool
    """A number without a unit is understood."""
    whole: bool = True
    zero: bool = False
    """Nothing is a quantity too."""
    json_types: tuple[str, ...] = ("integer", "string")

    @property
    def pattern(self) -> str:
        names = "|".join(filter(None, self.factors))
        return rf"^\d+(\.\d+)?\s*({names}){'?' if self.bare else ''}$"

    @property
    def allowed(self) -> str:
        """What is expected, in words."""
        return f"{self.what} such as {self.example}"

    def parse(self, value: Any) -> float:
        """Read a quantity; `ValueError` says what is allowed."""
        allowed = self.allowed
        match = None if isinstance(value, bool) else _NUMBER.fullmatch(str(value))
        if match is None or (match[2] not in self.factors if match[2] else not self.bare):
            raise ValueError(f"expected {allowed} (units: {', '.join(self.factors)})")
        number = Decimal(match[1]) * Decimal(str(self.factors.get(match[2], 1)))
        if number > MAX:
            raise ValueError(f"expected {allowed}, at most {MAX:g}")
        if self.whole and number != int(number):
            raise ValueError(f"expected a whole number: {allowed}")
        return int(number) if self.whole else float(number)

    def shown(self, value: float) -> str | float:
        """The shortest way to write `value`."""
        for name, factor in sorted(self.factors.items(), key=lambda pair: -pair[1]):
            number = value // factor if self.whole else round(value / factor, 6)  # 0.05 s is 50 ms, but for rounding
            if number >= 1 and (number * factor == value if self.whole else number == int(number)):
                return f"{number:.0f}{name}"
        return value


class MoneyUnit(Unit, frozen=True):
    """An amount of the table's currency. It is decoded, to the last digit, into micro-units: 12.50 is 12,500,000."""

    @property
    def pattern(self) -> str:
        return f"^{_AMOUNT.pattern}$"

    def parse(self, value: Any) -> int:
        """Read an amount; `ValueError` says what is allowed."""
        text = f"{Decimal(str(value)):f}" if isinstance(value, float) else str(value)
        if isinstance(value, bool) or _AMOUNT.fullmatch(text) is None:
            raise ValueError(f"expected {self.allowed}, with at most six decimals")
        if (amount := Decimal(text)) > MAX_MONEY:
            raise ValueError(f"expected {self.allowed}, at most {MAX_MONEY}")
        return int(amount * 1_000_000)

    def shown(self, value: float) -> str:
        """The amount, with as many decimals as it takes."""
        units, millionths = divmod(int(value), 1_000_000)
        return f"{units}.{millionths:06d}".rstrip("0").rstrip(".")


DURATION = Unit("a duration", "2s", {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}, bare=False, whole=False)
SIZE = Unit(
    "a size", "20MiB", {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 10**3, "MB": 10**6, "GB": 10**9}, bare=True
)
COUNT = Unit("a number", "200k", {"k": 1000, "M": 1_000_000}, bare=True)
MONEY = MoneyUnit("an amount of money", "12.50", {}, bare=True, json_types=("number", "string"))
PRICE = MoneyUnit("a price", "0.15", {}, bare=True, zero=True, json_types=("number", "string"))

Seconds = Annotated[float, Meta(extra={"unit": DURATION}, extra_json_schema={"type": "string"})]
Size = Annotated[int, Meta(extra={"unit": SIZE}, extra_json_schema={"type": ["integer", "string"]})]
Count = Annotated[int, Meta(extra={"unit": COUNT}, extra_json_schema={"type": ["integer", "string"]})]
Money = Annotated[int, Meta(extra={"unit": MONEY}, extra_json_schema={"type": ["number", "string"]})]
"""Micro-units of the table's currency."""
PerMillion = Annotated[int, Meta(extra={"unit": PRICE}, extra_json_schema={"type": ["number", "string"]})]
"""Micro-units of the table's currency for a million tokens."""
PerAnswer = Annotated[int, Meta(extra={"unit": PRICE}, extra_json_schema={"type": ["number", "string"]})]
"""Micro-units of the table's currency."""
Text = Annotated[str, Meta(min_length=1)]
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
    """The unit that an annotated type carries, also one that may be None."""
    kinds = (kind, *get_args(kind))
    metas = (meta for each in kinds for meta in _metas(each))
    return next((meta.extra["unit"] for meta in metas if meta.extra and "unit" in meta.extra), None)


def is_secret(kind: Any) -> bool:
    """Whether values of this type are secrets."""
    return any(meta.extra and "secret" in meta.extra for meta in _metas(kind))


def _metas(kind: Any) -> list[Meta]:
    return [argument for argument in get_args(kind) if isinstance(argument, Meta)]
