"""The messages of a call in Anthropic's language, as those of a chat.

There, results of tools are messages of their own, and thoughts and calls of tools are beside a message's text.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import Raw, Struct

from backends.api import Call, RequestRefused
from gateway.dialects import chat
from gateway.dialects.asking import given, needed, understood

ROLES: Final = ("user", "assistant", "system")


class _Source(Struct):
    type: str = ""
    media_type: Raw = Raw()
    data: Raw = Raw()
    url: Raw = Raw()


class _Block(Struct):
    type: str
    text: Raw = Raw()
    source: _Source | None = None
    id: Raw = Raw()
    name: Raw = Raw()
    input: Raw = Raw()
    tool_use_id: Raw = Raw()
    content: Raw = Raw()
    is_error: bool | None = None
    thinking: Raw = Raw()


class _Message(Struct):
    role: str
    content: Raw


def conversation(call: Call) -> tuple[list[dict[str, Any]], str]:
    """The chat's messages, and the beginning of the answer, if the client gives one. Raises `RequestRefused`."""
    messages: list[dict[str, Any]] = []
    system = call.body.fields.get("system")
    if system is not None and (text := _joined(_blocks(system, "system"), b"\\n", "system")):
        messages.append({"role": "system", "content": chat.string(text)})
    for message in given(call, "messages", list[_Message]) or ():
        if message.role not in ROLES:
            raise RequestRefused(
                f"'messages' has a role {message.role!r}, not one of {', '.join(ROLES)}", param="messages"
            )
        messages += _WRITTEN[message.role](_blocks(message.content, "messages"))
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant" or "tool_calls" in last or "content" not in last:
        return messages, ""
    return messages[:-1], chat.text_of(chat.inside(last["content"])).rstrip()


def _blocks(content: Raw, name: str) -> list[_Block]:
    """A content's blocks; a text alone is one."""
    if bytes(memoryview(content)[:1]) == b"[":
        return understood(content, name, list[_Block])
    if bytes(memoryview(content)[:1]) == b'"':
        return [_Block("text", text=content)]
    if bytes(content) == b"null":
        return []
    raise RequestRefused(f"a content in {name!r} must be a text or a list of blocks", param=name)


def _user(blocks: list[_Block]) -> list[dict[str, Any]]:
    results, parts, shown = [], list[dict[str, Any]](), list[dict[str, Any]]()
    for block in blocks:
        if block.type == "tool_result":
            text, images = _result(block)
            results.append({"role": "tool", "tool_call_id": _needed(block.tool_use_id, "tool_use_id"), "content": text})
            shown += images
        else:
            parts.append(_part(block))
    parts = shown + parts
    if not parts:
        return results
    alone = len(parts) == 1 and parts[0]["type"] == "text"
    return [*results, {"role": "user", "content": parts[0]["text"] if alone else parts}]


def _result(block: _Block) -> tuple[Raw, list[dict[str, Any]]]:
    """A result's text, and what it shows: a chat's tools answer in text, so images come from the user behind them."""
    blocks = _blocks(block.content or Raw(b"null"), "messages")
    images = [_part(each) for each in blocks if each.type == "image"]
    text = _joined([each for each in blocks if each.type != "image"], b"\\n", "messages")
    return chat.string(b"Error: " + text if block.is_error else text), images


def _assistant(blocks: list[_Block]) -> list[dict[str, Any]]:
    texts, thoughts, calls = list[_Block](), list[bytes](), list[dict[str, Any]]()
    for block in blocks:
        if block.type == "tool_use":
            arguments = bytes(block.input or b"{}").decode()
            function = {"name": _needed(block.name, "name"), "arguments": arguments}
            calls.append({"id": _needed(block.id, "id"), "type": "function", "function": function})
        elif block.type == "thinking":
            thoughts.append(chat.inside(block.thinking))
        else:
            texts.append(block)
    message: dict[str, Any] = {"role": "assistant"}
    if texts or not calls:
        message["content"] = chat.string(_joined(texts, b"", "messages"))
    if thought := b"".join(thoughts):
        message |= dict.fromkeys(("reasoning", "reasoning_content"), chat.string(thought))  # servers read one of them
    if calls:
        message["tool_calls"] = calls
    return [message]


def _system(blocks: list[_Block]) -> list[dict[str, Any]]:
    return [{"role": "system", "content": chat.string(_joined(blocks, b"\\n", "messages"))}]


_WRITTEN: Final = {"user": _user, "assistant": _assistant, "system": _system}


def _part(block: _Block) -> dict[str, Any]:
    if block.type == "text":
        return {"type": "text", "text": _needed(block.text, "text")}
    if block.type == "image" and block.source is not None:
        return {"type": "image_url", "image_url": {"url": _url(block.source)}}
    raise _unfit(block, "messages")


def _url(source: _Source) -> Raw:
    if source.type == "url" and source.url:
        return source.url
    if source.type == "base64" and source.data:
        data, kind = memoryview(source.data), chat.inside(source.media_type) or b"image/jpeg"
        if bytes(data[:1]) == b'"':
            return Raw(b"".join((b'"data:', kind, b";base64,", data[1:])))  # megabytes, copied once
    raise RequestRefused(
        f"images of the source {source.type!r} cannot be carried to this model's server", param="messages"
    )


def _joined(blocks: list[_Block], between: bytes, name: str) -> bytes:
    """The inside of all texts; raises `RequestRefused` for what is no text."""
    for block in blocks:
        if block.type != "text":
            raise _unfit(block, name)
    return between.join(chat.inside(block.text) for block in blocks)


def _needed(raw: Raw, what: str) -> Raw:
    return needed(raw, "messages", f"{what!r} of a block")


def _unfit(block: _Block, name: str) -> RequestRefused:
    return RequestRefused(f"a block of the type {block.type!r} cannot be carried to this model's server", param=name)
