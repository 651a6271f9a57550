"""A batch's input: where its lines are, what of them is one piece of work, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.batches.lines import CHUNK_BYTES, CHUNK_LINES, MAX_ERRORS, Checked, check, lines, request, split
from gateway.core.errors import BadRequest

EMBED = "/v1/embeddings"


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def line(number: int, text: str = "x", **fields: Any) -> bytes:
    shown = {"custom_id": f"c{number}", "method": "POST", "url": EMBED, "body": {"model": "m", "input": text}}
    return json.dumps({**shown, **fields}).encode()


async def checked(*raw: bytes, most_lines: int = 100_000, most_bytes: int = 1 << 24) -> Checked:
    return await check(pieces(b"\n".join(raw), 1000), EMBED, most_lines, most_bytes)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_lines_are_where_they_begin(size: int) -> None:
    data = b"one\r\n\n  \ntwo\nthree"
    found = [each async for each in lines(pieces(data, size), 10)]
    assert found == [(0, b"one\r"), (9, b"two"), (13, b"three")]
    assert all(data[offset:].startswith(text) for offset, text in found)


@pytest.mark.parametrize("data", [b"short\n" + b"x" * 11, b"short\n" + b"x" * 11 + b"\nmore"])
@pytest.mark.parametrize("size", [1, 100])
async def test_a_line_that_is_too_long_is_not_collected(data: bytes, size: int) -> None:
    with pytest.raises(BadRequest, match="begins at byte 6"):
        _ = [each async for each in lines(pieces(data, size), 10)]


async def test_pieces_of_work_cover_all_lines_and_nothing_else() -> None:
    raw = [line(number) for number in range(2 * CHUNK_LINES + 3)]
    data = b"\n\n".join(raw)
    found = await check(pieces(data, 777), EMBED, 1000, 1000)
    assert found.errors == [] and found.total == len(raw)
    assert [work.count for work in found.work] == [CHUNK_LINES, CHUNK_LINES, 3]
    read = [each for work in found.work for each in split(data[work.offset : work.offset + work.length])]
    assert read == raw
    assert [work.first for work in found.work] == [0, CHUNK_LINES, 2 * CHUNK_LINES]


async def test_large_lines_are_pieces_of_their_own() -> None:
    found = await checked(*(line(number, "x" * (CHUNK_BYTES * 2 // 3)) for number in range(3)))
    assert [work.count for work in found.work] == [1, 1, 1]


async def test_so_many_mistakes_are_told() -> None:
    found = await checked(*[b"{"] * (MAX_ERRORS + 10))
    assert (len(found.errors) == MAX_ERRORS and found.work == []) or found.errors[-1].line == MAX_ERRORS


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"[]", "invalid_request"),
        (b'"x"', "invalid_request"),
        (b"\xff\xfe", "invalid_json_line"),
        (line(1, custom_id=7), "invalid_request"),
        (line(1, custom_id="x" * 600), "missing_required_parameter"),
        (line(1, method="post"), "invalid_method"),
        (line(1, url="/v1/chat/completions"), "invalid_url"),
        (line(1, body="x"), "invalid_request"),
        (line(1, body={"model": 1}), "missing_required_parameter"),
        (line(1, body={"model": "m", "stream": True}), "invalid_request"),
        (line(1, body={"model": "m", "stream": "yes"}), "invalid_request"),
        (b'{"custom_id": "c", "method": "POST", "url": "/v1/embeddings"}', "invalid_request"),
    ],
)
async def test_what_is_wrong_with_a_line_has_a_code(raw: bytes, code: str) -> None:
    found = await checked(line(0), raw)
    assert [(error.line, error.code) for error in found.errors] == [(2, code)]


async def test_too_many_lines_are_a_mistake_of_the_file() -> None:
    found = await checked(line(0), line(1), line(2), most_lines=2)
    assert [(error.line, error.code) for error in found.errors] == [(None, "too_many_requests")]


async def test_a_line_above_the_limit_is_a_mistake() -> None:
    found = await checked(line(0), line(1, "x" * 200), most_bytes=150)
    assert [(error.line, error.code) for error in found.errors] == [(2, "line_too_long")]


def test_a_lines_body_is_as_it_was_written() -> None:
    raw = b'{"custom_id":"a","method":"POST","url":"/v1/embeddings","body":{"model" : "m", "n":1.50}}'
    assert request(raw) == ("a", b'{"model" : "m", "n":1.50}')
