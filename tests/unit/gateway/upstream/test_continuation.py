"""A stream that goes on at another target reads on: no text lost or doubled, one id, one role, one usage."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from backends.api import DONE, Call, Chunk, Endpoint, RequestRefused, Target, Usage
from backends.body import Body
from backends.capabilities import Capabilities
from backends.llamacpp import LlamaCpp
from backends.sse import data
from backends.tgi import TGI
from backends.vllm import VLLM
from gateway.core.errors import BadReply
from gateway.upstream.continuation import Transcript
from gateway.upstream.reading import AnswerMemory, EventReader

ASKED = {"model": "m", "messages": [{"role": "user", "content": "Tell"}], "stream": True}
PROMPT = 7
"""Tokens of the call's own prompt."""


def call(endpoint: Endpoint = "chat/completions", *, include_usage: bool = False, **fields: Any) -> Call:
    asked = {**ASKED, **fields} if endpoint == "chat/completions" else {"model": "m", "prompt": "Tell:", **fields}
    return Call("c", endpoint, "m", Body(json.dumps(asked).encode()), stream=True, include_usage=include_usage)


def event(part: int, choice: dict[str, Any] | None, **fields: Any) -> bytes:
    choices = [] if choice is None else [{"index": 0, "finish_reason": None, **choice}]
    told = {"id": f"id-{part}", "object": "o", "created": part, "model": f"served-{part}", "choices": choices}
    return b"data: " + json.dumps({**told, **fields}).encode() + b"\n\n"


def said(part: int, text: str) -> bytes:
    return event(part, {"delta": {"content": text}})


def role(part: int) -> bytes:
    return event(part, {"delta": {"role": "assistant", "content": ""}})


def end(part: int, reason: str = "stop") -> bytes:
    return event(part, {"delta": {}, "finish_reason": reason})


def usage(part: int, prompt: int, completion: int) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return event(part, None, usage=counts)


def passed(transcript: Transcript, asked: Call, *events: bytes) -> list[Chunk]:
    """What of these events goes to the client, each arriving alone."""
    each_alone = structs.replace(Capabilities.of(VLLM()), stateful=None)
    reader = EventReader(asked, each_alone, 2**20, AnswerMemory(10**9))
    return [transcript.take(chunk) for each in events if (chunk := reader.feed(each)) is not None]


def texts(chunks: list[Chunk]) -> str:
    """The text that a client reads."""
    return "".join(
        choice.get("text") or choice.get("delta", {}).get("content") or ""
        for read in objects(chunks)
        for choice in read["choices"]
    )


def objects(chunks: list[Chunk]) -> list[dict[str, Any]]:
    found = [data(block + b"\n\n") for chunk in chunks for block in chunk.data.split(b"\n\n") if block]
    return [json.loads(each) for each in found if each and each != b"[DONE]"]


def broken(asked: Call, *words: str) -> tuple[Transcript, list[Chunk]]:
    """A transcript of a stream that broke off after these words."""
    transcript = Transcript(asked)
    assert transcript.rest(VLLM(), started=False) is asked
    return transcript, passed(transcript, asked, role(1), *(said(1, word) for word in words))


def test_the_first_part_passes_untouched() -> None:
    asked, transcript = call(), Transcript(call())
    whole = [role(1), said(1, "Once"), end(1), DONE]
    assert [chunk.data for chunk in passed(transcript, asked, *whole)] == whole


def test_the_next_target_is_asked_to_go_on() -> None:
    transcript, _ = broken(call(max_tokens=10, temperature=0.5), "Once", " upon")
    rest = json.loads(transcript.rest(VLLM(), started=True).body.raw)
    assert rest == {
        **ASKED,
        "temperature": 0.5,
        "max_tokens": 8,
        "messages": [*ASKED["messages"], {"role": "assistant", "content": "Once upon"}],  # type: ignore[misc]
        "continue_final_message": True,
        "add_generation_prompt": False,
    }


@pytest.mark.parametrize("adapter", [TGI(), LlamaCpp()])
def test_others_go_on_with_a_last_message_of_the_assistants(adapter: Any) -> None:
    transcript, _ = broken(call(), "Once", " upon")
    rest = transcript.rest(adapter, started=True)
    sent = json.loads(adapter.request(rest, Target("t", "http://t")).body)
    assert sent["messages"][-1]["content"] == "Once upon" and "continue_final_message" not in sent


def test_a_completion_goes_on_behind_its_prompt() -> None:
    asked = call("completions", max_tokens=10, min_tokens=1)
    transcript = Transcript(asked)
    passed(transcript, asked, event(1, {"text": " Once"}), event(1, {"text": " upon"}))
    rest = json.loads(transcript.rest(VLLM(), started=True).body.raw)
    assert (rest["prompt"], rest["max_tokens"], rest["min_tokens"]) == ("Tell: Once upon", 8, 0)
    assert "continue_final_message" not in rest
    seen = passed(transcript, asked, event(2, {"text": " a"}), event(2, {"text": " time", "finish_reason": "stop"}))
    assert texts(seen) == " a time"


