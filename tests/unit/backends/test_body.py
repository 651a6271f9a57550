"""A body keeps every byte it is not told to change, and refuses what two readers could read differently."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.body import Body, Malformed

SPACE = st.text(alphabet=" \t\r\n", max_size=3)
TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8)
# Text that is likely to confuse a reader who looks for quotes and braces.
TRICKY = st.sampled_from(['"', '\\"', "}", "{", "\\", ":", ',"a":1}', '":', "\u2028", "é", "😀", "\x00", "model"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT | TRICKY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT | TRICKY, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXT | TRICKY, VALUES, max_size=6)


@st.composite
def written(draw: st.DrawFn, objects: st.SearchStrategy[dict[str, Any]] = OBJECTS) -> tuple[dict[str, Any], bytes]:
    """An object and one way to write it: any spacing, escaped or not."""
    value = draw(objects)

    def space() -> str:
        return draw(SPACE)

    def write(part: Any) -> str:
        return json.dumps(part, ensure_ascii=draw(st.booleans()), separators=(space() + "," + space(), ":" + space()))

    members = [f"{space()}{write(name)}{space()}:{space()}{write(part)}{space()}" for name, part in value.items()]
    return value, f"{space()}{{{','.join(members) or space()}}}{space()}".encode()


@given(written())
def test_nothing_changes_when_nothing_is_spliced(case: tuple[dict[str, Any], bytes]) -> None:
    value, raw = case
    body = Body(raw)
    assert body.spliced({}) == raw
    assert list(body.fields) == list(value)
    assert body.decoded() == value


@given(written(), VALUES, st.data())
def test_a_spliced_field_changes_and_no_other_byte(
    case: tuple[dict[str, Any], bytes], new: Any, data: st.DataObject
) -> None:
    value, raw = case
    if not value:
        return
    name = data.draw(st.sampled_from(list(value)))
    body = Body(raw)
    encoded = json.dumps(new).encode()
    spliced = body.spliced({name: encoded})
    assert json.loads(spliced) == {**value, name: new}
    old = bytes(body.fields[name])
    at = next(
        i for i in range(len(raw)) if raw[:i] + encoded + raw[i + len(old) :] == spliced and raw[i:].startswith(old)
    )
    assert at > 0


@given(written(), st.dictionaries(TEXT, VALUES, min_size=1, max_size=3))
def test_added_fields_are_read_beside_the_old_ones(case: tuple[dict[str, Any], bytes], more: dict[str, Any]) -> None:
    value, raw = case
    spliced = Body(raw).spliced({name: json.dumps(part).encode() for name, part in more.items()})
    assert json.loads(spliced) == {**value, **more}
    assert Body(spliced).decoded() == {**value, **more}


@given(written())
def test_an_added_field_changes_no_other_byte(case: tuple[dict[str, Any], bytes]) -> None:
    value, raw = case
    if "new" in value:
        return
    spliced = Body(raw).spliced({"new": b"1"})
    member = b',"new":1' if value else b'"new":1'
    assert spliced.count(member) == 1
    assert spliced.replace(member, b"") == raw


CHANGES = st.none() | VALUES.map(lambda value: json.dumps(value).encode())


@given(written(), st.dictionaries(TEXT | TRICKY, CHANGES, max_size=3), st.data())
def test_fields_are_set_and_taken_out_and_the_others_stay(
    case: tuple[dict[str, Any], bytes], more: dict[str, bytes | None], data: st.DataObject
) -> None:
    value, raw = case
    body = Body(raw)
    changes = more | {name: data.draw(CHANGES) for name in value if data.draw(st.booleans())}
    changed = body.changed(changes)
    kept = {name: bytes(part) for name, part in body.fields.items() if changes.get(name, b"") is not None}
    expected = kept | {name: part for name, part in changes.items() if part is not None}
    assert {name: bytes(part) for name, part in changed.fields.items()} == expected
    assert {name: changed.raw[start:end] for name, (start, end) in changed.spans().items()} == expected
    read = Body(changed.raw)
    assert {name: bytes(part) for name, part in read.fields.items()} == expected
    assert Body(changed.spliced({"new": b"1"})).fields.keys() == expected.keys() | {"new"}
    if not changes:
        assert changed.raw == raw


@given(written(OBJECTS.filter(bool)), VALUES, st.data())
def test_a_repeated_key_is_always_refused(case: tuple[dict[str, Any], bytes], other: Any, data: st.DataObject) -> None:
    value, raw = case
    name = data.draw(st.sampled_from(list(value)))
    spelled = data.draw(st.sampled_from([json.dumps(name), json.dumps(name, ensure_ascii=False), _escaped(name)]))
    repeated = f"{spelled}: {json.dumps(data.draw(st.sampled_from([other, value[name]])))}".encode()
    body = raw.strip()
    first = body.replace(b"{", b"{" + repeated + b",", 1)
    last = body[:-1] + b"," + repeated + b"}"
    for doubled in (first, last):
        with pytest.raises(Malformed):
            Body(doubled)


def _escaped(text: str) -> str:
    units = text.encode("utf-16-be")
    return '"' + "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2)) + '"'


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": 1, "a": 1}',
        b'{"a": 12, "a": 1}',
        b'{"a": 1, "a": 12}',
        b'{"a": 1, "b": 1, "a": 1}',
        b'{"a": [], "a": []}',
        b'{"model": "x", "mod\\u0065l": "y"}',
        b'{"": 1, "": 1}',
    ],
)
def test_repeated_keys_in_awkward_places(raw: bytes) -> None:
    with pytest.raises(Malformed, match="more than once"):
        Body(raw)


def test_keys_repeated_below_the_top_are_the_servers_business() -> None:
    raw = b'{"metadata": {"a": 1, "a": 2}}'
    assert Body(raw).spliced({}) == raw


@given(st.binary(max_size=40))
def test_any_bytes_are_a_body_or_malformed(raw: bytes) -> None:
    try:
        body = Body(raw)
    except Malformed:
        return
    assert isinstance(json.loads(raw), dict)
    assert body.decoded() == json.loads(raw)


@given(written(), st.data())
def test_a_damaged_body_is_still_json_or_malformed(case: tuple[dict[str, Any], bytes], data: st.DataObject) -> None:
    _, raw = case
    at = data.draw(st.integers(0, len(raw) - 1))
    damage = data.draw(
        st.sampled_from([b"", b'"', b"\\", b"{", b"}", b",", b":", b"\x00", b"\xff", b"0", b".", b"e", b"-"])
    )
    damaged = raw[:at] + damage + raw[at + 1 :]
    try:
        body = Body(damaged)
    except Malformed:
        return
    assert isinstance(json.loads(damaged), dict)
    for name in body.fields:
        for kind in (str, bool, int, dict, list):
            try:
                body.get(name, kind, None)
            except Malformed as error:
                assert error.param == name


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b" ",
        b"null",
        b"[]",
        b'"text"',
        b"3",
        b"{",
        b"}",
        b'{"a"}',
        b'{"a":}',
        b'{"a":1,}',
        b"{,}",
        b'{"a":1 "b":2}',
        b'{"a":1}x',
        b'{"a":1}{}',
        b'{"a":1}\x00',
        b"{'a':1}",
        b"{a:1}",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":01}',
        b'{"a":1.}',
        b'{"a":.5}',
        b'{"a":+1}',
        b'{"a":1e}',
        b'{"a":0x1}',
        b'{"a":tru}',
        b'{"a":"\x01"}',
        b'{"a":"line\nbreak"}',
        b'{"a":"\\q"}',
        b'{"a":"\\u12"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\\udc00\\ud800"}',
        b'{"\\ud800":1}',
        b'{"a":"\xff"}',
        b'{"a":"\xed\xa0\x80"}',  # a surrogate as bytes
        b'{"a":"\xc0\xaf"}',  # overlong
        b'\xef\xbb\xbf{"a":1}',  # byte order mark
        '{"a":1}'.encode("utf-16"),
        b'{"a":1}//comment',
        b'{"a":["\\q"]}',
        b'{"a":{"b":"\xff"}}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"messages":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    ],
    ids=lambda raw: repr(raw[:24]),
)
def test_what_is_no_json_object_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        Body(raw)


@pytest.mark.parametrize("colon", [b":", b" :", b"\n: "])
def test_half_a_million_keys_do_not_hold_the_event_loop(colon: bytes) -> None:
    raw = b"{" + b",".join(b'"k%d"%s1' % (i, colon) for i in range(500_000)) + b"}"
    started = time.thread_time()  # what others on the machine do is not counted
    with pytest.raises(Malformed):
        Body(raw)
    assert time.thread_time() - started < 1.0


def test_a_large_field_with_many_keys_of_its_own_is_no_flood() -> None:
    """The bound is on top-level keys; a table of token biases is one field."""
    biases = {str(token): 1 for token in range(20_000)}
    raw = json.dumps({"model": "m", "logit_bias": biases}).encode()
    assert Body(raw).spliced({}) == raw


@pytest.mark.parametrize("name", ["messages", "prompt", "input", "tools"])
def test_fields_that_are_rightly_large_are_taken(name: str) -> None:
    raw = json.dumps({"model": "m", name: [{"content": '":' * 50} for _ in range(20_000)]}).encode()
    assert Body(raw).get("model", str, "") == "m"


def test_get_reads_one_field_of_a_type() -> None:
    body = Body(b'{"model": "m\\u00e9", "n": 2, "stream": null, "big": 1e999, "deep": {"a": [1]}}')
    assert body.get("model", str, "") == "mé"
    assert body.get("n", int, 0) == 2
    assert body.get("stream", bool, False) is False
    assert body.get("absent", str, "default") == "default"
    with pytest.raises(Malformed) as caught:
        body.get("n", str, "")
    assert caught.value.param == "n"
    with pytest.raises(Malformed):
        body.get("big", float, 0.0)
