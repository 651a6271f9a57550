"""What clients ask and servers answer in odd and old shapes: every byte goes on as it came, whoever the server is."""

from __future__ import annotations

import pytest

from backends import sse
from backends.api import Adapter, Call, Target
from backends.body import Body
from backends.capabilities import Capabilities
from backends.endpoints import Endpoint
from backends.llamacpp import LlamaCpp
from backends.openai import OpenAI
from backends.sglang import SGLang
from backends.vllm import VLLM

ADAPTERS = {"openai": OpenAI(), "vllm": VLLM(), "sglang": SGLang(), "llamacpp": LlamaCpp()}
HI = b'"messages":[{"role":"user","content":"Hi"}]'
CHAT: Endpoint = "chat/completions"
ASKED: list[tuple[Endpoint, bytes]] = [
    ("completions", b'"prompt":["a", "b","\\u00e9"]'),
    ("completions", b'"prompt":[1, 2,3] , "n":2,"best_of" : 3'),
    ("completions", b'"prompt":[[1,2],[ 3]],"echo":true,"logprobs":5,"suffix":"\\n"'),
    ("completions", b'"prompt":"a","logprobs":0,"logit_bias":{"50256":-100},"prompt_logprobs":1'),
    ("completions", b'"prompt":"a","max_tokens":1e1,"return_token_ids":true,"user":"u"'),
    (CHAT, HI + b',"logprobs":true,"top_logprobs":20,"n":2'),
    (CHAT, HI + b',"max_completion_tokens":5 ,"max_tokens":7'),
    (CHAT, b'"messages":[{"role":"developer","content":[{"type":"text","text":"a"}]},{"role":"user","content":"b"}]'),
    (CHAT, b'"messages":[{"role":"assistant","content":null,"refusal":"No.","reasoning_content":"r","reasoning":"s"}]'),
    (CHAT, b'"messages":[{"role":"user","content":[{"type":"input_audio","input_audio":{"data":"aGk="}}]}]'),
    (CHAT, HI + b',"modalities":["text" , "audio"],"audio":{"voice":"alloy","format":"wav"}'),
    (CHAT, b'"messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"f"}}]}],"prediction":{"a":1}'),
    (CHAT, HI + b',"functions":[{"name":"f"}],"function_call":{"name":"f"}'),
    (CHAT, HI + b',"tools":[{"type":"custom","custom":{"name":"x"}}],"tool_choice":"none","parallel_tool_calls":false'),
    (CHAT, HI + b',"reasoning_effort":"low","verbosity":"high","service_tier":"flex","store":false'),
    (CHAT, HI + b',"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"b":1,"a":1.0}}}'),
    (CHAT, HI + b',"return_token_ids":true,"chat_template_kwargs":{"enable_thinking":false},"min_p":null'),
    (CHAT, HI + b',"session_id":"s","prompt_cache_key":"k","safety_identifier":"i","metadata":{"a":"b"}'),
    ("embeddings", b'"input":[[1,2],[3]],"encoding_format":"base64","dimensions":4'),
    ("embeddings", b'"input":["a",""],"truncate_prompt_tokens":-1'),
]  # fmt: skip
DETAILS = (
    b'"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1,'
    b'"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":1,"accepted_prediction_tokens":0}}'
)
LOGPROBS = b'"logprobs":{"content":[{"token":"a","logprob":-0.0,"bytes":[97],"top_logprobs":[]}],"refusal":null}'
OLD_LOGPROBS = b'"logprobs":{"tokens":["a"],"token_logprobs":[-1e-3],"top_logprobs":[{"a":-1.0}],"text_offset":[0]}'
MESSAGES = [
    b'{"role":"assistant","content":null,"refusal":"No."}',
    b'{"role":"assistant","content":"a","reasoning":"r","reasoning_content":"r"}',
    b'{"role":"assistant","content":null,"audio":{"id":"x","data":"aGk=","transcript":"hi","expires_at":1}}',
    b'{"role":"assistant","content":"a","annotations":[{"type":"url_citation","url_citation":{"start_index":0}}]}',
    b'{"role":"assistant","content":null,"function_call":{"name":"f","arguments":"{}"}}',
    b'{"role":"assistant","content":"","tool_calls":[{"id":"1","type":"custom","custom":{"name":"x","input":"y"}}]}',
]
ANSWERED: list[tuple[Endpoint, bytes]] = [
    *(
        (CHAT, b'{ "id":"c","choices":[{"index":0,"message":%b,"finish_reason":"stop",%b}],%b }' % each)
        for each in ((message, LOGPROBS, DETAILS) for message in MESSAGES)
    ),
    (CHAT, b'{"choices":[{"index":0,"message":{"content":"a"},"finish_reason":"stop","token_ids":[1],"stop_reason":2}],'
     b'"prompt_token_ids":[1],"kv_transfer_params":null,"system_fingerprint":"f",' + DETAILS + b"}"),
    ("completions", b'{"choices":[{"index":1,"text":"a","finish_reason":"x",' + OLD_LOGPROBS + b'},{"index":0,'
     b'"text":"b","finish_reason":"stop","logprobs":null,"prompt_logprobs":[null,{}]}],' + DETAILS + b"}"),
    ("embeddings", b'{"data":[{"index":0,"object":"embedding","embedding":"AACAPw=="}],"usage":{"prompt_tokens":3}}'),
]  # fmt: skip
DELTAS = [
    b'{"refusal":"No."}',
    b'{"reasoning":"r","reasoning_content":"r"}',
    b'{"audio":{"id":"x","transcript":"hi"}}',
    b'{"function_call":{"name":"f","arguments":"{"}}',
    b'{"tool_calls":[{"index":0,"id":"1","type":"custom","custom":{"input":"y"}}]}',
    b'{"content":"a","annotations":[]}',
]


