"""Anthropic's `count_tokens` at servers without it: the tokens of the chat that the same messages would be."""

from __future__ import annotations

import json
from typing import Any

import pytest
from harness.captures import GOLDEN, read_capture
from harness.translated import TARGET, a_call, ask, capabilities

from backends.api import RequestRefused, Usage
from backends.capabilities import Capabilities
from backends.openai import OpenAI
from backends.tgi import TGI
from backends.vllm import VLLM
from gateway.dialects import translated

COUNTS: Any = "messages/count_tokens"
HI = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
ASKED = {
    "model": "m",
    "system": "Be terse.",
    "messages": HI,
    "tools": [{"name": "f", "input_schema": {"type": "object"}}],
}
CHAT = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "hi"}]


@pytest.mark.parametrize(("server", "path"), [(VLLM(), "/tokenize"), (TGI(), "/chat_tokenize")])
def test_the_server_is_asked_for_the_tokens_of_the_chat(server: Any, path: str) -> None:
    asked_at, asked = ask(COUNTS, ASKED, server)
    assert (asked_at, asked["model"], asked["messages"]) == (path, "served/name", CHAT)
    assert [tool["function"]["name"] for tool in asked["tools"]] == ["f"]
    assert "max_tokens" not in asked and "stream" not in asked


def test_what_servers_say() -> None:
    call = a_call(COUNTS, ASKED)
    vllm = read_capture(GOLDEN / "vllm" / "vllm-tokenize-chat.txt").body
    tgi = json.dumps({"tokenize_response": [{"id": 1, "text": "a", "start": 0, "stop": 1}] * 7, "templated_text": "x"})
    for server, body, count in ((VLLM(), vllm, 25), (TGI(), tgi.encode(), 7)):
        reply = capabilities(COUNTS, server).adapter.reply(call, body)
        assert (json.loads(reply.body), reply.usage) == ({"input_tokens": count}, Usage())
        for odd in (b"{}", b"[]", b"oops"):
            with pytest.raises(ValueError):
                capabilities(COUNTS, server).adapter.reply(call, odd)


def test_refusals_are_anthropics() -> None:
    found = capabilities(COUNTS, TGI())
    assert found.refusing is not None
    refused = found.refusing.refusal(a_call(COUNTS, ASKED), 422, b'{"error":"too long","error_type":"validation"}')
    assert refused is not None and refused[0] == 400
    assert json.loads(refused[1])["error"] == {"type": "invalid_request_error", "message": "too long"}
    with pytest.raises(RequestRefused) as nothing:
        found.adapter.request(a_call(COUNTS, {"model": "m"}), TARGET)
    assert nothing.value.param == "messages"


def test_who_cannot_count_has_no_such_endpoint_and_who_has_it_keeps_it() -> None:
    own = Capabilities.of(OpenAI())
    assert COUNTS not in translated({"chat/completions": own})
    other = Capabilities.of(VLLM())
    assert translated({"chat/completions": other, COUNTS: own})[COUNTS] is own
    assert COUNTS not in translated({"embeddings": other})
