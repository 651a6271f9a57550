"""A server in OpenAI's dialect for clients that use tools, without a model: what it says follows from what it is asked.

A conversation with the words `PLEASE USE A TOOL` in it, or one that must have a call, gets a call of a tool that it was
shown, with arguments made up after the tool's schema (`cat word.txt` for commands). One with a tool's result gets an
answer that repeats that. `FAIL ONCE WITH 503: name` fails the first call that has this name, with that status.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOOL, GREETING, RESULT = "PLEASE USE A TOOL", "Hello from the engine.", "The tool said: "
COMMAND = "cat word.txt"
_FAIL = re.compile(r"FAIL ONCE WITH (\d{3}): ([\w-]+)")
_USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def text_of(content: Any) -> str:
    """The text of a message, whose content is one or a list of parts."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def call_of(body: dict[str, Any]) -> dict[str, Any] | None:
    """The function that the answer calls; None: it is a text."""
    functions = [tool["function"] for tool in body.get("tools") or [] if tool.get("type") == "function"]
    messages = body["messages"]
    results = any(message.get("role") == "tool" for message in messages)
    choice = body.get("tool_choice", "auto")
    forced = choice == "required" or isinstance(choice, dict)
    wanted = any(TOOL in text_of(message.get("content")) for message in messages)
    if not functions or choice == "none" or not (forced or (wanted and not results)):
        return None
    if isinstance(choice, dict):
        functions = [each for each in functions if each["name"] == choice["function"]["name"]]

    def runs(function: dict[str, Any]) -> bool:
        return not {"command", "cmd"}.isdisjoint((function.get("parameters") or {}).get("properties") or {})

    function = next(filter(runs, functions), functions[0])
    schema = function.get("parameters") or {}
    return {"name": function["name"], "arguments": json.dumps(made_up(schema, schema))}


def made_up(schema: dict[str, Any], root: dict[str, Any], name: str = "") -> Any:
    """A value that a JSON schema allows, of the kinds that tools have."""
    if "$ref" in schema:
        found = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        return made_up(found, root, name)
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return made_up(choices[0], root, name)
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "string")
    if kind == "object":
        properties = schema.get("properties") or {}
        asked = {*(schema.get("required") or properties), *({"command", "cmd"} & properties.keys())}
        return {each: made_up(properties[each], root, each) for each in properties if each in asked}
    if kind == "array":
        return COMMAND.split() if name in ("command", "cmd") else [made_up(schema.get("items") or {}, root)]
    if kind in ("integer", "number"):
        return min(max(30, schema.get("minimum", 30)), schema.get("maximum", 30))
    if kind == "boolean":
        return False
    return COMMAND if name in ("command", "cmd") else "Paris"


class Engine:
    """What it has been asked so far, and what it has failed already."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed: set[str] = set()

    def fails(self, body: dict[str, Any]) -> int | None:
        """The status with which this call fails; None: it does not."""
        for message in body["messages"]:
            if found := _FAIL.search(text_of(message.get("content"))):
                with self._lock:
                    if found[0] not in self._failed:
                        self._failed.add(found[0])
                        return int(found[1])
        return None

    def message(self, body: dict[str, Any]) -> dict[str, Any]:
        """The assistant's message."""
        if call := call_of(body):
            calls = [{"id": f"call_{len(body['messages'])}", "type": "function", "function": call}]
            return {"role": "assistant", "content": None, "tool_calls": calls}
        results = [text_of(message["content"]) for message in body["messages"] if message.get("role") == "tool"]
        return {"role": "assistant", "content": RESULT + results[-1] if results else GREETING}


def events(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The deltas of a streamed message: a word each, arguments in small pieces."""
    yield {"role": "assistant", "content": ""}
    for word in re.findall(r"\s*\S+", message["content"] or ""):
        yield {"content": word}
    for index, call in enumerate(message.get("tool_calls", ())):
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        yield {"tool_calls": [{**call, "index": index, "function": {"name": name, "arguments": ""}}]}
        for start in range(0, len(arguments), 7):
            yield {"tool_calls": [{"index": index, "function": {"arguments": arguments[start : start + 7]}}]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Engine

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the clients tell what they got."""

    def do_GET(self) -> None:
        known = {"/health": {}, "/v1/models": {"object": "list", "data": [{"id": "engine", "object": "model"}]}}
        self._json(known.get(self.path, {}), 200 if self.path in known else 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path != "/v1/chat/completions" or "messages" not in body:
            return self._json({"error": {"message": "no chat", "type": "invalid_request_error"}}, 400)
        if status := self.engine.fails(body):
            return self._json({"error": {"message": "as asked", "type": "server_error"}}, status, ("retry-after", "1"))
        message = self.engine.message(body)
        finish = "tool_calls" if "tool_calls" in message else "stop"
        head = {"id": "chatcmpl-1", "created": 1, "model": body.get("model")}
        if not body.get("stream"):
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
            return self._json({**head, "object": "chat.completion", "choices": [choice], "usage": _USAGE})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        head["object"] = "chat.completion.chunk"
        for delta in events(message):
            self._event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        self._event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            self._event({**head, "choices": [], "usage": _USAGE})
        self._chunk(b"data: [DONE]\n\n")
        self._chunk(b"")

    def _event(self, value: dict[str, Any]) -> None:
        self._chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def _json(self, value: Any, status: int = 200, *more: tuple[str, str]) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (("content-type", "application/json"), ("content-length", str(len(data))), *more):
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that break are none of our business; all else is told."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def engine() -> Iterator[str]:
    """The URL of one, for as long as the block lasts."""
    handler = type("Handler", (Handler,), {"engine": Engine()})
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="engine", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
