"""What operators decide of callers' bodies, by route and by key: fields that may not come, that are set, filled in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct, structs

from backends import asked
from backends.api import Call
from backends.asked import BOUNDS, CHOICES, HUGE, NESTED, Asked
from backends.body import Body
from backends.endpoints import UNCOUNTED
from gateway.core.errors import BadRequest, denied_field
from gateway.core.system_prompt import BETWEEN, with_prompt

CALL: Final = frozenset(
    ("model", "stream", "stream_options", "messages", "prompt", "input", "inputs", "parameters", "prompt_embeds")
)
"""Fields that make the call what it is."""
COUNTED: Final = frozenset((*BOUNDS, *CHOICES, "best_of"))
"""Fields of which limits and routing read how much may be made; embeddings have none of them."""
MOST_FIELDS: Final = 64
MOST_BYTES: Final = 16 * 1024
"""Of the values of one key or route, as JSON."""
MOST_NAME: Final = 128

_SAME: Final[dict[str, tuple[str, ...]]] = {name: group for group in (BOUNDS, CHOICES) for name in group}
"""Names of one field: engines honour the one or the other, so a rule for one is a rule for all."""


class BodyRules(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Rules for fields at the top of bodies."""

    deny: tuple[str, ...] = ()
    """Fields that callers may not send."""
    set: dict[str, Any] = {}
    """Values of fields, whatever callers send; None takes a field out."""
    default: dict[str, Any] = {}
    """Values of fields that are missing, or null."""
    system_prompt: str = ""
    """Goes before what chats, messages and responses have of one."""


NO_RULES: Final = BodyRules()


def mistakes(rules: BodyRules) -> Iterator[tuple[tuple[str, ...], str]]:
    """What cannot be meant, each with where it stands."""
    for part in ("deny", "set", "default"):
        names = getattr(rules, part)
        if len(names) > MOST_FIELDS:
            yield (part,), f"{part!r} has {len(names)} fields; at most {MOST_FIELDS} are possible"
        for name in names:
            if told := _odd_name(name) or _odd(part, name, names[name] if isinstance(names, dict) else ""):
                yield (part, name), told
    yield from _contradictions(rules)
    if len(rules.system_prompt.encode(errors="replace")) > MOST_BYTES:
        yield ("system_prompt",), f"it has at most {MOST_BYTES} bytes"
    values = (*rules.set.values(), *rules.default.values())
    if not any(map(_is_no_json, values)) and (size := len(msgspec.json.encode(values))) > MOST_BYTES:
        yield ("set",), f"its values and those of 'default' have {size} bytes; at most {MOST_BYTES} are possible"


def _odd_name(name: str) -> str:
    """Why a field cannot have this name; empty: it can."""
    if 0 < len(name) <= MOST_NAME and name.isprintable():
        return ""
    return f"{name[:MOST_NAME]!r}: expected the name of a field, 1 to {MOST_NAME} printable characters"


def _odd(part: str, name: str, value: object) -> str:
    """Why a field cannot be ruled like this; empty: it can."""
    if part == "deny":
        return "'model' is what every call has to say" if name == "model" else ""
    if name in CALL:
        return f"{name!r} makes the call what it is: it is the caller's to say"
    if part == "default" and value is None:
        return f"{name!r}: null fills in nothing; under 'set' it takes the field out"
    is_count = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= HUGE
    if name in COUNTED and value is not None and not is_count:
        return f"{name!r}: {value!r} is not allowed; expected a whole number, at least 1"
    return f"{name!r}: expected a value that JSON has" if _is_no_json(value) else ""


def _is_no_json(value: object) -> bool:
    """Such as infinity, or a date."""
    try:
        return bool(msgspec.json.decode(msgspec.json.encode(value)) != value)
    except (TypeError, ValueError, RecursionError):
        return True


