"""What may stand in a record; whatever may not is a `ValueError` that names the value and what is allowed."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Final, get_args

from backends.endpoints import Endpoint
from gateway.auth.networks import networks
from gateway.config.connections import CALLERS, TOKEN
from gateway.config.names import matches
from gateway.core.batches import Storage
from gateway.core.body_rules import NO_RULES, BodyRules, mistakes
from gateway.core.dimensions import COUNTS, DIMENSIONS
from gateway.core.types import Limit, Outage, Priority

ENDPOINTS: Final[tuple[str, ...]] = get_args(Endpoint)
PRIORITIES: Final[tuple[str, ...]] = get_args(Priority)
OUTAGES: Final[tuple[str, ...]] = get_args(Outage)
MAX_LABELS: Final = 32
MAX_NAME: Final = 128
MAX_GLOBS: Final = 256
MAX_NUMBER: Final = 10**15
"""The store counts in doubles, which are exact up to nine times this."""
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def name(value: object, what: str = "name", most: int = MAX_NAME) -> str:
    """Some text to show: printable and not empty."""
    if not isinstance(value, str) or not 0 < len(value) <= most or not value.isprintable() or not value.strip():
        raise ValueError(f"{what} {value!r}: expected 1 to {most} printable characters")
    return value


def tenant(value: object) -> str:
    """The id of a tenant."""
    if not isinstance(value, str) or not _TENANT.fullmatch(value):
        raise ValueError(
            f"tenant {value!r}: expected 1 to 64 letters, digits, dots, underscores and hyphens,"
            " beginning with a letter or digit"
        )
    return value


def models(values: object) -> tuple[str, ...]:
    """Globs over the names of models."""
    return tuple(name(value, "model", 256) for value in _texts(values, "models"))


def endpoints(values: object) -> tuple[str, ...]:
    """Globs over endpoints, each of which covers at least one."""
    globs = _texts(values, "endpoints")
    for glob in globs:
        if not any(matches(glob, endpoint) for endpoint in ENDPOINTS):
            raise ValueError(
                f"endpoint {glob!r}: expected one of {', '.join(ENDPOINTS)}, or a glob such as * over them"
            )
    return globs


def sources(values: object) -> tuple[str, ...]:
    """Networks, written in the one way that they all are; none is anywhere."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"sources {values!r}: expected a list of networks such as 10.0.0.0/8")
    found = tuple(values)
    for value in found:
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"sources: {value!r} is not a network; expected one such as 10.0.0.0/8")
    return tuple(map(str, networks(found)))


def default_route(value: object) -> str:
    """The name of a route or alias; empty: none."""
    if not isinstance(value, str) or len(value) > 256 or not value.isprintable():
        raise ValueError(f"default_route {value!r}: expected a route or alias of at most 256 printable characters")
    return value


def user_header(value: object) -> str:
    """The name of a header, in lower case; empty: none."""
    if value == "":
        return ""
    if not isinstance(value, str) or len(value) > 128 or not TOKEN.fullmatch(value):
        raise ValueError(f"user_header {value!r}: expected a header's name such as x-openwebui-user-id")
    if value.lower() in CALLERS:
        raise ValueError(f"user_header {value!r}: this header holds credentials, or names no user")
    return value.lower()


def priority(value: object) -> str:
    """How important the key's calls are."""
    if value not in PRIORITIES:
        raise ValueError(f"priority {value!r}: expected one of {', '.join(PRIORITIES)}")
    return str(value)


def labels(value: object) -> dict[str, str]:
    """Names and values for the operator."""
    if not isinstance(value, Mapping) or len(value) > MAX_LABELS:
        raise ValueError(f"labels: expected at most {MAX_LABELS} names with values")
    return {
        name(key, "label", 64): name(text, f"label {key!r}:", 256) if text != "" else "" for key, text in value.items()
    }


def limit(value: object, of: str = "limit") -> Limit:
    """What may be used: rates of at least 1, budgets of at least 0."""
    if not isinstance(value, Limit):
        raise ValueError(f"{of}: expected limits such as rpm, not {value!r}")
    for count in COUNTS:
        _number(getattr(value, count), f"{of} {count}", 1)
    for period in value.budget.__struct_fields__:
        for unit in (allowance := getattr(value.budget, period)).__struct_fields__:
            _number(getattr(allowance, unit), f"{of} budget {period} {unit}", 0)
    for dimension, policy in value.outage.items():
        if dimension not in DIMENSIONS:
            raise ValueError(f"{of} outage {dimension!r}: expected one of {', '.join(DIMENSIONS)}")
        if policy not in OUTAGES:
            raise ValueError(f"{of} outage {dimension} {policy!r}: expected one of {', '.join(OUTAGES)}")
    return value


def storage(value: object) -> Storage:
    """What may be stored: whole numbers of at least 0, days of at least 1."""
    if not isinstance(value, Storage):
        raise ValueError(f"storage: expected limits such as bytes, not {value!r}")
    for field in value.__struct_fields__:
        _number(getattr(value, field), f"storage {field}", int(field == "days"))
    return value


def model_limits(value: object) -> dict[str, Limit]:
    """Limits by route name."""
    if not isinstance(value, Mapping):
        raise ValueError(f"model_limits: expected limits by route name, not {value!r}")
    return {name(route, "route", 256): limit(of, f"model_limits {route!r}") for route, of in value.items()}


def known_routes(limits: Iterable[str], routes: Iterable[str]) -> None:
    """Limits on a route that the table does not have would never hold: `ValueError` with the routes that it has."""
    known = sorted(routes)
    if unknown := sorted({*limits} - {*known}):
        near = difflib.get_close_matches(unknown[0], known, 1)
        meant = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"model_limits: no route {', '.join(map(repr, unknown))}; routes: {', '.join(known)}{meant}.")


def body(value: object) -> BodyRules | None:
    """Rules for bodies; None: there are none."""
    if value is not None and not isinstance(value, BodyRules):
        raise ValueError(f"body: expected rules for bodies (deny, set, default, system_prompt), not {value!r}")
    for place, told in mistakes(value or NO_RULES):
        raise ValueError(f"body.{place[0]}: {told}")
    return None if value == NO_RULES else value


def seconds(value: object, what: str, least: float) -> float:
    """A duration."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < least:
        raise ValueError(f"{what} {value!r}: expected a number of seconds, at least {least:g}")
    return float(value)


def _texts(values: object, what: str) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{what} {values!r}: expected a list")
    found = tuple(values)
    if not 0 < len(found) <= MAX_GLOBS:
        raise ValueError(f"{what}: expected 1 to {MAX_GLOBS}, and * for all")
    for value in found:
        if not isinstance(value, str) or not value:
            raise ValueError(f"{what}: {value!r} is not a name; * stands for any text")
    return found


def _number(value: object, what: str, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_NUMBER:
        raise ValueError(f"{what} {value!r}: expected a whole number, at least {least}")