@pytest.fixture(params=ADAPTERS)
def adapter(request: pytest.FixtureRequest) -> Adapter:
    found: Adapter = ADAPTERS[request.param]
    return found


def call(endpoint: Endpoint, fields: bytes, *, stream: bool = False) -> Call:
    raw = b'{"x": [1.50 ], "model":"m" ,%b,\n"temperature":0.70}' % fields
    return Call("c", endpoint, "m", Body(raw), stream=stream, include_usage=stream)


@pytest.mark.parametrize(("endpoint", "fields"), ASKED)
def test_a_question_goes_on_byte_for_byte(adapter: Adapter, endpoint: Endpoint, fields: bytes) -> None:
    asked = call(endpoint, fields)
    assert adapter.request(asked, Target("t", "http://t")).body == asked.body.raw
    sent = adapter.request(asked, Target("t", "http://t", model="served")).body
    assert sent == asked.body.raw.replace(b'"model":"m"', b'"model":"served"', 1)


@pytest.mark.parametrize(("endpoint", "answer"), ANSWERED)
def test_an_answer_comes_back_byte_for_byte(adapter: Adapter, endpoint: Endpoint, answer: bytes) -> None:
    reply = adapter.reply(call(endpoint, b'"prompt":"a"'), answer)
    assert reply.body == answer and reply.usage is not None and reply.usage.prompt_tokens == 3
    if DETAILS in answer:
        assert (reply.usage.completion_tokens, reply.usage.cached_tokens) == (2, 1)


def events() -> list[bytes]:
    """A stream in which everything odd is said once."""
    said = [b'{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"prompt_token_ids":[1]}']
    event = b'{"choices":[{"index":0,"delta":%b,%b,"finish_reason":null,"token_ids":[1]}]}'
    said += [event % (delta, LOGPROBS) for delta in DELTAS]
    said.append(b'{"choices":[{"index":0,"delta":{},"finish_reason":"stop","stop_reason":null}],"obfuscation":"x"}')
    said.append(b'{"choices":[],%b,"service_tier":"flex"}' % DETAILS)
    return [b"data: " + each + b"\n\n" for each in [*said, b"[DONE]"]]


def test_a_stream_comes_back_byte_for_byte(adapter: Adapter) -> None:
    asked = call(CHAT, HI + b',"stream":true,"stream_options":{"include_usage":true}', stream=True)
    assert adapter.request(asked, Target("t", "http://t")).body == asked.body.raw
    stateful = Capabilities.of(adapter).stateful
    reader = adapter if stateful is None else stateful.open(asked)
    splitter, seen = sse.Splitter(), []
    for event in events():
        for whole in splitter.feed(event):
            seen += reader.chunk(asked, whole)
    assert b"".join(chunk.data for chunk in seen) == b"".join(events())
    assert (sum(chunk.finished for chunk in seen), seen[-1].done) == (1, True)
    usage = next(chunk.usage for chunk in seen if chunk.usage is not None)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (3, 2, 1)
