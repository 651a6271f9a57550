"""The fast way to compose YAML: the same nodes at the same places as PyYAML's own, and no crash."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import composer

TEXT = """\
# é, 😀 and tabs
routes: &all
  one: {a: 1, b: "2", c: 'three', d: 0x1f, e: ~, f: yes, g: 1.5, h: 2024-01-01, "i": !!str 4, j: ! 5}
  "two":
  - - deep
    - {k: [x, y], "l": *all}
  - |
    several
    lines
  - >-
    folded
    text
  ? complex
  : value
  e😀: é
empty: ''
nothing:
"""


def shape(node: yaml.Node | None, seen: frozenset[int] = frozenset()) -> object:
    """All that the decoder looks at. Of an empty value libyaml has another place: behind the blanks."""
    if node is None or id(node) in seen:
        return None
    place = node.tag, node.start_mark.line, node.start_mark.column
    seen |= {id(node)}
    if isinstance(node, yaml.MappingNode):
        return place, [(shape(key, seen), shape(value, seen)) for key, value in node.value]
    if isinstance(node, yaml.SequenceNode):
        return place, [shape(value, seen) for value in node.value]
    return (place if node.value or node.style else node.tag), node.value


def test_libyaml_is_there() -> None:
    """Else nothing here is tested."""
    assert composer.CParser is not None
    assert shape(composer._fast(TEXT)) == shape(yaml.compose(TEXT, Loader=yaml.SafeLoader))


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "a", "[]", "﻿a: 1", "a: 1\n...\n"])
def test_small_texts_are_the_same(text: str) -> None:
    assert shape(composer.compose(text)) == shape(yaml.compose(text, Loader=yaml.SafeLoader))


UNTAGGED = TEXT.replace("!!str 4", "4").replace("! 5", "5")
"""The two parsers differ about a comma in a tag, and about a tag without a name before nothing. No table has any."""


@given(st.integers(0, len(UNTAGGED) - 1), st.sampled_from(list("{}[]:,-#&*|>'\"%@` \n\t0a")))
def test_a_damaged_text_is_read_as_before_or_refused_as_before(at: int, damage: str) -> None:
    text = UNTAGGED[:at] + damage + UNTAGGED[at + 1 :]
    try:
        expected = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        try:
            composer.compose(text)
        except yaml.YAMLError as found:
            assert str(found) == str(error)
        return
    assert shape(composer.compose(text)) == shape(expected)


def test_what_is_wrong_is_told_in_the_words_of_pyyaml() -> None:
    for text in ("a: b: c", "routes: @x", "a: [", "a: \x01", "a: \ud800", "a: 1\n---\nb: 2", "a: *nobody"):
        with pytest.raises(yaml.YAMLError) as expected:
            yaml.compose(text, Loader=yaml.SafeLoader)
        with pytest.raises(yaml.YAMLError) as found:
            composer.compose(text)
        assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("text", ["[" * 300_000, "- " * 300_000, "a: " + "{a: " * 300_000])
def test_deep_nesting_does_not_end_the_process(text: str) -> None:
    with pytest.raises(RecursionError):
        composer.compose(text)


def test_without_libyaml_it_works_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = shape(composer.compose(TEXT))
    monkeypatch.setattr(composer, "CParser", None)
    assert shape(composer.compose(TEXT)) == fast
