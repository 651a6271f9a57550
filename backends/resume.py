"""Calls whose answer another server has begun: the same question, and what was said so far."""

from __future__ import annotations

import msgspec
from msgspec import structs

from backends.api import Call
from backends.body import Body


def continued(call: Call, said: str, **flags: bytes) -> Call:
    """The call with `said` behind its prompt, or as the assistant's last message and with these fields, as JSON."""
    if call.endpoint == "completions":
        prompt = msgspec.json.decode(call.body.fields["prompt"], type=str)
        changes = {"prompt": msgspec.json.encode(prompt + said)}
    else:
        message = msgspec.json.encode({"role": "assistant", "content": said})
        messages = bytes(call.body.fields["messages"]).rstrip()
        changes = {"messages": messages[:-1] + b"," + message + b"]", **flags}
    return structs.replace(call, body=Body(call.body.spliced(changes)))
