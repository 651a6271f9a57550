"""Recorded exchanges again, through a gateway: what a client gets must be what the server said, byte for byte.

    python tests/transparency/replay.py [FOLDER]      the folder has one of captures per kind of server (vllm, llamacpp)

Prints a row for each capture; the exit status is 1 where one differs that should not. What may differ is what the
gateway answers itself: errors for which the caller is not to blame, and paths that are not the model's.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from harness.captures import GOLDEN, Capture, broken_stream, read_capture
from harness.gateway_process import GatewayProcess, gateway_process
from harness.upstream import END, Act, Script, Target, Upstream, chunk, head, scripted_upstream, whole
from integration.client import ask

from backends.endpoints import PATHS

OWN = {"/health", "/ready", "/metrics", "/v1/models", "/info", "/", "/docs", "/openapi.json"}
"""Paths that the gateway answers itself."""
ENDPOINTS = {
    "llamacpp": [
        *("chat/completions", "completions", "embeddings", "responses", "messages", "messages/count_tokens"),
        *("rerank", "tokenize", "detokenize"),
    ]
}
"""What these servers are asked natively, where that is more than the table's default."""
EQUAL, BROKEN = "equal", "an error event ends it, no [DONE]"
WRITTEN = {"model", "stream_options", "store"}
"""Fields of bodies that the gateway may write."""


class Row(NamedTuple):
    """What became of one capture. `asked` says how the server got the request."""

    name: str
    status: int
    size: int
    verdict: str
    asked: str
    is_good: bool


def script_of(capture: Capture) -> Script:
    """The server's answer as it was."""
    kind = capture.headers.get("content-type", "")
    if capture.streamed:
        return [head(capture.status, content_type=kind, transfer_encoding="chunked"), chunk(capture.body) + END]
    headers = {"content_type": kind} if kind else {}
    retry = {"retry_after": capture.headers["retry-after"]} if "retry-after" in capture.headers else {}
    length = len(capture.body)
    return [head(capture.status, content_length=length, **headers, **retry) + capture.body]


def replayed(folder: Path) -> Iterator[Row]:
    """A row for each capture below `folder`."""
    with scripted_upstream() as upstream:
        for server in [name for name in ("llamacpp", "vllm") if (folder / name).is_dir()]:
            files = sorted((folder / server).glob("*.txt"))
            found = [read_capture(path) for path in files if "mid-stream" not in path.name]
            with served(server, found, upstream) as (gateway, token, target):
                for capture in found:
                    yield again(capture, gateway, token, target)
                for path in files:
                    if "mid-stream" in path.name:
                        yield broken(path, gateway, token, target)


@contextmanager
def served(server: str, found: list[Capture], upstream: Upstream) -> Iterator[tuple[GatewayProcess, str, Target]]:
    """A gateway before a server of this kind, whose route has all names that the captures ask for with success."""
    target = upstream.target(server)
    paths = {capture.request_line.split()[1].partition("?")[0] for capture in found}
    names = {name for capture in found if capture.status == 200 and isinstance(name := named(capture), str)}
    first = min(names, key=lambda name: (name != "smollm2-135m", name))
    spec = {"name": server, "backend": server, "url": target.url}
    if server in ENDPOINTS:
        spec["endpoints"] = ENDPOINTS[server]
    route = {
        "aliases": sorted(names - {first}),
        "targets": [spec],
        "retry": {"attempts": 1},
        "body": {"deny": []},
        "passes": sorted(path for path in paths - PATHS.keys() - OWN if not path.startswith("/v1/models/")),
    }
    with gateway_process(json.dumps({"routes": {first: route}, "default_route": first})) as gateway:
        yield gateway, gateway.issue().secret, target


def named(capture: Capture) -> Any:
    """The model that it asks for."""
    try:
        return capture.asked.get("model")
    except ValueError:
        return None


