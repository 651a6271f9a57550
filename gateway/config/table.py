"""The routing table: its shape, its defaults, and the checks that no type can express."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from backends import registry
from gateway.config import units
from gateway.config.located import Document, Mistake, Mistakes
from gateway.config.names import NameIndex, overlap, specificity
from gateway.config.units import Count, Seconds, SecretRef, Size

__all__ = ["Mistake", "Mistakes", "Table", "load_table", "parse_table", "table_schema"]

Policy = Literal["least-tokens", "round-robin"]
Path_ = tuple[str | int, ...]


class _Strict(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all parts of the table."""


class Launch(_Strict, frozen=True, kw_only=True):
    """A child process that `trunkline serve` starts, waits for, restarts with back-off and stops."""

    model: str | None = None
    """A model the backend can serve by itself; llamacpp: `embedded`."""
    argv: tuple[str, ...] | None = None
    """Any command, without a shell; `{port}` becomes a free loopback port."""
    environment: dict[str, str] = {}
    """Added to the command's environment."""


class TargetSpec(_Strict, frozen=True, kw_only=True):
    """One server that serves the route's model: either at `url`, or launched."""

    name: str
    """Unique in the whole table; labels metrics and logs."""
    backend: str
    """The kind of server; `trunkline check` lists the installed ones."""
    url: str | None = None
    """The server's base, without `/v1`."""
    launch: Launch | None = None
    """Start the server as a child process instead."""
    model: str | None = None
    """The model's name at the server; default: the name the client asked for."""
    api_key: SecretRef | None = None
    """The credential sent to the server."""
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    """Its share of the load, relative to the route's other targets."""


class Timeouts(_Strict, frozen=True, kw_only=True):
    """How long a target may take; a stream has no total."""

    connect: Seconds = 2.0
    """Until the connection stands."""
    first_byte: Seconds = 60.0
    """From the request until the first data of the answer."""
    idle: Seconds = 30.0
    """Between two pieces of an answer."""


class Retry(_Strict, frozen=True, kw_only=True):
    """Tries on other targets, before the first byte has reached the client."""

    attempts: Annotated[int, Meta(ge=1, le=3)] = 2
    """Targets tried for one call, the first included."""


class RouteSpec(_Strict, frozen=True, kw_only=True):
    """A public model name and where it is served."""

    targets: tuple[TargetSpec, ...]
    """Share the load."""
    aliases: tuple[str, ...] = ()
    """Other names clients may use; `*` stands for any text, the most specific wins."""
    fallback: tuple[TargetSpec, ...] = ()
    """Used while none of `targets` can be."""
    policy: Policy = "least-tokens"
    """How a target is picked."""
    timeouts: Timeouts = Timeouts()
    """How long its targets may take."""
    retry: Retry = Retry()
    """When to try another target."""


class LimitSpec(_Strict, frozen=True, kw_only=True):
    """What a key may use unless the key says otherwise; absent is unlimited."""

    rpm: Count | None = None
    """Requests a minute."""
    concurrency: Count | None = None
    """Calls in flight at once."""


class Limits(_Strict, frozen=True, kw_only=True):
    """Limits by whom they hold for."""

    default: LimitSpec = LimitSpec()
    """Every key."""


class Bodies(_Strict, frozen=True, kw_only=True):
    """How much the gateway takes into memory."""

    request: Size = 20 * 1024**2
    """The largest request body; more is answered with 413."""
    answer: Size = 64 * 1024**2
    """The largest answer that is not a stream."""
    timeout: Seconds = 60.0
    """How long a client may take to send its body."""


class Ask(_Strict, frozen=True, kw_only=True):
    """A call that a test imagines."""

    model: str
    """The model's name, as a client would send it."""


class Expect(_Strict, frozen=True, kw_only=True):
    """What should come of it."""

    route: str | None = None
    """The route that serves it; leave out to expect that none does."""


class TableTest(_Strict, frozen=True, kw_only=True):
    """A promise of the table, checked by `trunkline check` and before the table is used."""

    ask: Ask
    """The call."""
    expect: Expect
    """Its outcome."""


class Table(_Strict, frozen=True, kw_only=True):
    """The whole routing table."""

    routes: dict[str, RouteSpec]
    """By public model name."""
    limits: Limits = Limits()
    """What callers may use."""
    bodies: Bodies = Bodies()
    """How large requests and answers may be."""
    tests: tuple[TableTest, ...] = ()
    """Promises of the table, checked before it is used."""

    def targets(self) -> Iterator[tuple[Path_, RouteSpec, TargetSpec]]:
        """Every target with its route and where it stands."""
        for name, route in self.routes.items():
            for tier in ("targets", "fallback"):
                for index, target in enumerate(getattr(route, tier)):
                    yield ("routes", name, tier, index), route, target

    def names(self) -> NameIndex:
        """The index of route names and aliases."""
        return NameIndex(_pairs(self))


