"""Calls in a model's text: found however it is cut, told as soon as they are sure; all else stays text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.tools.parser import FORMATS, Parser, calls_in
from gateway.dialects.tools.tape import Arguments, Begun, Found, Text

NAMES = {"f", "g"}
A = '{"a": "}<\\"{[", "b": [1, {"c": null}]}'


def written(name: str, arguments: str = A, called: str = "arguments") -> str:
    return f'{{"name": "{name}", "{called}": {arguments}}}'


def summed(every: list[Found]) -> list[Any]:
    """Texts, and calls as name, id and arguments."""
    told: list[Any] = []
    for found in every:
        if isinstance(found, Text):
            if told and isinstance(told[-1], str):
                told[-1] += found.text
            else:
                told.append(found.text)
        elif isinstance(found, Begun):
            told.append([found.name, found.id, ""])
        elif isinstance(found, Arguments):
            told[-1][2] += found.text
    return told


def streamed(format: str, pieces: list[str]) -> list[Any]:
    parser, every = Parser(format, NAMES), list[Found]()
    for piece in pieces:
        every += parser.feed(piece)
    return summed([*every, *parser.end()])


H, M = "<tool_call>", "[TOOL_CALLS]"
CALLS: list[tuple[str, str, list[Any]]] = [
    ("hermes", f"{H}{written('f')}</tool_call>", [["f", "", A]]),
    ("hermes", f"I look.\n{H}\n{written('f')}\n</tool_call>\n", ["I look.\n", ["f", "", A]]),
    ("hermes", f"\n{H}{written('f')}</tool_call>\n{H}{written('g', '{}')}", [["f", "", A], ["g", "", "{}"]]),
    ("hermes", f'{H}{{"arguments": {A}, "id": 5, "name": "f"}}</tool_call> So.', [["f", "", A], " So."]),
    ("hermes", f"{H}{written('f', json.dumps(A))}</tool_call>", [["f", "", A]]),
    ("hermes", f"{H} {H}{written('f')}</tool_call>", [f"{H} ", ["f", "", A]]),
    ("hermes", f"{H}{written('unknown')}</tool_call>", [["unknown", "", A]]),
    ("llama", written("f", called="parameters"), [["f", "", A]]),
    ("llama", f" {written('f')}; {written('g', '{}')}\n", [["f", "", A], ["g", "", "{}"]]),
    ("llama", f'<|python_tag|>{{"type": "function", "name": "f", "parameters": {A}}}', [["f", "", A]]),
    ("llama", f"I look. <|python_tag|>{written('f')}", ["I look. ", ["f", "", A]]),
    ("llama", f"{written('f')} So.", [["f", "", A], " So."]),
    ("mistral", f"{M}[{written('f')}]", [["f", "", A]]),
    ("mistral", f"I look.{M} [{written('f')}, {written('g', '{}')}]", ["I look.", ["f", "", A], ["g", "", "{}"]]),
    ("mistral", f"{M}f{A}{M}g{{}}", [["f", "", A], ["g", "", "{}"]]),
    ("mistral", f"{M}f[ARGS]{A}", [["f", "", A]]),
    ("mistral", f"{M}my.f-1[CALL_ID]a1B[ARGS] {A} So.", [["my.f-1", "a1B", A], " So."]),
]
TEXTS: list[tuple[str, str]] = [
    ("hermes", ""),
    ("hermes", " \n"),
    ("hermes", "a < b, <tool, <tool_cal"),
    ("hermes", f"{H}"),
    ("hermes", f"{H}f(1)</tool_call> and"),
    ("hermes", f'{H}{{"name": "f"}}</tool_call>\n'),
    ("hermes", f'{H}{{"name": 5, "arguments": {{}}}}</tool_call>'),
    ("hermes", f'{H}{{"name": "f", "arguments": [1]}}</tool_call>'),
    ("hermes", f'{H}{{"name": "f", "arguments": null}}</tool_call>'),
    ("hermes", f'{H}{{"name": "f", "argum'),
    ("hermes", f'{H}{{"arguments": {A}, "name'),
    ("llama", "Hello."),
    ("llama", f" {written('unknown')}"),
    ("llama", f"So: {written('f')}"),
    ("llama", '{"name": "f", "age": 5}'),
    ("llama", '<|python_tag|>search.call(query="x")'),
    ("llama", "<|python"),
    ("mistral", f"{M}"),
    ("mistral", f"{M}[]"),
    ("mistral", f'{M}[{{"name": "f"}}] and'),
    ("mistral", f"{M}f(1)"),
    ("mistral", f"{M}f[ARGS]5"),
    ("mistral", "[TOOL_CALLS"),
]
BROKEN: list[tuple[str, str, list[Any]]] = [
    ("hermes", f'{H}{{"name": "f", "arguments": {{"a": ', [["f", "", '{"a": ']]),
    ("hermes", f'{H}{{"name": "f", "arguments": {{"a": oh}}}}</tool_call>', [["f", "", '{"a": oh}']]),
    ("mistral", f'{M}f{{"a": "b', [["f", "", '{"a": "b']]),
    ("llama", '{"name": "f", "parameters": {"a": 1]', [["f", "", '{"a": 1]']]),
]
"""What looked like a call, and what a stream has told of it before it broke off."""


@pytest.mark.parametrize(("format", "text", "told"), CALLS)
def test_calls(format: str, text: str, told: list[Any]) -> None:
    assert summed(calls_in(format, text, NAMES)) == told
    for size in (1, 2, 3, 7, len(text)):
        assert streamed(format, [text[at : at + size] for at in range(0, len(text), size)]) == told


@pytest.mark.parametrize(("format", "text"), TEXTS)
def test_what_is_no_call_stays_text(format: str, text: str) -> None:
    expected = [text] if text else []
    assert summed(calls_in(format, text, NAMES)) == expected
    for size in (1, 2, 3, 7, 100):
        assert streamed(format, [text[at : at + size] for at in range(0, len(text), size)]) == expected


@pytest.mark.parametrize(("format", "text", "told"), BROKEN)
def test_a_call_that_breaks_off_is_text_unless_a_stream_has_told_of_it(format: str, text: str, told: list[Any]) -> None:
    assert summed(calls_in(format, text, NAMES)) == [text]
    assert streamed(format, list(text)) == told


@given(st.data())
def test_however_it_is_cut(data: st.DataObject) -> None:
    format, text, told = data.draw(st.sampled_from([*CALLS, *((f, t, [t] if t else []) for f, t in TEXTS), *BROKEN]))
    ends = sorted(data.draw(st.sets(st.integers(0, len(text)))))
    pieces = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    assert streamed(format, pieces) == told


PARTS = [
    H, "</tool_call>", M, "[ARGS]", "<|python_tag|>", written("f"), A, "f", "[", "]", "{", "}", '"', "\\",
    ",", ";", ":", " ", "name", '"name": "g"', '"arguments": ', "\u00e9",
]  # fmt: skip


@given(st.sampled_from(sorted(FORMATS)), st.lists(st.sampled_from(PARTS)), st.data())
def test_any_text_is_told_the_same_however_it_is_cut_and_none_of_it_is_lost(
    format: str, parts: list[str], data: st.DataObject
) -> None:
    text = "".join(parts)
    ends = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=9)))
    pieces = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    told = streamed(format, pieces)
    assert told == streamed(format, [text])
    if not any(isinstance(each, list) for each in told):
        assert "".join(told) == text
    whole = summed(calls_in(format, text, NAMES))
    assert all(isinstance(json.loads(each[2]), dict) for each in whole if isinstance(each, list))
    if not any(isinstance(each, list) for each in whole):
        assert "".join(whole) == text


@pytest.mark.parametrize(
    ("format", "begun"),
    [
        ("hermes", f'{H}{{"name": "f", "arguments": {{'),
        ("llama", '{"name": "f", "parameters": {'),
        ("mistral", f"{M}f{{"),
        ("mistral", f'{M}[{{"name": "f", "arguments": {{'),
    ],
)
def test_arguments_are_told_by_the_event_that_shows_them(format: str, begun: str) -> None:
    parser = Parser(format, NAMES)
    assert parser.feed(begun[:-1]) == []
    assert parser.feed(begun[-1]) == [Begun("f"), Arguments("{")]
    assert parser.feed('"a": "x') == [Arguments('"'), Arguments('a"'), Arguments(': "'), Arguments("x")]
    assert parser.feed("y") == [Arguments("y")]


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_text_is_told_by_the_event_that_brings_it(format: str) -> None:
    parser = Parser(format, NAMES)
    assert parser.feed("Hello") == [Text("Hello")]
    assert parser.feed(" there \n") == [Text(" there \n")]


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_reading_takes_as_long_as_the_text_is(format: str) -> None:
    """What was read is not looked at again, nor kept."""
    begin = {"hermes": f'{H}{{"name": "f", "arguments": ', "llama": '{"name": "f", "parameters": ', "mistral": f"{M}f"}
    parser = Parser(format, NAMES)
    parser.feed(begin[format] + '{"a": "')
    for _ in range(100):
        assert parser.feed("xyz") == [Arguments("xyz")]
        assert len(parser._tape.text) <= 3 and not parser._tape._kept
    assert parser.feed('"}')[:2] == [Arguments('"'), Arguments("}")]