def test_the_second_part_reads_on() -> None:
    asked = call()
    transcript, before = broken(asked, "Once", " upon")
    transcript.rest(VLLM(), started=True)
    after = passed(transcript, asked, role(2), said(2, " a"), said(2, " time"), end(2), usage(2, PROMPT + 2, 2), DONE)
    assert texts(before + after) == "Once upon a time"
    told = objects(before + after)
    assert {(each["id"], each["created"], each["model"]) for each in told} == {("id-1", 1, "served-1")}
    assert sum("role" in choice["delta"] for each in told for choice in each["choices"]) == 1
    assert after[-1].done and after[-1].data == DONE
    assert [chunk.usage for chunk in after if chunk.usage] == [Usage(PROMPT, 4)]
    assert sum(chunk.finished for chunk in after) == 1


def test_a_client_that_asked_sees_the_usage_of_the_whole() -> None:
    asked = call(include_usage=True)
    transcript, _ = broken(asked, "Once", " upon")
    transcript.rest(VLLM(), started=True)
    (chunk,) = passed(transcript, asked, usage(2, PROMPT + 2, 3))
    (told,) = objects([chunk])
    assert told["usage"] == {"prompt_tokens": PROMPT, "completion_tokens": 5, "total_tokens": PROMPT + 5}
    assert told["choices"] == [] and told["id"] == "id-1" and chunk.usage == Usage(PROMPT, 5)


def test_it_may_break_twice() -> None:
    asked = call(max_tokens=9)
    transcript, first = broken(asked, "Once", " upon")
    transcript.rest(VLLM(), started=True)
    second = passed(transcript, asked, role(2), said(2, " a"))
    rest = json.loads(transcript.rest(VLLM(), started=True).body.raw)
    assert (rest["messages"][-1]["content"], rest["max_tokens"]) == ("Once upon a", 6)
    third = passed(transcript, asked, role(3), said(3, " time"), end(3), usage(3, PROMPT + 3, 1), DONE)
    assert texts(first + second + third) == "Once upon a time"
    assert third[-2].usage == Usage(PROMPT, 4)


@given(st.lists(st.text("ab \n", min_size=1, max_size=4), min_size=1, max_size=12), st.data())
def test_no_text_is_lost_or_doubled_at_the_seam(words: list[str], chosen: st.DataObject) -> None:
    """Whether or not the next target says the blanks again that the client has already."""
    text = "".join(words)
    asked, cut = call(), chosen.draw(st.integers(0, len(words)))
    transcript, before = broken(asked, *words[:cut])
    rest = json.loads(transcript.rest(VLLM(), started=True).body.raw)
    had = rest["messages"][-1]["content"] if len(rest["messages"]) > 1 else ""
    assert "".join(words[:cut]).rstrip() == had
    left, size = text[len(had) :], chosen.draw(st.integers(1, 5))
    pieces = [left[i : i + size] for i in range(0, len(left), size)]
    after = passed(transcript, asked, role(2), *(said(2, piece) for piece in pieces), end(2), DONE)
    assert texts(before + after) == text


def test_a_seam_that_is_not_said_again_keeps_what_comes() -> None:
    asked = call()
    transcript, before = broken(asked, "Once\n\n")
    transcript.rest(VLLM(), started=True)
    assert texts(before + passed(transcript, asked, said(2, "upon"), said(2, "\n a"))) == "Once\n\nupon\n a"


def test_blanks_that_are_said_again_are_counted_once() -> None:
    """Digits have tokens of their own, and so has the blank before them."""
    asked = call(max_tokens=6, include_usage=True)
    transcript, before = broken(asked, "7", ",", " ")
    assert json.loads(transcript.rest(VLLM(), started=True).body.raw)["max_tokens"] == 4
    again = [role(2), *(said(2, word) for word in (" ", "8", ",", " ")), end(2, "length"), usage(2, PROMPT + 2, 4)]
    after = passed(transcript, asked, *again)
    assert texts(before + after) == "7, 8, " and after[-1].usage == Usage(PROMPT, 6)


def test_an_answer_that_has_all_its_tokens_only_ends() -> None:
    """One more is made, for its usage; nobody sees it and nobody pays for it."""
    asked = call(max_tokens=2, include_usage=True)
    transcript, _ = broken(asked, "Once", " upon")
    assert json.loads(transcript.rest(VLLM(), started=True).body.raw)["max_tokens"] == 1
    after = passed(transcript, asked, role(2), said(2, " a"), end(2, "stop"), usage(2, PROMPT + 2, 1), DONE)
    assert texts(after) == "" and sum(chunk.tokens for chunk in after) == 0
    told = objects(after)
    assert [choice["finish_reason"] for each in told for choice in each["choices"]] == ["length"]
    assert told[-1]["usage"]["completion_tokens"] == 2


