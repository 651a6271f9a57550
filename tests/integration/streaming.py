"""A gateway in front of scripted targets of every dialect, and clients that listen to streams byte by byte."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from harness.dialects import DIALECTS, Event, StreamKind
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import Script, Step, Target, Upstream
from harness.verdicts import heard
from integration.client import Reply, Wire, ask, eventually, record, request

if TYPE_CHECKING:
    from harness.in_process import Client, InProcess

HASTY = {"connect": "20s", "first_output": "900ms", "whole": "900ms", "idle": "40s"}
"""For silence alone: a busy machine is slow to answer everything else."""
PAUSING = {"connect": "20s", "first_output": "40s", "whole": "40s", "idle": "1500ms"}
"""For targets that say something, and then nothing more."""
SECRET = "secret-of-upstream"
"""What a target says when it fails: no client ever sees it."""
LARGEST_EVENT = 1024 * 1024
CALM = {"connect": "20s", "first_output": "40s", "whole": "40s", "idle": "40s"}
ASKED: dict[str, Any] = {"stream_options": {"include_usage": True}}
WORDS = [["Once", " upon", " a", " tïme 🐎"], ["Or", " then", " only", " twice", " \n\ndata: [DONE]\n\n", " äh", "!"]]
"""What the choices say: the first ends while the second still has something to say."""


SOCKETS = ("openai-chat-1", "tgi-completions-2")
"""Kinds of streams whose tests run over real sockets, through a gateway of its own process; all others in this one."""


class Speaking:
    """One gateway. Each dialect has the routes NAME, hasty-NAME and pausing-NAME (which have little patience for the
    first word, and for pauses), and spares."""

    def __init__(self, gateway: GatewayProcess | InProcess, upstream: Upstream, spares: Sequence[str]) -> None:
        self.gateway, self.upstream = gateway, upstream
        self.key = gateway.issue().secret
        self._spares = list(spares)

    def target(self, name: str) -> Target:
        """The target of this dialect, as new."""
        return self._renewed(f"speaks-{name}")

    def spare(self, dialect: str) -> tuple[str, Target, Target]:
        """A route that nobody has used, its target and its fallback: a target that fails is left alone for a while."""
        name = next(spare for spare in self._spares if spare.endswith(f"-{dialect}"))
        self._spares.remove(name)
        return name, self._renewed(f"{name}-first"), self._renewed(f"{name}-other")

    def ask(self, kind: StreamKind, script: Script, *, patience: str = "", **fields: Any) -> Reply:
        """What a client gets of this script; `patience` may be "hasty-" or "pausing-"."""
        self.target(kind.dialect.name).script = script
        return self.call(kind, patience + kind.dialect.name, **fields)

    def call(self, kind: StreamKind, model: str, **fields: Any) -> Reply:
        return self.post(kind.endpoint, kind.call(model, **fields))

    def post(self, endpoint: str, body: dict[str, Any]) -> Reply:
        """What a client gets that sends this."""
        if not isinstance(self.gateway, GatewayProcess):
            with self.gateway.client(request(body, self.key, f"/v1/{endpoint}")) as client:
                return Reply(*client.answer())
        return ask(self.gateway, body, self.key, f"/v1/{endpoint}")

    def listen(self, kind: StreamKind, **fields: Any) -> Listener | Client:
        """A client who has sent its call."""
        call = request(kind.call(kind.dialect.name, **fields), self.key, f"/v1/{kind.endpoint}")
        if not isinstance(self.gateway, GatewayProcess):
            return self.gateway.client(call)
        return Listener(self.gateway.port, call)

    def _renewed(self, name: str) -> Target:
        target = self.upstream.target(name)
        target.restore()
        return target


class Listener:
    """Reads an answer as it comes."""

    def __init__(self, port: int, call: bytes) -> None:
        self._wire = Wire(port)
        self._wire.send(call)
        self._response: http.client.HTTPResponse | None = None
        self.body = b""

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._wire.leave()

    def until(self, mark: bytes) -> bytes:
        """All of the body so far, once `mark` has come; fails after ten seconds of silence."""
        while mark not in self.body:
            piece = self._begun().read1(65536)
            assert piece, f"the answer ended after {self.body[-300:]!r}"
            self.body += piece
        return self.body

    def rest(self) -> bytes:
        """The whole body."""
        self.body += self._begun().read()
        return self.body

    def _begun(self) -> http.client.HTTPResponse:
        if self._response is None:
            self._response = http.client.HTTPResponse(self._wire.socket)
            self._response.begin()
        return self._response


@contextmanager
def speaking(upstream: Upstream, spares: int = 0) -> Iterator[Speaking]:
    """A gateway in this process for as long as the block lasts, with so many spare routes for each dialect."""
    from harness.in_process import in_process  # all of the gateway, which other processes of tests need not import

    table, names = _table(upstream, spares)
    with TemporaryDirectory() as folder, in_process(table, Path(folder), upstream) as gateway:
        yield Speaking(gateway, upstream, names)


@contextmanager
def speaking_over_sockets(upstream: Upstream, spares: int = 0) -> Iterator[Speaking]:
    """The same in a process of its own."""
    table, names = _table(upstream, spares)
    with gateway_process(table) as gateway:
        yield Speaking(gateway, upstream, names)


def _table(upstream: Upstream, spares: int) -> tuple[str, list[str]]:
    """The table, and the names of the spare routes."""

    def target(name: str, backend: str) -> dict[str, Any]:
        return {"name": name, "backend": backend, "url": upstream.target(name).url}

    routes: dict[str, Any] = {}
    for name in DIALECTS:
        speaks = target(f"speaks-{name}", name)
        if name == "llamacpp":  # asked natively, as what it has said was recorded
            speaks["endpoints"] = ["chat/completions", "completions", "responses", "messages"]
        routes[name] = {"targets": [speaks], "timeouts": CALM}
        for patience, timeouts in (("hasty", HASTY), ("pausing", PAUSING)):
            routes[f"{patience}-{name}"] = {
                "targets": [{**speaks, "name": f"{patience}-{name}"}],
                "timeouts": timeouts,
            }
    names = [f"spare-{number}-{name}" for number in range(spares) for name in DIALECTS]
    for spare in names:
        backend = spare.rpartition("-")[2]
        pair = {"targets": [target(f"{spare}-first", backend)], "fallback": [target(f"{spare}-other", backend)]}
        routes[spare] = {**pair, "timeouts": CALM}
    return json.dumps({"routes": routes, "bodies": {"event": LARGEST_EVENT}}), names


def nothing_left(speak: Speaking) -> None:
    """Assert that no call is in flight, and that nothing went wrong that nobody had thought of."""
    eventually(lambda: "trunkline_in_flight 0.0" in speak.gateway.metrics(), "no call is in flight")
    assert "Traceback" not in speak.gateway.stderr()
    assert "gateway_other" not in speak.gateway.metrics()


def datas(events: Sequence[Event], *kinds: str) -> list[Step]:
    """The bytes of the events of these kinds; of all if none is named."""
    return [event.data for event in events if not kinds or event.kind in kinds]


def unfinished(events: Sequence[Event]) -> list[Event]:
    """Those before any choice tells why it ended."""
    return [event for event in events if event.kind in ("role", "text")]


def texts(events: Sequence[Event]) -> dict[int, str]:
    """What the choices say in these."""
    found: dict[int, str] = {}
    for event in events:
        if event.kind in ("text", "finish"):
            found[event.choice] = found.get(event.choice, "") + event.text
    return found


def check_broken(speak: Speaking, answer: Reply, said: Sequence[Event], code: str) -> None:
    """An error event and nothing after it; what was said before is all there."""
    assert answer.status == 200, answer
    found = heard(answer.body)
    assert not found.done
    assert found.error is not None, answer.body[-300:]
    assert set(found.error) == {"message", "type", "param", "code"}
    assert found.error["code"] == code
    assert (answer.header("x-request-id") or "-") in found.error["message"]
    assert SECRET not in repr(answer)
    assert found.texts == texts(said)
    line = record(speak.gateway, answer.header("x-request-id"))
    assert (line["outcome"], len(line["attempts"])) == ("broke", 1)
