"""The input of a call in the language of OpenAI's responses, as the messages of a chat.

Items come one after the other there; thoughts, text and tool calls of one turn are one message in a chat.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Raw, Struct

from backends.api import Call, RequestRefused
from gateway.dialects import chat
from gateway.dialects.asking import is_null, needed, understood
from gateway.dialects.responses.namespaces import flat

ROLES: Final = ("user", "assistant", "system", "developer")


class _Part(Struct):
    type: str
    text: Raw = Raw()
    refusal: Raw = Raw()
    image_url: Raw = Raw()
    detail: Raw = Raw()
    input_audio: Raw = Raw()


class _Item(Struct):
    type: str = "message"
    role: str = ""
    content: Raw = Raw()
    call_id: Raw = Raw()
    name: Raw = Raw()
    namespace: str | None = None
    arguments: Raw = Raw()
    output: Raw = Raw()
    summary: Raw = Raw()
    encrypted_content: Raw = Raw()


def conversation(call: Call) -> list[dict[str, Any]]:
    """The chat's messages. Raises `RequestRefused`."""
    turns = _Turns()
    instructions = call.body.fields.get("instructions", Raw())
    if chat.inside(instructions):
        turns.direct(chat.inside(instructions))
    asked = call.body.fields["input"]
    if bytes(memoryview(asked)[:1]) == b'"':
        turns.user([{"type": "text", "text": asked}])
    else:
        for item in understood(asked, "input", list[_Item]):
            _ITEMS.get(item.type, _unknown)(turns, item)
    return turns.messages()


class _Turns:
    """Messages as they come; those of one side that follow one another become one where a chat wants that."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []
        self._shown: list[dict[str, Any]] = []
        """What tools have shown: the user shows it behind their results."""
        self._directions: list[bytes] = []
        """What the system and the developer say before all else."""

    def messages(self) -> list[dict[str, Any]]:
        self._show()
        if not self._directions:
            return self._messages
        return [{"role": "system", "content": chat.string(b"\\n\\n".join(self._directions))}, *self._messages]

    def direct(self, text: bytes) -> None:
        """Many a model's template knows one system message, at the beginning."""
        self._show()
        if self._messages:
            self._messages.append({"role": "system", "content": chat.string(text)})
        else:
            self._directions.append(text)

    def user(self, parts: list[dict[str, Any]]) -> None:
        self._show()
        alone = len(parts) == 1 and parts[0]["type"] == "text"
        self._messages.append({"role": "user", "content": parts[0]["text"] if alone else parts})

    def assistant(self) -> dict[str, Any]:
        """The assistant's message that is being said."""
        self._show()
        if not self._messages or self._messages[-1]["role"] != "assistant":
            self._messages.append({"role": "assistant"})
        return self._messages[-1]

    def tool(self, call_id: Raw, text: bytes, shown: list[dict[str, Any]]) -> None:
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": chat.string(text)})
        self._shown += shown

    def _show(self) -> None:
        if self._shown:
            shown, self._shown = self._shown, []
            self._messages.append({"role": "user", "content": shown})


def _message(turns: _Turns, item: _Item) -> None:
    parts = _parts(item.content)
    if item.role == "user":
        turns.user([_shown(part) for part in parts])
    elif item.role in ("system", "developer"):
        turns.direct(_text(parts))
    elif item.role == "assistant":
        message = turns.assistant()
        if "content" in message or "tool_calls" in message:
            text = chat.inside(message.get("content", Raw())) + _text(parts)
        else:
            text = _text(parts)
        message["content"] = chat.string(text)
    else:
        raise RequestRefused(f"'input' has a role {item.role!r}, not one of {', '.join(ROLES)}", param="input")


def _function_call(turns: _Turns, item: _Item) -> None:
    name: Any = _needed(item.name, "name")
    if item.namespace:
        name = flat(item.namespace, understood(name, "input", str))
    function = {"name": name, "arguments": _needed(item.arguments, "arguments")}
    calls = turns.assistant().setdefault("tool_calls", [])
    calls.append({"id": _needed(item.call_id, "call_id"), "type": "function", "function": function})


def _function_call_output(turns: _Turns, item: _Item) -> None:
    parts = _parts(item.output)
    images = [_shown(part) for part in parts if part.type == "input_image"]
    turns.tool(_needed(item.call_id, "call_id"), _text([part for part in parts if part.type != "input_image"]), images)


def _reasoning(turns: _Turns, item: _Item) -> None:
    parts = _parts(item.content) or _parts(item.summary)
    thought = b"".join(chat.inside(part.text) for part in parts)
    if thought:
        message = turns.assistant()
        thought = chat.inside(message.get("reasoning", Raw())) + thought
        message |= dict.fromkeys(("reasoning", "reasoning_content"), chat.string(thought))  # servers read one of them
    elif chat.inside(item.encrypted_content):
        raise RequestRefused(
            "a 'reasoning' item that is encrypted cannot be read by this model's server", param="input"
        )


def _unknown(turns: _Turns, item: _Item) -> None:
    raise RequestRefused(f"an item of the type {item.type!r} cannot be carried to this model's server", param="input")


_ITEMS: Final = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _function_call_output,
    "reasoning": _reasoning,
}


def _parts(content: Raw) -> list[_Part]:
    """A content's parts; a text alone is one."""
    first = bytes(memoryview(content)[:1])
    if first == b"[":
        return understood(content, "input", list[_Part])
    if first == b'"':
        return [_Part("input_text", text=content)]
    if bytes(content) in (b"", b"null"):
        return []
    raise RequestRefused("a content in 'input' must be a text or a list of parts", param="input")


def _shown(part: _Part) -> dict[str, Any]:
    if part.type in ("input_text", "output_text"):
        return {"type": "text", "text": _needed(part.text, "text")}
    if part.type == "input_image" and len(part.image_url) > len('""') and not is_null(part.image_url):
        image = {"url": part.image_url} | ({"detail": part.detail} if chat.inside(part.detail) else {})
        return {"type": "image_url", "image_url": image}
    if part.type == "input_audio" and part.input_audio:
        return {"type": "input_audio", "input_audio": part.input_audio}
    raise _unfit(part)


def _text(parts: list[_Part]) -> bytes:
    """The inside of all texts; raises `RequestRefused` for what is no text."""
    texts = []
    for part in parts:
        if part.type not in ("input_text", "output_text", "refusal"):
            raise _unfit(part)
        texts.append(chat.inside(part.refusal if part.type == "refusal" else part.text))
    return b"".join(texts)


def _needed(raw: Raw, what: str) -> Raw:
    return needed(raw, "input", f"{what!r} of an item")


def _unfit(part: _Part) -> RequestRefused:
    return RequestRefused(f"a part of the type {part.type!r} cannot be carried to this model's server", param="input")