def test_nothing_said_is_asked_anew_but_the_role_is_told_once() -> None:
    asked = call(max_tokens=5)
    transcript, _ = broken(asked)
    rest = transcript.rest(VLLM(), started=True)
    assert rest is asked
    after = passed(transcript, asked, role(2), said(2, "Once"), end(2), usage(2, PROMPT, 1))
    assert texts(after) == "Once" and not any(b'"role"' in chunk.data for chunk in after)
    assert after[-1].usage == Usage(PROMPT, 1)


def test_what_no_client_has_seen_is_forgotten() -> None:
    asked = call()
    transcript, _ = broken(asked, "never sent")
    assert transcript.rest(VLLM(), started=False) is asked
    again = [role(2), said(2, "Once")]
    assert [chunk.data for chunk in passed(transcript, asked, *again)] == again


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"guided_json": {}}, "guided_json"),
        ({"guided_choice": ["a"]}, "guided_choice"),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"messages": [{"role": "assistant", "content": "So"}]}, "messages"),
        ({"messages": []}, "messages"),
        ({"return_token_ids": True}, "return_token_ids"),
    ],
)
def test_calls_that_cannot_go_on(fields: dict[str, Any], word: str) -> None:
    assert Transcript(call(**fields)).obstacle() == word


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 1, "logprobs": False, "tool_choice": "auto", "tools": [{"type": "function"}]},
        {"n": None, "response_format": {"type": "text"}, "logprobs": None},
        {"response_format": {"type": "text"}, "stop": ["x"], "seed": 3},
    ],
)
def test_calls_that_can(fields: dict[str, Any]) -> None:
    assert Transcript(call(**fields)).obstacle() == ""


@pytest.mark.parametrize("prompt", [["a"], [1, 2], [[1], [2]], None])
def test_a_prompt_that_is_no_text_cannot_go_on(prompt: Any) -> None:
    assert Transcript(call("completions", prompt=prompt)).obstacle() == "prompt"


@pytest.mark.parametrize(
    ("delta", "word"),
    [
        ({"tool_calls": [{"index": 0}]}, "tools"),
        ({"function_call": {"name": "f"}}, "tools"),
        ({"reasoning": "Hm"}, "reasoning"),
        ({"reasoning_content": "Hm"}, "reasoning"),
    ],
)
def test_answers_that_cannot_go_on(delta: dict[str, Any], word: str) -> None:
    transcript, _ = broken(call(), "So")
    passed(transcript, call(), event(1, {"delta": delta}))
    assert transcript.obstacle() == word


def test_an_answer_that_has_ended_does_not_go_on() -> None:
    transcript, _ = broken(call(), "So")
    passed(transcript, call(), end(1))
    assert transcript.obstacle() == "ended"


def test_a_very_long_answer_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.upstream.continuation.MOST_TEXT", 10)
    transcript, _ = broken(call(), "So long an answer")
    assert transcript.obstacle() == "length"


def test_blanks_are_taken_off_once_for_a_seam() -> None:
    """The next target may be gone, too, before it says a word; and one that only says the blanks again."""
    asked = call(max_tokens=9)
    transcript, _ = broken(asked, "one", "\n")
    for _ in range(2):
        assert json.loads(transcript.rest(VLLM(), started=True).body.raw)["max_tokens"] == 8
    passed(transcript, asked, role(2), said(2, "\n"))
    assert json.loads(transcript.rest(VLLM(), started=True).body.raw)["max_tokens"] == 8


def test_an_event_that_cannot_be_joined_is_a_bad_reply() -> None:
    transcript, _ = broken(call(), "one")
    transcript.rest(VLLM(), started=True)
    with pytest.raises(BadReply):
        transcript.take(Chunk(b'data: {"choices":[{"delta":{"content":5}}]}\n\n', 1))


def test_an_odd_event_of_the_first_part_passes_and_bars_the_way() -> None:
    transcript, odd = Transcript(call()), Chunk(b'data: {"choices":[{"delta":{"content":5}}]}\n\n', 1)
    assert transcript.take(odd) is odd and transcript.obstacle() == "odd"


def test_an_adapter_that_cannot_ask_for_the_rest() -> None:
    class Unable(VLLM):
        def resume(self, call: Call, said: str) -> Call:
            raise RequestRefused("no")

    transcript, _ = broken(call(), "one")
    with pytest.raises(BadReply):
        transcript.rest(Unable(), started=True)
