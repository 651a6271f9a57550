"""The backend protocol: the values an adapter sees, the three methods it must have, and the powers it may have."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, runtime_checkable

import msgspec
from msgspec import Struct

from backends import asked
from backends.asked import Asked, Conversation
from backends.body import Body
from backends.endpoints import Endpoint as Endpoint

DONE: Final = b"data: [DONE]\n\n"
UNREAD: Final = Asked()
"""Stands for what a call asks for until its body was looked at."""


class Call(Struct, frozen=True):
    """One client request, decoded only as far as routing and metering need."""

    id: str
    endpoint: Endpoint
    model: str
    """The name the client asked for: a route's name or one of its aliases."""
    body: Body
    content_type: str = "application/json"
    stream: bool = False
    include_usage: bool = False
    """The client asked for the usage event at the end of its stream."""

    asked: Asked = UNREAD
    """What its body asks for; read from it, where it is not given."""
    path: str = ""
    """Of the endpoint `passed`: the path that is asked for."""
    method: str = "POST"
    item: str = ""
    """Of the endpoint `responses/stored`: what follows `/v1/responses/`, the response's id first."""

    def __post_init__(self) -> None:
        if self.asked is UNREAD:
            msgspec.structs.force_setattr(
                self, "asked", asked.read(self.endpoint, len(self.body.raw), self.body.fields)
            )

    @property
    def conversation(self) -> Conversation:
        """What tells it from other calls, and what it shares with them; read each time."""
        known = self.asked.conversation
        return asked.conversation(self.endpoint, self.body.fields) if known is None else known

    @property
    def choices(self) -> int:
        """How many answers the client gets, each of which tells why it ended."""
        return self.asked.prompts * self.asked.choices


class Target(Struct, frozen=True):
    """One base URL that serves a model: what a route lists, as far as an adapter needs to know it."""

    name: str
    url: str
    model: str | None = None
    """The model's name at the target; None sends the client's name on."""
    api_key: str | None = None
    usage_event: bool = True
    """Its streams are asked to tell their usage; some servers refuse the wish."""
    lenient: bool = False
    """Its streams may end without telling why."""
    continuous_usage: bool = False
    """Its streams are asked to tell in every event what they have taken so far; its adapter is `ContinuousUsage`."""


class UpstreamRequest(Struct, frozen=True):
    """What goes to the target: a path below its URL, headers with lower-case names, and the body."""

    path: str
    headers: dict[str, str]
    body: bytes
    method: str = "POST"


class Usage(Struct, frozen=True):
    """Token counts as the upstream reported them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int | None = None


class Reply(Struct, frozen=True):
    """A whole answer, in the words the client expects."""

    body: bytes
    usage: Usage | None = None


class Chunk(Struct, frozen=True):
    """What one upstream event becomes: bytes for the client (none: swallowed) and what the gateway learns from it."""

    data: bytes
    tokens: int = 0
    """An estimate: 1 for an event that carries output, as most servers send one token an event."""
    usage: Usage | None = None
    finished: int = 0
    """Choices that told why they ended."""
    choice: int = 0
    """The highest index of the choices that it tells of."""
    done: bool = False
    """The stream's own terminator: nothing follows."""
    comment: bool = False
    """Only keeps the connection alive; before the first event it promises nothing and is held back."""
    opening: bool = False
    """Only names the role that will speak; before the first output it promises nothing and is held back."""
    text: int = 0
    """Bytes of the output's text, as JSON writes it; 0 where the adapter does not tell."""


class RequestRefused(Exception):
    """The target cannot do what the call asks; `param` names the field. The caller's to change, so never retried."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.param = message, param


class UpstreamFault(Exception):
    """The upstream said, in an answer or in an event of a 200 stream, that it failed.

    `status` is the HTTP status the fault deserves: below 500 it is the caller's fault and `message` may be shown to it.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param = status, message, param


class Adapter(Protocol):
    """The wire language of one kind of server. Stateless, shared by all calls: no sockets, no time, no retries."""

    def request(self, call: Call, target: Target) -> UpstreamRequest:
        """Say `call` in the target's words; raises `RequestRefused` for what the target cannot do."""

    def reply(self, call: Call, body: bytes) -> Reply:
        """Read a whole 200 answer; raises `UpstreamFault` when it is none, `ValueError` when it is not understood."""

    def chunk(self, call: Call, event: bytes) -> Iterable[Chunk]:
        """Read one event of a stream, blank line included; raises as `reply` does."""


@runtime_checkable
class Stateful(Protocol):
    """For languages whose events only make sense together: `open` gives what reads the events of one stream."""

    def open(self, call: Call) -> StreamReader:
        """A reader for one stream."""


class StreamReader(Protocol):
    """The `chunk` half of an adapter, remembering what went before in its stream.

    One that holds events back also has `close() -> Iterable[Chunk]`: what it holds when the stream has ended. One of
    another language than OpenAI's has `terminator() -> Chunk`: what the client gets at the end of a whole answer whose
    server closed the stream without a terminator.
    """

    def chunk(self, call: Call, event: bytes) -> Iterable[Chunk]:
        """Read one event, as `Adapter.chunk`."""


@runtime_checkable
class Speaks(Protocol):
    """For servers that have other endpoints than chats, completions and embeddings, or not all of these."""

    endpoints: Mapping[Endpoint, Adapter]
    """The endpoints that the server itself has, and who speaks for each: this adapter, or another."""


@runtime_checkable
class ContinuousUsage(Protocol):
    """For servers that tell in every event of a stream what it has taken so far, if they are asked to."""

    def open_continuous(self, call: Call) -> StreamReader:
        """A reader for a stream whose `request` was made for a target with `continuous_usage`.

        A client that has not asked for these numbers itself does not get them.
        """


