"""Forms are read as they come, in whatever pieces: the same is found, and what is odd is refused."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from backends.body import Malformed
from backends.form import MOST_HEAD, MOST_PARTS, MOST_VALUE, Form, FormReader

KIND = "multipart/form-data; boundary=frontier"
FILE = b"\x00\r\n--front\r\n\r\n--frontie" * 20


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--frontier\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--frontier--\r\n"


GOOD = form(
    part("language", "é".encode()),
    part("model", b"ears"),
    part("empty", b""),
    part("file", FILE, '; filename="a.wav"\r\nContent-Type: audio/wav'),
    part("stream", b"True"),
)
FOUND = {"language": "é", "model": "ears", "empty": "", "file": "file", "stream": True}


def read(raw: bytes, cuts: list[int]) -> FormReader:
    reader, at = FormReader(KIND), 0
    for cut in [*cuts, len(raw)]:
        reader.feed(raw[at:cut])
        at = cut
    reader.end()
    return reader


def values(fields: Any) -> dict[str, Any]:
    return {name: json.loads(bytes(raw)) for name, raw in fields.items()}


def test_whatever_the_pieces_the_same_is_found() -> None:
    whole = read(GOOD, [])
    assert values(whole.fields) == FOUND and whole.has_file
    assert whole.model is not None and GOOD[slice(*whole.model)] == b"ears"
    chance = random.Random(5)
    ways = [list(range(1, len(GOOD)))] + [[cut] for cut in range(len(GOOD))]
    ways += [sorted(chance.sample(range(len(GOOD)), 5)) for _ in range(200)]
    for cuts in ways:
        pieces = read(GOOD, cuts)
        assert (pieces.fields, pieces.model, pieces.ended) == (whole.fields, whole.model, True)


def test_nothing_is_kept_of_a_file() -> None:
    reader = FormReader(KIND)
    reader.feed(part("file", b"", '; filename="a"')[:-2])
    for _ in range(50):
        reader.feed(b"\x00" * 100_000)
        assert len(reader._rest) <= len("\r\n--frontier")
    reader.feed(b"\r\n--frontier--")
    assert reader.ended


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"preamble\r\n" + GOOD,
        GOOD[:-5],
        form(part("model", b"a"), part("model", b"b")),
        form(part("model", b"a"), part("file", FILE, '; filename="x"'), part("model", b"b")),
        form(part("model", b"a"), part("model", b"b", '; filename="x"')),
        form(part("prompt", b"x" * (MOST_VALUE + 100))),
        form(part("prompt", b"x", "; x=" + "y" * MOST_HEAD)),
        form(part("prompt", b"\xff")),
        form(*[part(f"p{number}", b"x") for number in range(MOST_PARTS + 1)]),
        form(b"--frontier\r\nContent-Type: text/plain\r\n\r\nx\r\n"),
        form(b"--frontier\r\n\r\nx\r\n"),
        form(b"--frontier\r\nno end of its head\r\n", part("model", b"a")),
        part("model", b"a") + b"--frontierX--\r\n",
    ],
)
def test_what_is_no_form_is_refused_whatever_the_pieces(raw: bytes) -> None:
    chance = random.Random(7)
    for cuts in ([], list(range(1, min(len(raw), 3000))), sorted(chance.sample(range(len(raw) + 1), min(4, len(raw))))):
        with pytest.raises(Malformed):
            read(raw, cuts)


def test_the_model_is_replaced_or_put_in_front() -> None:
    assert Form(GOOD, KIND).spliced({"model": b'"x\\u00e9"'}) == GOOD.replace(b"\nears\r", "\nxé\r".encode())
    nameless = form(part("file", FILE, '; filename="x"'))
    changed = Form(nameless, KIND).spliced({"model": b'"x"'})
    assert values(Form(changed, KIND).fields)["model"] == "x" and changed.endswith(nameless)
    with pytest.raises(Malformed):
        Form(GOOD, KIND).spliced({"model": b'"x"', "language": b'"y"'})