def again(capture: Capture, gateway: GatewayProcess, token: str, target: Target) -> Row:
    """Ask what was asked, of a server that says what was said."""
    method, path = capture.request_line.split()
    target.restore()
    target.answers = lambda received: said(target, received, path, capture)  # type: ignore[method-assign]
    reply = ask(gateway, capture.request or None, token, path, method=method)
    kind, got = capture.headers.get("content-type"), (reply.status, reply.header("content-type"), reply.body)
    if capture.status >= 400 or not capture.body:  # of errors and of nothing the gateway tells no charset
        kind = "application/json"
    if not target.calls:
        own = is_own(capture, path)
        verdict = f"its own {reply.status}" + (f" {code(reply.body)}" if code(reply.body) else "")
        return Row(capture.name, capture.status, len(capture.body), verdict, "not asked", own)
    asked = sent(capture, target.calls[-1].body)
    if got == (capture.status, kind, capture.body):
        return Row(capture.name, capture.status, len(capture.body), EQUAL, asked, asked != "changed")
    # Whom nobody must blame: the gateway's credential, its server's health.
    good = capture.cut or capture.status in (401, 403, 429) or capture.status >= 500 or path_is_missing(capture)
    verdict = f"in its own words: {reply.status} {code(reply.body)}" if good else f"DIFFERENT: {got!r}"[:300]
    if capture.cut:
        verdict = "shortened after recording: no such answer"
    return Row(capture.name, capture.status, len(capture.body), verdict, asked, good and asked != "changed")


def said(target: Target, received: Any, path: str, capture: Capture) -> Script:
    """The server answers this path alone, by whatever name it has it; all else are the gateway's questions."""
    known = PATHS.get(path, path)
    if received.method != capture.request_line.split()[0] or PATHS.get(received.path, received.path) != known:
        return whole({}, 200)
    target.calls.append(received)
    return script_of(capture)


def sent(capture: Capture, body: bytes) -> str:
    """How the request reached the server."""
    if body == capture.request:
        return "as it was"
    try:
        before, after = json.loads(capture.request), json.loads(body)
    except ValueError:
        return "changed"
    written = {name for name in {*before, *after} if before.get(name, ...) != after.get(name, ...)}
    return f"with {', '.join(sorted(written))}" if written <= WRITTEN else "changed"


def is_own(capture: Capture, path: str) -> bool:
    """Whether the gateway may answer it without the server."""
    if path in OWN or path.startswith("/v1/models/") or capture.request_line.startswith("GET /v1/chat"):
        return True
    return capture.status in (400, 404, 405, 422, 500, 501) or "overload" in capture.name or "auth" in capture.name


def path_is_missing(capture: Capture) -> bool:
    """The server has no such route: it is told in words that name the endpoint."""
    return capture.status in (404, 405, 501) and b'"error":{' not in capture.body


def code(body: bytes) -> str:
    """The code of an error in OpenAI's envelope, or its type in Anthropic's."""
    found = re.search(rb'"code":"(\w+)"', body) or re.search(rb'"error":\{"type":"(\w+)"', body)
    return found[1].decode() if found else ""


def broken(path: Path, gateway: GatewayProcess, token: str, target: Target) -> Row:
    """A stream whose server was hit: the client must never take it for whole."""
    rest = broken_stream(str(path.resolve()))
    begun = b'data: {"id":"c","choices":[{"index":0,"delta":{"role":"assistant","content":"Hello"}}]}\n\n'
    start = head(content_type="text/event-stream", transfer_encoding="chunked")
    target.restore()
    target.script = [start, chunk(begun), *([chunk(rest)] if rest else []), Act.CUT]
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True}
    reply = ask(gateway, body, token)
    good = b'"error"' in reply.body and b"[DONE]" not in reply.body
    return Row(path.stem, 200, len(rest), BROKEN if good else f"DIFFERENT: {reply.body!r}"[:300], "as it was", good)


def main() -> int:
    rows = []
    for row in replayed(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN):
        rows.append(row)
        print(f"{row.name:46} {row.status:4} {row.size:7}  {row.asked:28} {row.verdict}", flush=True)
    counted = Counter("equal" if row.verdict == EQUAL else "its own words" if row.is_good else "WRONG" for row in rows)
    print(f"\n{len(rows)} captures: " + ", ".join(f"{count} {what}" for what, count in counted.most_common()))
    return int(not all(row.is_good for row in rows))


if __name__ == "__main__":
    sys.exit(main())