@runtime_checkable
class Resumable(Protocol):
    """For servers that can go on with an answer that another replica of theirs has begun."""

    def resume(self, call: Call, said: str) -> Call:
        """The call whose answer begins where `said` ends, which has no blanks at its end.

        Asked only for a chat or a completion of one choice, whose last message is not the assistant's.
        """


@runtime_checkable
class ParsesTools(Protocol):
    """For servers that find tool calls in what a model writes, and refuse to show it tools where they do not."""

    unparsed: bytes
    """What `tool_choice` must be, as JSON, for tools to be shown and the model's text to stay as it is."""


@runtime_checkable
class CountsChats(Protocol):
    """For servers that can be asked how many tokens the prompt of a chat has, its template applied."""

    chat_tokens_path: str
    """Takes the body of a chat by POST."""

    def chat_tokens(self, body: bytes) -> int:
        """The number in such an answer; raises `ValueError` when it is not understood."""


@runtime_checkable
class RefusesInItsOwnWords(Protocol):
    """For servers whose 4xx bodies are already fit for the client, or can be made so."""

    def refusal(self, call: Call, status: int, body: bytes) -> tuple[int, bytes] | None:
        """The status and JSON body to pass on for a caller's fault; None: the gateway words it.

        Raises `UpstreamFault` for a 4xx that is the server's own fault.
        """


@runtime_checkable
class AnswersMistakesWith500(Protocol):
    """For servers that answer some mistakes of their callers with status 500."""

    def mistake(self, call: Call, body: bytes) -> str | None:
        """What such an answer says of the call, in words for the caller; None: the server itself has failed."""


@runtime_checkable
class Probed(Protocol):
    """For servers with a health route."""

    probe_path: str
    """Answers 200 to GET when the server can serve."""


@runtime_checkable
class Guarded(Protocol):
    """For servers whose health route takes anybody's word: whether our credential is good must be asked elsewhere."""

    credential_path: str
    """Answers 401 or 403 to GET when the credential is refused; any other status says that it is not."""


@runtime_checkable
class Exposed(Protocol):
    """For servers that may answer anybody at some of their routes, though they were given a credential."""

    inference_paths: Sequence[str]
    """Take POST and have the model work; to each an empty JSON object is a mistake, told before any work."""


class Gauges(Struct, frozen=True):
    """A server's load at one moment, summed over its engines. None: the server does not tell."""

    running: int | None = None
    """Calls being worked on."""
    waiting: int | None = None
    """Calls in the server's own queue."""
    kv_usage: float | None = None
    """The part of its KV cache that is in use, from 0 to 1; the mean of its engines."""
    kv_tokens: int | None = None
    """Tokens that its KV cache holds."""
    prefix_queries: int | None = None
    """Prompt tokens looked for in the prefix cache since the server started."""
    prefix_hits: int | None = None
    """Prompt tokens found there."""
    loras: tuple[str, ...] | None = None
    """LoRA adapters that have calls now."""
    asleep: bool = False
    """The server is well but has put its model away, and answers no call until it is woken."""
    steps: int | None = None
    """Steps that its engines have made since they started, or what only such steps make grow."""
    started: float | None = None
    """When its process started, in seconds of Unix time."""


@runtime_checkable
class Gauged(Protocol):
    """For servers that tell their load."""

    gauges_path: str
    """Answers to GET with the gauges, as text."""

    def gauges(self, text: str) -> Gauges | None:
        """The load at this moment; None when the text tells nothing of it."""


class Facts(Struct, frozen=True):
    """What a server is, which changes only when it is started anew. None: the server does not tell."""

    context: int | None = None
    """Tokens of prompt and answer together that one call may have."""
    prompt: int | None = None
    """Tokens of the prompt alone, where the server bounds them apart."""
    models: tuple[str, ...] | None = None
    """Names that it answers to, without those of LoRA adapters, in order."""
    version: str | None = None
    loras: tuple[str, ...] | None = None
    """LoRA adapters that it has loaded, in order."""
    kv_tokens: int | None = None
    """Tokens that its KV cache holds, for servers that do not tell it among their gauges."""


@runtime_checkable
class Described(Protocol):
    """For servers that can be asked what they are."""

    fact_paths: Sequence[str]
    """Each answers to GET with JSON, or is not there."""

    def facts(self, answers: Mapping[str, bytes], model: str | None) -> Facts:
        """What the answers of these paths say; those not there are missing, and what is not understood is not told.

        `model` is the name by which the target is asked; None: it is not fixed.
        """


@runtime_checkable
class Counted(Protocol):
    """For servers that count the tokens they serve, so that the gateway's own sums can be compared with theirs."""

    counters_path: str
    """Answers to GET with the counters, as text."""

    def counters(self, text: str) -> tuple[int, int] | None:
        """Prompt and completion tokens served since the server started; None when the text does not tell.

        Prompt tokens count whether they came from a cache or not, as in `Usage`.
        """


@runtime_checkable
class Launchable(Protocol):
    """For servers the gateway can start from `launch: {model: ...}`."""

    launch_models: Sequence[str]
    """The values of `model` that it understands."""

    def launch(self, model: str, served_name: str, port: int) -> tuple[list[str], Mapping[str, str]]:
        """The argv and extra environment of a child process that serves `model` on this loopback port."""


@runtime_checkable
class Wakeable(Protocol):
    """For servers that can put their model away, and fetch it again when they are told to."""

    wake_path: str
    """Answers 200 to POST when the model is back; of one that was never away, too."""


def __getattr__(name: str) -> Any:
    if name == "AnyAdapter":
        warnings.warn("backends.api.AnyAdapter is Adapter now", DeprecationWarning, stacklevel=2)
        return Adapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
