"""The routing table: its shape, its defaults, and the checks that no type can express."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from backends import registry
from backends.endpoints import Endpoint
from gateway.config import checks, units
from gateway.config.addresses import check_addresses
from gateway.config.caching import ResponseCacheSpec
from gateway.config.connections import TLSSpec
from gateway.config.discovery import DiscoverSpec
from gateway.config.limits import AllowanceSpec, BudgetSpec, Limits, LimitSpec, OutageSpec, Part, Price, StorageSpec
from gateway.config.located import Document, Mistake, Mistakes, unread
from gateway.config.names import NameIndex
from gateway.config.units import Count, Seconds, SecretRef, Size, Text
from gateway.core.body_rules import BodyRules

__all__ = ["Mistake", "Mistakes", "Table", "load_table", "parse_table", "table_schema"]

Place = tuple[str | int, ...]
MOST_WAIT = 10.0
"""Seconds in a queue, where the table says nothing."""

BODIES_AT_ONCE = 16
"""Request bodies of the largest size that a worker may read at once, where the table says nothing."""
LARGEST_AT_ONCE = 8
"""Answers of the largest size that a worker may collect, where the table says nothing."""


class Launch(Part, frozen=True, kw_only=True):
    """A child process that `trunkline serve` starts, waits for, restarts with back-off and stops."""

    model: Text | None = None
    """A model the backend can serve by itself; llamacpp: `embedded`."""
    argv: tuple[str, ...] | None = None
    """Any command, without a shell; `{port}` becomes a free loopback port."""
    environment: dict[str, str] = {}
    """Added to the command's environment."""


class TargetSpec(Part, frozen=True, kw_only=True):
    """One server that serves the route's model: at `url`, or launched; or those that `discover` finds."""

    name: str
    """Unique in the whole table; labels metrics and logs."""
    backend: str
    """The kind of server; `trunkline check` lists the installed ones."""
    url: str | None = None
    """The server's base, without `/v1`: `http://`, `https://` or `unix:///path/of/socket`."""
    launch: Launch | None = None
    """Start the server as a child process instead."""
    discover: DiscoverSpec | None = None
    """Look servers up by a name instead: each of its addresses is a target with all that is said here."""
    model: Text | None = None
    """The model's name at the server; default: the name the client asked for."""
    api_key: SecretRef | None = None
    """The credential sent to the server."""
    tls: TLSSpec | None = None
    """TLS for an `https://` URL; default: the system's certificates are trusted."""
    proxy: str | None = None
    """An HTTP proxy such as `http://proxy:3128`, or `env` for what HTTPS_PROXY, HTTP_PROXY and NO_PROXY say; default:
    the route's."""
    headers: dict[str, str] = {}
    """Sent with every request to the server; values may be `${NAME}`."""
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    """Its share of the load, relative to the route's other targets."""
    canary: Annotated[float, Meta(gt=0, le=0.5)] | None = None
    """A part of the conversations, such as `0.05`, that is sent here, and no others."""
    max_inflight: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    """Calls at once, of all gateways together; more wait in the route's queue."""
    context: Count | None = None
    """Tokens of prompt and answer together that the server can take; default: what it tells itself."""
    kv_tokens: Count | None = None
    """Tokens that its prefix cache holds; default: what it tells itself, else a million."""
    finish: Literal["strict", "lenient"] = "strict"
    """`lenient`: its streams may end in `[DONE]` without telling why (`finish_reason`), else that is no end."""
    endpoints: tuple[Endpoint, ...] | None = None
    """What its server answers, such as `[embeddings, rerank]`; default: what servers of its kind do."""
    tool_parser: Literal["hermes", "llama", "mistral"] | None = None
    """How its model writes tool calls, for a server that leaves them in the text: they are found there."""
    usage_event: bool = True
    """Ask for the usage at the end of streams; `false` for a server that refuses `stream_options`: its tokens are
    counted."""
    continuous_usage: bool = False
    """Ask for the usage in every event of streams (vLLM, SGLang), and hide it from clients that did not: a stream that
    is left early is charged exactly, and every event costs more."""


class Timeouts(Part, frozen=True, kw_only=True):
    """How long a target may take; a stream has no total."""

    former: ClassVar = {"first_byte": "first_output"}

    connect: Seconds = 2.0
    """Until the connection stands."""
    first_output: Seconds = 300.0
    """Of a stream, from the request until its first output, however many comments come before."""
    idle: Seconds = 120.0
    """Between two pieces of an answer; comments and roles are none."""
    whole: Seconds = 600.0
    """Of an answer that is no stream, from the request until its end; another target is not asked for it then."""


