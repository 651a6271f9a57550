"""Large bodies are read in windows, and are what they would be if they were read at once."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from unit.backends.test_body import OBJECTS, written

from backends import asked, large
from backends.asked import Asked
from backends.body import Body, Malformed

ELEMENTS = 200_000
TEXT = "The quick brown fox jumps over the lazy dog. "


def read(raw: bytes, elements: int = ELEMENTS, endpoint: str = "chat/completions") -> tuple[Body, Asked, int]:
    """Body, what it asks for, and the number of steps."""
    steps, count = large.read(endpoint, raw, elements), 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return (*end.value, count)
        count += 1


@pytest.fixture
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in {"WINDOW": 24, "TOKENS": 2, "LONG": 30, "END": 6}.items():
        monkeypatch.setattr(large, name, value)
    yield


LONG_TEXT = st.text(alphabet=st.sampled_from(["a", "é", "😀", '"', "\\", "\n", "{", ",", "\u2028"]), max_size=60)
LONG_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | LONG_TEXT,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        | st.lists(st.integers(0, 99999), min_size=5, max_size=40)
    ),
    max_leaves=10,
)
LONG_OBJECTS = st.dictionaries(st.sampled_from(["model", "a", "é", ""]) | st.text(max_size=4), LONG_VALUES, max_size=5)
DAMAGE = [
    b"",
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\x00",
    b"\xff",
    b"0",
    b".",
    b"-",
    b",,",
    b"1 2",
    b"\\u12",
]


def same(raw: bytes) -> None:
    try:
        body, _, _ = read(raw)
    except Malformed as error:
        assume("too long" not in str(error))
        with pytest.raises(Malformed):
            Body(raw)
        return
    whole = Body(raw)
    assert {name: bytes(value) for name, value in body.fields.items()} == {
        name: bytes(value) for name, value in whole.fields.items()
    }
    assert list(body.fields) == list(whole.fields)
    assert body.spans() == whole.spans()
    changes = {"model": b'"other"', "new": b"1"}
    assert body.spliced(changes) == whole.spliced(changes)


@pytest.mark.usefixtures("_small_windows")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(written(LONG_OBJECTS) | written(OBJECTS))
def test_a_body_read_in_windows_is_the_same_body(case: tuple[dict[str, Any], bytes]) -> None:
    same(case[1])


@pytest.mark.usefixtures("_small_windows")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(written(LONG_OBJECTS), st.data())
def test_what_is_refused_at_once_is_refused_in_windows(case: tuple[dict[str, Any], bytes], data: st.DataObject) -> None:
    raw = case[1]
    at, gone = data.draw(st.integers(0, len(raw))), data.draw(st.integers(0, 2))
    same(raw[:at] + data.draw(st.sampled_from(DAMAGE)) + raw[at + gone :])


@pytest.mark.usefixtures("_small_windows")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    st.lists(
        st.sampled_from(
            [
                b"{",
                b"}",
                b"[",
                b"]",
                b",",
                b":",
                b'"a"',
                b'"b":',
                b"1",
                b" " * 30,
                b"1," * 30,
                b'"',
                b"\\",
                b"[1,2]",
                b'"' + b"x" * 70 + b'"',
                b'"' + b"\\n" * 40 + b'"',
                b"\xc3\xa9",
                b'"\\ud800"',
                b"1" * 26,
                b"null",
            ]
        ),
        max_size=14,
    ).map(b"".join)
)
@example(b'{"a":[' + b"1," * 30 + b"1" + b'],"b":[' + b"[1],".join([b""] * 20) + b"1]}")
@example(b'{"a":' + b" " * 100 + b"1" + b" " * 100 + b',"b":' + b" " * 70 + b'"x"}' + b" " * 90)
@example(b'{"a":[1' + b" " * 100 + b"2]}")
@example(b'{"a":1' + b" " * 100 + b',"a":2}')
@example(b'{"a":"' + b"x" * 100 + b'","a":"' + b"x" * 100 + b'"}')
@example(b'{"a":{' + b"1," * 40 + b"1}}")
@example(b"[" + b"1," * 40 + b"1]")
@example(b'{"a":[' + b"1," * 40 + b"1]")
@example(b'{"a":1}' + b" " * 60 + b"x")
def test_so_is_what_is_hardly_json(raw: bytes) -> None:
    same(raw)
    same(b'{"k":1,' + raw + b"}")
    same(b'{"k":[' + raw + b"]}")


def chat(*messages: dict[str, Any], **fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": messages, **fields}).encode()


def at_once(raw: bytes, endpoint: str = "chat/completions") -> Asked:
    body = Body(raw)
    return asked.read(endpoint, len(raw), body.fields)


PIXELS = base64.b64encode(bytes(range(256)) * 8000).decode()


@pytest.mark.parametrize(
    ("endpoint", "raw"),
    [
        ("completions", json.dumps({"model": "m", "prompt": list(range(400_000)), "max_tokens": 7}).encode()),
        ("completions", json.dumps({"prompt": [list(range(1000))] * 300, "n": 2}, separators=(",", ":")).encode()),
        ("completions", json.dumps({"prompt": ["one", "two", TEXT * 50_000], "max_tokens": "1e2"}).encode()),
        ("embeddings", json.dumps({"input": [TEXT] * 2000}).encode()),
        ("embeddings", json.dumps({"input": [[0.25] * 3] * 20_000}).encode()),
        ("chat/completions", chat({"role": "user", "content": TEXT * 60_000}, logit_bias={"5": 1}, n=3)),
        ("chat/completions", chat({"role": "user", "content": 'é\n"' * 300_000})),
        (
            "chat/completions",
            chat(
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x," + PIXELS}}]},
                {"role": "assistant", "content": "An image."},
                {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": PIXELS}}, "What?"]},
                max_tokens=5,
            ),
        ),
    ],
    ids=["ids", "lists of ids", "texts", "inputs", "tiny lists", "text", "escapes", "media"],
)
def test_what_a_large_body_asks_for_is_the_same(endpoint: str, raw: bytes) -> None:
    _, what, _ = read(raw, endpoint=endpoint)
    expected = at_once(raw, endpoint)
    names = ("prompts", "choices", "candidates", "output", "text", "token_ids", "media")
    assert {name: getattr(what, name) for name in names} == {name: getattr(expected, name) for name in names}
    assert what.conversation is not None
    assert what.conversation.follow_up == asked.conversation(endpoint, Body(raw).fields).follow_up


def test_a_large_conversation_is_the_same_in_all_its_turns() -> None:
    """Its features are read from what is left of it, and must not differ from gateway to gateway."""
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x," + PIXELS}}]}
    system = {"role": "system", "content": TEXT * 10_000}
    turns = ([{"role": "assistant", "content": "Yes."}] * n for n in (0, 3))
    first, later = (read(chat(system, image, *answers))[1].conversation for answers in turns)
    assert first is not None and later is not None
    assert (first.shared, first.question) == (later.shared, later.question)
    assert (first.follow_up, later.follow_up) == (False, True)
    assert large._MARK not in b"".join([*(first.shared or ()), first.question])
    other = read(chat({"role": "system", "content": TEXT * 10_001}, image))[1].conversation
    assert other is not None and other.shared != first.shared


def objects(count: int) -> bytes:
    """So many elements: an object, three keys, a list, and in it objects with a key each."""
    assert count % 2 == 1
    return b'{"model":"m","messages":[],"junk":[' + b",".join([b'{"":0}'] * ((count - 6) // 2)) + b"]}"


def test_elements_are_counted_exactly() -> None:
    assert read(objects(1005), 1006)[0].get("model", str, "") == "m"
    read(objects(1005), 1005)
    with pytest.raises(Malformed, match="more than 1003 objects"):
        read(objects(1005), 1003)


@pytest.mark.parametrize(
    "value",
    ["[[1],[2],[3]]", '["a","b","c"]', '{"a":1,"b" :2, "c"\n:3}', "[{},{},{}]"],
)
def test_what_an_element_is(value: str) -> None:
    raw = b'{"x":' + value.encode() + b"}"
    read(raw, 6)
    with pytest.raises(Malformed, match="more than 5 objects"):
        read(raw, 5)


@pytest.mark.parametrize("text", ['{"a":[{"b":1}]}' * 100, "[" * 1000, ": " * 1000, '\\"' * 1000])
def test_what_stands_in_a_text_is_no_element(text: str) -> None:
    read(chat({"role": "user", "content": text}), 8)


def test_numbers_are_no_elements() -> None:
    assert read(json.dumps({"prompt": list(range(200_000))}).encode(), 10, "completions")[1].token_ids == 200_000


HOSTILE = {
    "junk": lambda: b'{"model":"m","junk":[' + b",".join([b'{"":0}'] * 700_000) + b"]}",
    "tiny messages": lambda: (
        b'{"model":"m","messages":[' + b",".join([b'{"role":"user","content":"a"}'] * 170_000) + b"]}"
    ),
    "keys": lambda: b"{" + b",".join(b'"k%d":1' % index for index in range(400_000)) + b"}",
    "deep": lambda: b'{"model":' + b'[{"":' * 1_000_000,
    "lists": lambda: b'{"model":"m","x":[' + b",".join([b"[]"] * 1_600_000) + b"]}",
    "texts": lambda: b'{"model":"m","x":[' + b",".join([b'""'] * 1_600_000) + b"]}",
}
LEGAL = {
    "text": lambda: b'{"model":"m","messages":[{"role":"user","content":"' + TEXT.encode() * 110_000 + b'"}]}',
    "data": lambda: b'{"model":"m","messages":[{"role":"user","content":"' + b'\\"data:' * 700_000 + b'"}]}',
    "escapes": lambda: b'{"model":"m","messages":[{"role":"user","content":"' + b"\\\\" * 2_500_000 + b'"}]}',
    "code points": lambda: b'{"model":"m","messages":[{"role":"user","content":"' + b"\\u4e00" * 800_000 + b'"}]}',
    "ids": lambda: b'{"model":"m","prompt":[' + b",".join([b"1"] * 2_500_000) + b"]}",
    "space": lambda: b'{"model":"m","messages":' + b" " * 5_000_000 + b"[]}",
    "characters": lambda: b'{"model":"m","messages":[{"role":"user","content":"' + "语é".encode() * 1_000_000 + b'"}]}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_bodies_of_too_many_pieces_are_refused(name: str) -> None:
    raw = HOSTILE[name]()
    assert large.is_large(raw, ELEMENTS)
    with pytest.raises(Malformed, match=r"more than 200000 objects|more than 1000 top-level keys|too deeply"):
        read(raw)


@pytest.mark.parametrize("name", LEGAL)
def test_large_bodies_are_read_in_many_steps(name: str) -> None:
    """What a step looks at is bounded, so its time is: bytes by the window, texts and brackets by their number."""
    raw = LEGAL[name]()
    assert large.is_large(raw, ELEMENTS)
    body, _, steps = read(raw)
    assert steps >= len(raw) // large.WINDOW
    assert body.get("model", str, "") == "m"
    assert len(msgspec.json.encode(body.fields)) >= len(raw.translate(None, b" \n")) * 0.9


def longest(raw: bytes) -> float:
    """The processor's seconds of the longest step, with what a body is asked before it is read."""
    started, most = time.thread_time(), 0.0
    large.is_large(raw, ELEMENTS)
    steps = large.read("chat/completions", raw, ELEMENTS)
    with suppress(StopIteration, Malformed):
        while True:
            next(steps)
            most, started = max(most, time.thread_time() - started), time.thread_time()
    return max(most, time.thread_time() - started)


