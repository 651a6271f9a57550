"""Tools in namespaces, for chats, which have none: there the namespace is the beginning of a function's name."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from backends.api import Call

Namespaces = Mapping[str, tuple[str, str]]
"""Namespaces and names of functions, by the names that they have in chats."""


class _Function(Struct):
    name: str = ""


class _Tool(Struct):
    type: str
    name: str | None = ""
    tools: list[_Function] = []


def flat(namespace: str | None, name: str) -> str:
    """The name in a chat."""
    return f"{namespace}__{name}" if namespace else name


def namespaces(call: Call) -> Namespaces:
    """Of the tools that the call shows."""
    raw = call.body.fields.get("tools", msgspec.Raw())
    if b'"namespace"' not in memoryview(raw).tobytes():
        return {}
    shown = [tool for tool in msgspec.json.decode(raw, type=list[_Tool]) if tool.type == "namespace"]
    return {flat(tool.name, each.name): (tool.name or "", each.name) for tool in shown for each in tool.tools}


def named(name: str, known: Namespaces) -> dict[str, str]:
    """What tells a function of a chat to the client."""
    if name not in known:
        return {"name": name}
    namespace, name = known[name]
    return {"name": name, "namespace": namespace}