class Retry(Part, frozen=True, kw_only=True):
    """Tries on other targets, before the first byte has reached the client."""

    attempts: Annotated[int, Meta(ge=1, le=3)] = 2
    """Targets of a tier that are asked for one call, the first included; of all tiers together six at most."""


class FallbackSpec(TargetSpec, frozen=True, kw_only=True):
    """A target that is used while none of a better tier can be."""

    tier: Annotated[int, Meta(ge=1, le=8)] = 1
    """Lower tiers are asked first."""


class QueueSpec(Part, frozen=True, kw_only=True):
    """Where calls wait while every target is full: by priority, and fairly among tenants."""

    calls: Annotated[int, Meta(ge=0, le=100_000)] = 256
    """Calls that may wait, in each gateway worker; 0: none waits."""
    size: Size = 64 * 1024**2
    """Bytes of waiting calls' bodies, in each gateway worker."""
    wait: Seconds | None = None
    """How long a call may wait before it is refused with 429, less than `timeouts.first_output`; default: half of
    that, at most 10s."""


class ShadowSpec(Part, frozen=True, kw_only=True):
    """Copies of some calls go to another server after they were answered, and only what it does is measured."""

    target: TargetSpec
    """The server."""
    share: Annotated[float, Meta(gt=0, le=1)]
    """The part of the route's calls that is copied."""
    concurrency: Annotated[int, Meta(ge=1, le=1000)] = 4
    """Copies at once, in each gateway worker; what comes while all are busy is not copied."""


class BodySpec(Part, frozen=True, kw_only=True):
    """What of callers' bodies is the gateway's to decide; keys have such rules, too (`trunkline keys create`)."""

    deny: tuple[str, ...] = ("priority", "kv_transfer_params", "bootstrap_host", "bootstrap_port", "bootstrap_room")
    """Fields at the top of a body that callers may not send; a body that has one is answered with 400. Those that are
    denied where the table says nothing act on other callers' calls."""
    set: dict[str, Any] = {}
    """Values of fields, whatever callers send, such as `{max_tokens: 500}`; `null` takes a field out. They go before
    those of a key."""
    default: dict[str, Any] = {}
    """Values of fields that are missing, or null; those of a key go before them."""

    @property
    def rules(self) -> BodyRules:
        """As all who apply them know them."""
        return BodyRules(deny=self.deny, set=self.set, default=self.default)


class RouteSpec(Part, frozen=True, kw_only=True):
    """A public model name and where it is served."""

    targets: tuple[TargetSpec, ...]
    """Share the load."""
    aliases: tuple[str, ...] = ()
    """Other names clients may use; `*` stands for any text, the most specific wins."""
    fallback: tuple[FallbackSpec, ...] = ()
    """Used while none of `targets` can be."""
    fallback_route: str | None = None
    """The route that is used while neither `targets` nor `fallback` can be; the call keeps its own limits and price."""
    policy: str = "home-cost"
    """How a target is picked: `home-cost`, `least-tokens`, `round-robin`, `session`, or another installed policy."""
    queue: QueueSpec = QueueSpec()
    """Where calls wait while all targets are full."""
    shadow: ShadowSpec | None = None
    """A server that is tried out with copies of calls."""
    timeouts: Timeouts = Timeouts()
    """How long its targets may take."""
    proxy: str | None = None
    """The proxy of its targets that name none; default: none is used, whatever the environment says."""
    loras: bool = False
    """LoRA adapters that its engines have loaded are models of their own, by their names there."""
    passes: tuple[str, ...] = ()
    """Paths of its servers that callers may ask for, by POST or GET, such as `/pooling`."""
    forward_headers: tuple[str, ...] = ()
    """Headers of calls that go on to the targets, such as `x-data-parallel-rank`."""
    session_headers: tuple[str, ...] = ()
    """More headers that name a conversation, such as `x-correlation-id`: read if no other does, and passed on."""
    trust_request_id: bool = False
    """Targets get the client's `x-request-id`, where it sends one, instead of the gateway's id of the call."""
    public_model: bool = False
    """The `model` of answers is the name that the client asked for; default: what the server says."""
    retry: Retry = Retry()
    """When to try another target."""
    repair: Literal["none", "retry"] = "none"
    """`retry`: a whole answer that is not the JSON that its call wants is asked for once more, of the same target; both
    are charged."""
    resume: Literal["text"] | None = None
    """`text`: a stream whose target dies goes on at another target of its tier, from the text that the client has."""
    keepalive: Seconds | None = None
    """How often a streamed call that waits for its first output is sent a sign of life, from which on its status is 200
    and a failure an event of the stream; default: never."""
    hold: Seconds | None = None
    """How long a call may wait for targets that are starting, restarting or asleep; default: it is not held."""
    system_prompt: str = ""
    """Goes before the system message of chats, `system` of messages and `instructions` of responses; keys have such
    prompts, too, which come behind it."""
    body: BodySpec = BodySpec()
    """What callers' bodies may hold."""
    limits: LimitSpec = LimitSpec()
    """Of the model as a whole: all callers together."""
    key_limits: LimitSpec = LimitSpec()
    """Of each key on this model."""
    price: Price | None = None
    """What its tokens cost; without it its calls are free of charge."""
    response_cache: ResponseCacheSpec | None = None
    """Answers are given again to calls that ask for exactly the same; default: none is."""

    @property
    def rules(self) -> BodyRules:
        """What is the gateway's to decide of bodies, as all who apply it know it."""
        return msgspec.structs.replace(self.body.rules, system_prompt=self.system_prompt)

    @property
    def queue_wait(self) -> float:
        """Seconds that a call may wait in the queue."""
        return min(MOST_WAIT, self.timeouts.first_output / 2) if self.queue.wait is None else self.queue.wait


