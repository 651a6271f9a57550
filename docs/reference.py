"""Writes docs/reference.md from the code: every key, setting, option, metric and error there is. `--check` compares."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import msgspec
from prometheus_client import CollectorRegistry

import gateway
from gateway.cli import cli
from gateway.config import Settings
from gateway.config.located import expected
from gateway.config.table import field_texts, parts
from gateway.config.units import is_secret, unit_of
from gateway.core import errors
from gateway.metering import Metrics

PAGE = Path(__file__).with_name("reference.md")


def page() -> str:
    """The whole page."""
    sections = [
        "# Reference\n\nWritten by `make docs` from the code; a test fails when it is out of date.",
        "## The routing table\n\nAn example with comments is `routing.yaml`; `trunkline schema` prints the same as "
        "JSON Schema. Durations are written `250ms`, `2s`, `5m`; sizes `512KiB`, `20MiB`; counts `600`, `200k`.\n\n"
        + "\n\n".join(map(_part, parts())),
        "## Settings\n\nEnvironment variables; the options of `trunkline serve` go first.\n\n"
        + _table(("variable", "default", "meaning"), _settings()),
        "## Command line\n\n" + "\n\n".join(_commands(cli, "trunkline")),
        "## Metrics\n\nOn `/metrics`. Label values come from the routing table and from closed vocabularies; what a "
        'client typed is never one of them (`route="other"` for an unknown model).\n\n'
        + _table(("metric", "type", "labels", "meaning"), _metrics()),
        "## Log\n\nThe gateway's own messages go to standard error, from `TRUNKLINE_LOG_LEVEL` up, each with the name "
        "of its logger, which is that of a package of the gateway.\n\n"
        + _table(("logger", "what it is about"), _loggers()),
        '## Errors\n\nEvery error has OpenAI\'s envelope, `{"error": {"message", "type", "param", "code"}}`, and an '
        "`x-request-id`. The first word of `error_type`, in metrics and logs, says who is to blame; `gateway_other` "
        "is a bug of ours. After the first byte of a stream an error is its last event, and no `[DONE]` follows.\n\n"
        + _table(("status", "type", "code", "error_type", "meaning"), _errors()),
    ]
    return "\n\n".join(sections) + "\n"


def _table(head: tuple[str, ...], rows: Iterator[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _part(kind: type[msgspec.Struct]) -> str:
    texts = field_texts(kind)

    def rows() -> Iterator[tuple[Any, ...]]:
        for field in msgspec.structs.fields(kind):
            unit = unit_of(field.type)
            default = "required" if field.required else _default(field, unit)
            yield f"`{field.encode_name}`", _type(field.type), default, texts.get(field.name, "")

    return f"### {kind.__name__}\n\n{(kind.__doc__ or '').strip()}\n\n" + _table(
        ("key", "value", "default", "meaning"), rows()
    )


def _default(field: Any, unit: Any) -> str:
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if isinstance(value, msgspec.Struct):
        return "its own defaults"
    if unit is not None and value is not None:
        value = unit.shown(value)
    return "none" if value in (None, (), {}) else f"`{value}`"


def _type(kind: Any) -> str:
    if is_secret(kind) or any(map(is_secret, get_args(kind))):
        return "a reference such as `${NAME}`"
    units = [unit for part in (kind, *get_args(kind)) if (unit := unit_of(part)) is not None]
    if units:
        return units[0].what
    named = [part for part in (kind, *get_args(kind)) if isinstance(part, type) and issubclass(part, msgspec.Struct)]
    if named:
        shape = getattr(kind, "__origin__", None)
        prefix = {tuple: "list of ", dict: "mapping to "}.get(shape, "")
        return f"{prefix}[{named[0].__name__}](#{named[0].__name__.lower()})"
    plain = [part for part in get_args(kind) if part is not type(None)] if type(None) in get_args(kind) else [kind]
    if get_origin(plain[0]) is tuple and get_origin(get_args(plain[0])[0]) is Literal:
        return "list of " + ", ".join(f"`{each}`" for each in get_args(get_args(plain[0])[0]))
    shown = {
        tuple[str, ...]: "list of texts",
        dict[str, str]: "mapping of texts",
        dict[str, Any]: "mapping of any values",
    }
    return shown.get(plain[0], expected(plain[0]))


def _settings() -> Iterator[tuple[Any, ...]]:
    texts = field_texts(Settings)
    for field in msgspec.structs.fields(Settings):
        default = "none" if field.default in (None, "") else f"`{field.default}`"
        yield f"`TRUNKLINE_{field.name.upper()}`", default, texts[field.name]


def _commands(command: click.Command, name: str) -> Iterator[str]:
    if isinstance(command, click.Group):
        for child in command.list_commands(click.Context(command)):
            found = command.get_command(click.Context(command), child)
            assert found is not None
            yield from _commands(found, f"{name} {child}")
        return
    rows = []
    arguments = ""
    for param in command.params:
        if isinstance(param, click.Argument):
            shown = (param.name or "").upper()
            arguments += f" {shown}" if param.required else f" [{shown}]"
        elif isinstance(param, click.Option):
            default = f" Default: `{param.default}`." if param.show_default and param.default is not None else ""
            rows.append((f"`{', '.join(param.opts)}`", f"{param.help or ''}{default}"))
    text = " ".join((command.help or "").split())
    table = "\n\n" + _table(("option", "meaning"), iter(rows)) if rows else ""
    yield f"### `{name}{arguments}`\n\n{text}{table}"


def _metrics() -> Iterator[tuple[Any, ...]]:
    metrics = Metrics(CollectorRegistry())
    for collector in vars(metrics).values():
        for metric in collector.describe() if hasattr(collector, "describe") else ():
            name = metric.name + ("_total" if metric.type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in collector._labelnames) or "none"
            yield f"`{name}`", metric.type, labels, metric.documentation


def _loggers() -> Iterator[tuple[Any, ...]]:
    root = Path(gateway.__file__).parent
    for package in sorted(each for each in root.iterdir() if (each / "__init__.py").exists()):
        if any("logging.getLogger(" in file.read_text() for file in package.rglob("*.py")):
            about = import_module(f"gateway.{package.name}").__doc__ or ""
            yield f"`trunkline.{package.name}`", " ".join(about.partition("\n\n")[0].split())


def error_classes() -> list[type[errors.GatewayError]]:
    """Every error that a call can end in."""
    found: list[type[errors.GatewayError]] = []

    def walk(kind: type[errors.GatewayError]) -> None:
        for child in kind.__subclasses__():
            found.append(child)
            walk(child)

    walk(errors.GatewayError)
    bases = {errors.Refused, errors.Unavailable, errors.UpstreamError}
    return sorted((kind for kind in found if kind not in bases), key=lambda kind: (kind.status, kind.__name__))


def _errors() -> Iterator[tuple[Any, ...]]:
    tree = {}
    for line in (errors.__doc__ or "").splitlines():
        name, _, text = line.strip().partition(" ")
        tree[name] = text.strip().lstrip("0123456789").strip()
    for kind in error_classes():
        status = "its own" if kind is errors.Rejected else kind.status
        code = f"`{kind.code}`" if kind.code else "none"
        yield status, f"`{kind.type}`", code, f"`{kind.error_type}`", tree.get(kind.__name__, "") or kind.__doc__ or ""


def main() -> int:
    """Write the page, or say that it is out of date."""
    text = page()
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text() != text:
            sys.stderr.write("docs/reference.md is out of date; run: make docs\n")
            return 1
        return 0
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