@pytest.mark.parametrize("name", [*HOSTILE, *LEGAL])
def test_no_body_holds_others_twice_as_long_as_a_benign_one(name: str) -> None:
    """Measured in the same run, in time of the processor, and as the best of some: a busy machine spoils many."""
    raw = (HOSTILE | LEGAL)[name]()
    benign = TEXT.encode() * (len(raw) // len(TEXT))
    benign = b'{"model":"m","messages":[{"role":"user","content":"' + benign + b'"}]}'
    odd, plain = (min(longest(body) for _ in range(5)) for body in (raw, benign))
    assert odd < 2 * max(plain, 0.001), f"{odd * 1e3:.2f} ms beside {plain * 1e3:.2f}"


SHAPES = {
    "objects": (b'{"model":"m","junk":[', b'{"":0},', b"0]}"),
    "messages": (b'{"model":"m","messages":[', b'{"role":"user","content":"a"},', b"{}]}"),
    "keys": (b'{"model":"m"', b',"%07d":1', b"}"),
    "nested": (b'{"model":"m","junk":[', b"[" * 400 + b"]" * 400 + b",", b"0]}"),
    "texts": (b'{"model":"m","junk":[', b'"",', b"0]}"),
    "ids": (b'{"model":"m","prompt":[', b"1,", b"1]}"),
    "quotes": (b'{"model":"m","messages":[{"role":"user","content":"', b'\\"data:', b'"}]}'),
}


def once(raw: bytes) -> float:
    """The processor's seconds of its reading, or of the longest step where it is read in windows."""
    if large.is_large(raw, ELEMENTS):
        return longest(raw)
    started = time.thread_time()
    with suppress(Malformed):
        what = asked.read("chat/completions", len(raw), Body(raw).fields)
        assert what.choices
    return time.thread_time() - started


@cache
def chat_of_many_turns() -> bytes:
    turns = [{"role": "user", "content": TEXT * 9}] * (large.ONE_PASS // 500)
    return msgspec.json.encode({"model": "m", "messages": turns})


@pytest.mark.parametrize("size", [2**16, 2**18, 390_000])
@pytest.mark.parametrize("name", SHAPES)
def test_none_that_is_read_at_once_does_either(name: str, size: int) -> None:
    """Beside the longest that chats of many turns hold others up, which are read at once up to 2 MiB."""
    start, piece, end = SHAPES[name]
    count = size // len(piece)
    raw = start + (b"".join(piece % at for at in range(count)) if b"%" in piece else piece * count) + end
    odd, plain = (min(once(body) for _ in range(4)) for body in (raw, chat_of_many_turns()))
    assert odd < 2 * plain, f"{odd * 1e3:.2f} ms beside {plain * 1e3:.2f}"


@pytest.mark.parametrize(
    ("raw", "is_large"),
    [
        (b"x" * 2 * ELEMENTS, False),
        (b"x" * (large.ONE_PASS + 1), True),
        (b'"' + b"x" * large.SURELY_FEW + b'"', True),
        (b'{"role":"user","content":"' + b"x" * 100 + b'"},' * 1, False),
        (b'{"role":"user","content":"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"},' * 10_000, False),
        (b'{"":0},' * 90_000, False),
        (b'{"":0},' * 101_000, True),
        (b"[]," * 200_001, True),
        (b'"",' * 200_001, True),
    ],
)
def test_which_bodies_are_read_in_windows(raw: bytes, is_large: bool) -> None:
    assert large.is_large(raw, ELEMENTS) == is_large