class Bodies(Part, frozen=True, kw_only=True):
    """How much the gateway takes into memory."""

    request: Size = 20 * 1024**2
    """The largest request body; more is answered with 413."""
    in_flight: Size | None = None
    """All request bodies that are being read, in each gateway worker. A key may have a quarter of it, a tenant half;
    more is answered with 429, and beyond all of it with 503, before it is read. Default: sixteen of the largest."""
    elements: Count = 200_000
    """Objects, lists, keys and texts in lists of the largest request body, numbers aside; more is answered with 400."""
    prompts: Count = 2048
    """Prompts of a completion, or inputs of an embedding, in one request; more is answered with 400."""
    answer: Size = 64 * 1024**2
    """The largest answer that is not a stream."""
    event: Size = 64 * 1024**2
    """The largest event of a stream."""
    answers: Size | None = None
    """All answers and events of more than 64KiB that are being collected, in each gateway worker; more is answered with
    503. Default: eight of the largest."""
    timeout: Seconds = 60.0
    """How long a client may take to send its body."""
    reader: Seconds = 60.0
    """How long a client may leave unread what was sent to it before its call is ended."""

    @property
    def being_read(self) -> int:
        """Bytes of all request bodies that may be read at once."""
        return BODIES_AT_ONCE * self.request if self.in_flight is None else self.in_flight

    @property
    def together(self) -> int:
        """Bytes of all large answers and events that may be collected at once."""
        return LARGEST_AT_ONCE * max(self.answer, self.event) if self.answers is None else self.answers


class CorsSpec(Part, frozen=True, kw_only=True):
    """Pages in browsers that may call the gateway."""

    origins: tuple[str, ...]
    """Where they come from, such as `https://chat.example.com`; `*`: from anywhere."""


class Ask(Part, frozen=True, kw_only=True):
    """A call that a test imagines."""

    model: str
    """The model's name, as a client would send it."""


class Expect(Part, frozen=True, kw_only=True):
    """What should come of it."""

    route: str | None = None
    """The route that serves it; leave out to expect that none does."""
    targets: tuple[str, ...] | None = None
    """All targets that may serve it, the best tier first."""


class TableTest(Part, frozen=True, kw_only=True):
    """A promise of the table, checked by `trunkline check` and before the table is used."""

    ask: Ask
    """The call."""
    expect: Expect
    """Its outcome."""


