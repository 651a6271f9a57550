"""Options as operators type them, turned into what the admin interface would read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, get_args

import click
import msgspec

from gateway.config.units import COUNT, MONEY, SIZE, Unit
from gateway.core.batches import Storage
from gateway.core.dimensions import COUNTED, COUNTS, DIMENSIONS
from gateway.core.types import Outage, Period

F = TypeVar("F", bound=Callable[..., Any])

SPENT = {"tokens": ("tokens", COUNT), "money": ("cost_micros", MONEY)}
"""What a budget may count: its field, and how it is written."""
_ITEM = r"(?:budget:\w+:\w+|outage:\w+|\w+)=.+"
_MODEL_LIMIT = re.compile(rf"(?P<route>.+?):(?P<items>{_ITEM})")


class Quantity(click.ParamType[Any, Any]):
    """An option such as `30d` or `10k`."""

    def __init__(self, unit: Unit, *, positive: bool = False) -> None:
        self._unit, self._positive = unit, positive
        self.name = unit.example

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return self.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return quantity(self._unit, value, positive=self._positive)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Parsed(click.ParamType[Any, Any]):
    """An option that `parse` reads; its `ValueError` says what is allowed."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return self.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def quantity(unit: Unit, text: str, *, positive: bool = True) -> Any:
    """A quantity; `ValueError` names the text and what is allowed."""
    try:
        number = unit.parse(text)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    if positive and number <= 0:
        raise ValueError(f"{text!r}: expected {unit.what} above 0")
    return number


def budget(text: str) -> dict[str, Any]:
    """`day:tokens=2M` or `month:tokens=40M,money=50`, as a change of a limit."""
    period, separator, items = text.partition(":")
    if period not in get_args(Period) or not separator:
        raise ValueError(f"{text!r}: expected PERIOD:tokens=NUMBER or PERIOD:money=AMOUNT, PERIOD one of {_or(Period)}")
    spent = {}
    for item in items.split(","):
        name, _, value = item.partition("=")
        if name not in SPENT:
            raise ValueError(f"{text!r}: expected tokens=NUMBER or money=AMOUNT after {period}:")
        field, unit = SPENT[name]
        spent[field] = quantity(unit, value, positive=False)
    return {"budget": {period: spent}}


def outage(text: str) -> dict[str, Any]:
    """`rpm=closed`, as a change of a limit."""
    dimension, _, policy = text.partition("=")
    if dimension not in DIMENSIONS or policy not in get_args(Outage):
        raise ValueError(
            f"{text!r}: expected DIM=POLICY, DIM one of {', '.join(DIMENSIONS)}, POLICY one of {_or(Outage)}"
        )
    return {"outage": {dimension: policy}}


def storage(text: str) -> dict[str, Any]:
    """`bytes=20GiB`, as a change of what a tenant may store."""
    name, _, value = text.partition("=")
    if name not in Storage.__struct_fields__:
        raise ValueError(f"{text!r}: expected FIELD=NUMBER, FIELD one of {', '.join(Storage.__struct_fields__)}")
    try:
        return {name: quantity(SIZE if name == "bytes" else COUNT, value, positive=name == "days")}
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def model_limit(text: str) -> dict[str, Any]:
    """`ROUTE:rpm=10,tpm=20k`, as a change of limits by route; a route's name may hold colons."""
    match = _MODEL_LIMIT.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r}: expected ROUTE:LIMIT=NUMBER,..., LIMIT one of {', '.join(COUNTS)}")
    change: dict[str, Any] = {}
    for item in match["items"].split(","):
        merge(change, _item(text, item))
    return {match["route"]: change}


def _item(text: str, item: str) -> dict[str, Any]:
    name, _, value = item.partition("=")
    if name.startswith("budget:"):
        return budget(item.removeprefix("budget:"))
    if name.startswith("outage:"):
        return outage(item.removeprefix("outage:"))
    if name not in COUNTS:
        allowed = ", ".join((*COUNTS, "budget:PERIOD:tokens", "budget:PERIOD:money", "outage:DIM"))
        raise ValueError(f"{text!r}: {name!r} is no limit; expected one of {allowed}")
    return {name: quantity(COUNT, value)}