def _contradictions(rules: BodyRules) -> Iterator[tuple[tuple[str, ...], str]]:
    for part in ("set", "default"):
        seen: dict[tuple[str, ...], str] = {}
        for name in getattr(rules, part):
            if (first := seen.setdefault(_names(name), name)) != name:
                yield (part, name), f"{name!r} and {first!r} are one field under two names: give one of them"
    ruled = {_names(name): name for name in rules.set}
    for name in rules.default:
        if (other := ruled.get(_names(name))) is not None:
            yield ("default", name), f"{name!r} is never missing: {other!r} stands under 'set'"
        elif name in rules.deny:
            told = "may not be sent ('deny'), so this is its value: write it under 'set', or take it out of 'deny'"
            yield ("default", name), f"{name!r} {told}"


def _names(name: str) -> tuple[str, ...]:
    """All names of the field that has this one."""
    return _SAME.get(name, (name,))


def _written(endpoint: str, name: str) -> str:
    """The name under which an endpoint has a field."""
    if name not in BOUNDS:
        return name
    if endpoint == "responses":
        return "max_output_tokens"
    return "max_tokens" if endpoint == "messages" or name == "max_output_tokens" else name


def _has(endpoint: str, name: str) -> bool:
    """Whether a field that is counted is one of this endpoint's."""
    if name not in COUNTED:
        return endpoint not in UNCOUNTED
    return endpoint in ("chat/completions", "completions") or (name in BOUNDS and endpoint in ("messages", "responses"))


def ruled(call: Call, route: BodyRules, key: BodyRules | None) -> Call:
    """The call as these rules make it: what is denied by either is; the route's `set` goes before the key's, the key's
    `default` before the route's, and what is set before what is filled in.

    Raises `BadRequest` for a denied field, and for a body whose fields are out of the reach of what is to be set.
    """
    key, fields = key or NO_RULES, call.body.fields
    for rules, whose in ((route, "on this route"), (key, "with this key")):
        if denied := _nested(call).union(fields).intersection(rules.deny):
            raise denied_field(denied, whose)
        if rules.set and call.endpoint in NESTED:
            raise BadRequest(
                f"Fields are set {whose}, which cannot be done for {call.endpoint!r}: use another endpoint."
            )
    sets, defaults = _merged(call, key.set, route.set), _merged(call, route.default, key.default)
    changes: dict[str, bytes | None] = {}
    for names, (name, value) in sets.items():
        changes |= {each: None for each in names if each in fields}
        if value is not None:
            changes[_written(call.endpoint, name)] = msgspec.json.encode(value)
    for names, (name, value) in defaults.items():
        if names not in sets and all(bytes(fields.get(each, b"null")) == b"null" for each in names):
            changes[_written(call.endpoint, name)] = msgspec.json.encode(value)
    if prompt := BETWEEN.join(filter(None, (route.system_prompt, key.system_prompt))):
        now = {**fields, **{name: Raw(value or b"null") for name, value in changes.items()}}
        changes |= with_prompt(call.endpoint, now, prompt)
    if not changes:
        return call
    body = call.body.changed(changes)
    return structs.replace(call, body=body, asked=_asked(call, body))


def _nested(call: Call) -> set[str]:
    """Fields that stand within another one."""
    raw = bytes(call.body.fields.get(NESTED.get(call.endpoint, ""), b""))
    return set(msgspec.json.decode(raw, type=dict[str, Raw])) if raw.startswith(b"{") else set()


def _merged(call: Call, *rules: Mapping[str, Any]) -> dict[tuple[str, ...], tuple[str, Any]]:
    """By all names of a field, the one by which it is ruled, and its value; later rules go before earlier ones."""
    found: dict[tuple[str, ...], tuple[str, Any]] = {}
    for each in rules:
        for name, value in each.items():
            if call.endpoint not in NESTED and _has(call.endpoint, name):
                found[_names(name)] = name, value
    return found


def _asked(call: Call, body: Body) -> Asked:
    """What the call asks for with this body instead of its own."""
    if call.asked.conversation is None:
        return asked.read(call.endpoint, len(body.raw), body.fields)
    # It was read in windows, as it is large: no rule changes more of its prompt than its length.
    counted = asked.read("embeddings", 0, {name: raw for name, raw in body.fields.items() if name in COUNTED})
    return structs.replace(
        call.asked,
        choices=counted.choices,
        candidates=counted.candidates,
        output=counted.output,
        text=max(0, call.asked.text + len(body.raw) - len(call.body.raw)),
    )