def load_table(path: Path, environment: Mapping[str, str] | None = None) -> tuple[Table, list[Mistake]]:
    """Read and check a table; returns it with its warnings. Raises `Mistakes` with every error there is."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Mistakes([Mistake(str(path), 1, 1, f"cannot be read: {error}")]) from None
    return parse_table(text, str(path), environment)


def parse_table(
    text: str, file: str = "routing.yaml", environment: Mapping[str, str] | None = None
) -> tuple[Table, list[Mistake]]:
    """As `load_table`, for a table in memory."""
    document = Document(text, file, environment)
    table = document.decode(Table)
    if isinstance(table, Table):
        _check_targets(document, table)
        _check_names(document, table)
        if not any(not mistake.warning for mistake in document.mistakes):
            _run_tests(document, table)
    document.raise_mistakes()
    return table, document.mistakes


def table_schema() -> dict[str, Any]:
    """The table's JSON Schema, with every field's description and default."""

    schema = msgspec.json.schema(Table)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "trunkline routing table"
    for part in parts():
        texts = field_texts(part)
        for field in msgspec.structs.fields(part):
            shown = schema["$defs"][part.__name__]["properties"][field.encode_name]
            shown["description"] = texts.get(field.name, "")
            if isinstance(shown.get("default"), dict):
                shown["default"] = {}  # its own fields state theirs
            if (unit := units.unit_of(field.type)) is not None:
                shown["pattern"] = unit.pattern
                shown["type"] = ["integer", "string"] if unit.bare else "string"
                if "default" in shown and shown["default"] is not None:
                    shown["default"] = unit.shown(shown["default"])
    schema["$defs"]["TargetSpec"]["properties"]["backend"]["examples"] = list(registry.installed())
    return schema


def field_texts(kind: type[Struct]) -> dict[str, str]:
    """The strings that document a class's fields, each written below its field."""
    import ast
    import inspect
    import textwrap

    (node,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(node, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, after in zip(node.body, node.body[1:], strict=False):
        match field, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts


def parts() -> list[type[Struct]]:
    """The classes that make up a table, from the whole down."""
    return [Table, RouteSpec, TargetSpec, Launch, Timeouts, Retry, Limits, LimitSpec, Bodies, TableTest, Ask, Expect]


def _pairs(table: Table) -> Iterator[tuple[str, str]]:
    for name, route in table.routes.items():
        yield name, name
        for alias in route.aliases:
            yield alias, name


def _check_targets(document: Document, table: Table) -> None:
    backends = registry.installed()
    names: dict[str, Path_] = {}
    places: dict[tuple[str, str | None, str | None], str] = {}
    for name, route in table.routes.items():
        if not route.targets:
            document.report(("routes", name, "targets"), f"route {name!r} has no targets")
    for path, _, target in table.targets():
        if target.backend not in backends:
            known = ", ".join(backends)
            document.report((*path, "backend"), f"unknown backend {target.backend!r}; known backends: {known}")
        if target.name in names:
            document.report((*path, "name"), f"target name {target.name!r} is used twice")
        names.setdefault(target.name, path)
        _check_place(document, path, target)
        if target.url is not None:
            place = (str(path[1]), target.url.rstrip("/"), target.model)
            if place in places:
                document.report(
                    (*path, "url"),
                    f"no call can reach target {target.name!r}: it is the same server and model as {places[place]!r}",
                )
            places.setdefault(place, target.name)


def _check_place(document: Document, path: Path_, target: TargetSpec) -> None:
    if (target.url is None) == (target.launch is None):
        document.report(path, f"target {target.name!r} needs either 'url' or 'launch'")
    if target.url is not None and "${" in target.url:
        pass  # a variable that is not set here, which has been told
    elif target.url is not None and not _is_base_url(target.url):
        document.report((*path, "url"), f"{target.url!r} is not a base URL such as 'http://vllm-a:8000'")
    elif target.url is not None and target.url.rstrip("/").endswith("/v1"):
        document.report((*path, "url"), f"{target.url!r}: leave out '/v1', the gateway adds it")
    if target.launch is not None:
        _check_launch(document, path, target, target.launch)


def _is_base_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        plain = not (parts.query or parts.fragment or parts.username) and all(" " < char < "\x7f" for char in url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and plain
    except ValueError:
        return False


def _check_launch(document: Document, path: Path_, target: TargetSpec, launch: Launch) -> None:
    if (launch.model is None) == (launch.argv is None):
        document.report((*path, "launch"), "'launch' needs either 'model' or 'argv'")
    if launch.argv is not None and not any("{port}" in word for word in launch.argv):
        document.report((*path, "launch", "argv"), "'argv' must hold '{port}': the gateway chooses the port")
    if launch.model is not None and target.backend in registry.installed():
        known = getattr(registry.load(target.backend), "launch_models", ())
        if launch.model not in known:
            what = f"known models: {', '.join(known)}" if known else f"backend {target.backend!r} has none; use 'argv'"
            document.report((*path, "launch", "model"), f"cannot launch model {launch.model!r}; {what}")


def _check_names(document: Document, table: Table) -> None:
    seen: dict[str, str] = {name: name for name in table.routes}
    globs: list[tuple[str, str]] = []
    for name, route in table.routes.items():
        if not name or "*" in name:
            document.report(("routes", name), f"route name {name!r} must not be empty or hold '*'; use an alias")
        for index, alias in enumerate(route.aliases):
            path = ("routes", name, "aliases", index)
            if not alias:
                document.report(path, "an alias must not be empty")
            elif alias in seen:
                document.report(path, f"alias {alias!r} already means route {seen[alias]!r}")
            seen.setdefault(alias, name)
            for other, owner in globs if "*" in alias else ():
                if owner != name and specificity(other) == specificity(alias) and overlap(other, alias):
                    document.report(path, f"aliases {alias!r} and {other!r} (route {owner!r}) match the same names")
            if "*" in alias:
                globs.append((alias, name))


def _run_tests(document: Document, table: Table) -> None:
    index = table.names()
    for position, test in enumerate(table.tests):
        if test.expect.route is not None and test.expect.route not in table.routes:
            known = ", ".join(table.routes)
            document.report(("tests", position, "expect", "route"), f"no route {test.expect.route!r}; routes: {known}")
        elif (found := index.find(test.ask.model)) != test.expect.route:
            expected, got = (f"route {name!r}" if name else "no route" for name in (test.expect.route, found))
            document.report(("tests", position), f"test failed: model {test.ask.model!r} meets {got}, not {expected}")