def label(text: str) -> dict[str, str]:
    """`team=search`."""
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise ValueError(f"{text!r}: expected NAME=VALUE")
    return {name: value}


def field_value(text: str) -> tuple[str, Any]:
    """`max_tokens=512`: the name of a field of a body, and its value in JSON."""
    name, separator, value = text.partition("=")
    try:
        if not name or not separator:
            raise ValueError
        return name, msgspec.json.decode(value)
    except (ValueError, RecursionError):
        raise ValueError(
            f"{text!r}: expected FIELD=VALUE, VALUE in JSON: max_tokens=512, user='\"acme\"', stop=null"
        ) from None


def body_options(command: F) -> F:
    """The options that make up rules for bodies; `body_rules` reads them."""
    whatever = "A field that its bodies get, whatever they say: max_tokens=512; null takes it out. Repeatable."
    missing = "A field that its bodies get where they have none, such as max_tokens=512. Repeatable."
    options = [
        click.option(
            "--body-deny",
            "denied",
            multiple=True,
            metavar="FIELD",
            help="A field that its bodies may not have, such as logit_bias: such a call gets 400. Repeatable.",
        ),
        *(
            click.option(name, field, multiple=True, type=Parsed("FIELD=JSON", field_value), help=text)
            for name, field, text in (("--body-set", "set_fields", whatever), ("--body-default", "defaults", missing))
        ),
        click.option("--system-prompt", metavar="TEXT", help="Goes before its calls' own, and behind a route's."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def body_rules(options: dict[str, Any]) -> dict[str, Any]:
    """The rules for bodies that these options give; what was not given is not in it."""
    given: dict[str, Any] = {
        "deny": [*options["denied"]],
        "set": dict(options["set_fields"]),
        "default": dict(options["defaults"]),
    }
    given["system_prompt"] = options["system_prompt"]
    return {name: value for name, value in given.items() if value}


def merge(into: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Put `change` into `into`, objects into objects."""
    for name, value in change.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            merge(into[name], value)
        else:
            into[name] = value
    return into


def collected(changes: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """All of a repeatable option's values in one."""
    whole: dict[str, Any] = {}
    for change in changes:
        merge(whole, change)
    return whole


def combined(clears: dict[str, Any], sets: dict[str, Any], path: str = "") -> dict[str, Any]:
    """One change out of what goes and what comes; `ValueError` for a field that does both."""
    whole = {**clears, **sets}
    for name in clears.keys() & sets.keys():
        one, other = clears[name], sets[name]
        if not (isinstance(one, dict) and isinstance(other, dict)):
            raise ValueError(f"{path}{name}: cannot be set and cleared at once")
        whole[name] = combined(one, other, f"{path}{name}.")
    return whole


def limit_options(command: F) -> F:
    """The options that make up a limit; `limit_change` reads them."""
    options = [
        *(
            click.option(f"--{counted.name}", type=Quantity(COUNT, positive=True), help=f"{counted.text}.")
            for counted in COUNTED
        ),
        click.option(
            "--budget",
            "budgets",
            multiple=True,
            type=Parsed("day:tokens=2M", budget),
            help="Spending in a day, week or month in UTC, such as day:tokens=2M or month:money=50. Repeatable.",
        ),
        click.option(
            "--outage",
            "outages",
            multiple=True,
            type=Parsed("DIM=POLICY", outage),
            help="What a limit does while Redis is down, such as rpm=closed: share, closed or open. Repeatable.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def limit_change(options: dict[str, Any]) -> dict[str, Any]:
    """The change of a limit that these options ask for; what was not given is not in it."""
    change = {name: options[name] for name in COUNTS if options.get(name) is not None}
    return merge(change, collected([*options["budgets"], *options["outages"]]))


def _or(kind: Any) -> str:
    return ", ".join(get_args(kind))
