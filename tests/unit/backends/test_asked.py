"""What a call asks for is read in one place, as the largest that any engine would take."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.api import Call, Endpoint
from backends.asked import HUGE, Asked
from backends.body import Body

PIXELS = base64.b64encode(bytes(range(256)) * 40).decode()


def read(fields: str, endpoint: Endpoint = "chat/completions") -> Asked:
    return Call("c", endpoint, "m", Body(b'{"model":"m",' + fields.encode() + b"}")).asked


def asked(endpoint: Endpoint = "chat/completions", **fields: Any) -> Asked:
    return read(json.dumps(fields)[1:-1], endpoint)


def parts(*more: dict[str, Any] | str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, *more]}]


SPELLINGS = ("100", "1e2", "100.0", "1.0E+2", '"100"', '" 100"', '"+100"', '"100 "', '"1e2"', '"100.0"', '"1_00"')
SPELLINGS += ('"\\u0031\\u0030\\u0030"', '"\\u0020100"', "100.7")


@pytest.mark.parametrize("number", SPELLINGS)
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n_predict", "max\\u005ftokens"])
def test_a_bound_is_the_same_however_it_is_spelt(name: str, number: str) -> None:
    assert read(f'"{name}": {number}').output == 100


@pytest.mark.parametrize("number", SPELLINGS)
@pytest.mark.parametrize("name", ["n", "n_cmpl", "\\u006e"])
def test_so_is_a_number_of_choices(name: str, number: str) -> None:
    call = Call("c", "chat/completions", "m", Body(f'{{"{name}":{number}}}'.encode()))
    assert call.choices == call.asked.candidates == 100


@pytest.mark.parametrize(
    "number", ["9" * 30, "9" * 5000, "1e300", "1e400", f'"{"9" * 30}"', f'"+{"9" * 5000}"', f'"{" " * 9000}{"9" * 20}"']
)
def test_a_huge_number_is_huge(number: str) -> None:
    assert read(f'"max_tokens": {number}').output == HUGE


@pytest.mark.parametrize(
    "number", ["0", "-1", "0.5", "null", "true", "[]", "{}", '""', '"x"', '"nan"', '"inf"', '"-5"', '"+infinity"']
)
def test_what_is_no_number_bounds_nothing(number: str) -> None:
    nothing = read(f'"max_tokens":{number},"n":{number},"best_of":{number}')
    assert (nothing.output, nothing.choices, nothing.candidates) == (0, 1, 1)


@given(st.text() | st.floats(allow_nan=False) | st.integers() | st.lists(st.integers()) | st.none() | st.booleans())
def test_whatever_stands_there_can_be_read(value: Any) -> None:
    try:
        what = asked(max_tokens=value, n=value)
    except ValueError:  # infinity, and half characters, are no JSON
        return
    assert 0 <= what.output <= HUGE and 1 <= what.choices <= HUGE


def test_of_several_bounds_the_largest_counts() -> None:
    assert asked(max_tokens=1, max_completion_tokens="7", n_predict=5).output == 7
    assert asked(n=2, best_of=5).candidates == 5 and asked(n=5, best_of=2).candidates == 5
    assert asked(n=2, best_of=5).choices == 2


@pytest.mark.parametrize(
    ("prompt", "prompts", "token_ids"),
    [
        ("x", 1, 0),
        (["x"] * 1000, 1000, 0),
        (['a "quoted" one', "b\\"], 2, 0),
        ([1, 2, 3], 1, 3),
        ([[1, 2], [3], [4, 5, 6]], 3, 6),
        ([], 1, 0),
        (None, 1, 0),
        ({}, 1, 0),
        ([None], 1, 0),
    ],
)
@pytest.mark.parametrize(("endpoint", "name"), [("completions", "prompt"), ("embeddings", "input")])
def test_prompts_and_token_ids_are_counted(
    endpoint: Endpoint, name: str, prompt: Any, prompts: int, token_ids: int
) -> None:
    what = asked(endpoint, **{name: prompt})
    assert what.prompts == prompts
    assert token_ids <= what.token_ids <= token_ids + prompts, "the last of a list may count twice"


def test_token_ids_are_tokens_and_no_text() -> None:
    """`1,1,1` would be two bytes a token, and `123456,` seven."""
    for token in (1, 123456):
        what = asked("completions", prompt=[token] * 10_000)
        assert what.token_ids == 10_000 and what.text < 100


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PIXELS}},
        {"type": "image_url", "image_url": {"url": "http://pictures/1.png"}},
        {"image_url": "data:image/png;base64," + PIXELS},
        {"type": "input_audio", "input_audio": {"data": PIXELS, "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64," + PIXELS}},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64," + PIXELS}},
        {"type": "image_embeds", "image_embeds": PIXELS},
        {"type": "image_embeds", "image_embeds": {"image_embeds": PIXELS, "grid": PIXELS}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64," + PIXELS}},
    ],
    ids=lambda part: "-".join(part),
)
def test_what_is_shown_or_played_is_media_and_no_text(part: dict[str, Any]) -> None:
    plain, shown = asked(messages=parts()), asked(messages=parts(part, part))
    assert (plain.media, shown.media) == (0, 2)
    assert shown.text - plain.text < 200


def test_keys_of_media_may_be_escaped() -> None:
    raw = json.dumps(parts({"type": "image_url", "image_url": {"url": "data:x," + PIXELS}}))
    assert read('"messages":' + raw.replace("image_url", "image\\u005furl")).media == 1


@pytest.mark.parametrize(
    "text", ["data:image/png;base64," + PIXELS, '"data:' * 100, '{"image_url":{"url":"data:' + PIXELS]
)
def test_text_about_media_is_text(text: str) -> None:
    for messages in ([{"role": "user", "content": text}], parts({"type": "text", "text": text}), parts(text)):
        what = asked(messages=messages)
        assert what.media == 0 and what.text >= len(text)


@pytest.mark.parametrize("name", ["logit_bias", "allowed_token_ids", "prompt_embeds", "metadata"])
def test_what_no_model_reads_is_no_text(name: str) -> None:
    value: Any = PIXELS if name == "prompt_embeds" else {str(token): 1 for token in range(10_000)}
    assert asked(messages=[], **{name: value}).text < 200


@pytest.mark.parametrize("name", ["tools", "functions", "response_format", "guided_json", "anything_else"])
def test_tools_and_schemas_are_text(name: str) -> None:
    value = {"type": "object", "properties": {f"field{number}": {"type": "string"} for number in range(100)}}
    assert asked(messages=[], **{name: value}).text > len(json.dumps(value))


def test_a_continued_call_asks_for_what_the_call_did() -> None:
    from msgspec import structs

    call = Call("c", "chat/completions", "m", Body(b'{"n":1,"max_tokens":10}'))
    assert structs.replace(call, body=Body(b'{"n":1,"max_tokens":3}')).asked == call.asked