class Table(Part, frozen=True, kw_only=True):
    """The whole routing table."""

    routes: dict[str, RouteSpec]
    """By public model name."""
    default_route: str | None = None
    """The route, or alias, that is asked for by calls that name no model; default: they are refused."""
    cors: CorsSpec | None = None
    """Pages in browsers that may call; default: none of another origin."""
    limits: Limits = Limits()
    """What callers may use."""
    bodies: Bodies = Bodies()
    """How large requests and answers may be."""
    tests: tuple[TableTest, ...] = ()
    """Promises of the table, checked before it is used."""

    def targets(self) -> Iterator[tuple[Place, RouteSpec, TargetSpec]]:
        """Every target with its route and where it stands."""
        for name, route in self.routes.items():
            for tier in ("targets", "fallback"):
                for index, target in enumerate(getattr(route, tier)):
                    yield ("routes", name, tier, index), route, target
            if route.shadow is not None:
                yield ("routes", name, "shadow", "target"), route, route.shadow.target

    def tiers(self, route: str) -> Iterator[tuple[str, int, list[str]]]:
        """The tiers that may serve a call for the route, in the order in which they are asked: of which route, its
        number, its targets' names."""
        following: str | None = route
        while following is not None:
            spec = self.routes[following]
            yield following, 0, [target.name for target in spec.targets]
            for tier in sorted({target.tier for target in spec.fallback}):
                yield following, tier, [target.name for target in spec.fallback if target.tier == tier]
            following = spec.fallback_route

    def order(self, route: str) -> list[str]:
        """The names of all targets that may serve a call for the route, in the order in which tiers are asked."""
        return [name for _, _, names in self.tiers(route) for name in names]

    def names(self) -> NameIndex:
        """The index of route names and aliases."""
        return NameIndex(_pairs(self))


def load_table(
    path: Path, environment: Mapping[str, str] | None = None, *, look_up: bool = False
) -> tuple[Table, list[Mistake]]:
    """Read and check a table; returns it with its warnings. Raises `Mistakes` with every error there is.

    `look_up`: ask DNS, for two seconds at most, which targets' names have several addresses.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Mistakes([Mistake(str(path), 1, 1, f"cannot be read: {unread(error)}")]) from None
    return parse_table(text, str(path), environment, look_up=look_up)


def parse_table(
    text: str, file: str = "routing.yaml", environment: Mapping[str, str] | None = None, *, look_up: bool = False
) -> tuple[Table, list[Mistake]]:
    """As `load_table`, for a table in memory."""
    document = Document(text, file, environment)
    table = document.decode(Table)
    if isinstance(table, Table):
        checks.check(document, table)
    document.raise_mistakes()
    if look_up:
        check_addresses(document, table.targets())
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
                value = shown["anyOf"][0] if "anyOf" in shown else shown  # or null
                value["pattern"] = unit.pattern
                value["type"] = list(unit.json_types) if unit.bare else "string"
                if shown.get("default") is not None:
                    shown["default"] = unit.shown(shown["default"])
    for name in ("TargetSpec", "FallbackSpec"):
        schema["$defs"][name]["properties"]["backend"]["examples"] = list(registry.installed())
    policies = sorted(point.name for point in entry_points(group=checks.POLICIES))
    schema["$defs"]["RouteSpec"]["properties"]["policy"]["examples"] = policies
    return schema


def field_texts(kind: type[Struct]) -> dict[str, str]:
    """The strings that document a class's fields, inherited ones included, each written below its field."""
    kinds = [each for each in reversed(kind.__mro__) if issubclass(each, Struct) and each is not Struct]
    return {name: text for each in kinds for name, text in _own_texts(each).items()}


def _own_texts(kind: type[Struct]) -> dict[str, str]:
    import ast
    import inspect
    import textwrap

    if kind.__name__.startswith("_"):  # made from a table, not written
        return {field.name: described(field.type) for field in msgspec.structs.fields(kind)}
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(node, ast.ClassDef)
    texts: dict[str, str] = {}
    for field, after in zip(node.body, node.body[1:], strict=False):
        match field, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts


def described(kind: Any) -> str:
    """The description that stands in a type, also one that may be None."""
    metas = (meta for each in (kind, *get_args(kind)) for meta in getattr(each, "__metadata__", ()))
    return next((meta.description for meta in metas if isinstance(meta, Meta) and meta.description), "")


def parts() -> list[type[Struct]]:
    """The classes that make up a table, from the whole down."""
    route: list[type[Struct]] = [
        RouteSpec,
        TargetSpec,
        FallbackSpec,
        TLSSpec,
        Launch,
        DiscoverSpec,
        Timeouts,
        Retry,
        QueueSpec,
        ShadowSpec,
        BodySpec,
        CorsSpec,
        Price,
        ResponseCacheSpec,
    ]
    limits: list[type[Struct]] = [Limits, LimitSpec, BudgetSpec, AllowanceSpec, OutageSpec, StorageSpec]
    return [Table, *route, *limits, Bodies, TableTest, Ask, Expect]


def _pairs(table: Table) -> Iterator[tuple[str, str]]:
    for name, route in table.routes.items():
        yield name, name
        for alias in route.aliases:
            yield alias, name
