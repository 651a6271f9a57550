"""How many tokens a call is taken to need: never wildly wrong for long, never so much that a call cannot be let in."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.gateway.limits.bench import call

from backends.api import Call
from backends.body import Body
from gateway.limits import Estimator
from gateway.limits.estimate import FIRST_OUTPUT

ENGLISH = "The quick brown fox jumps over the lazy dog. "


def text(size: int) -> str:
    return (ENGLISH * (size // len(ENGLISH) + 1))[:size]


def prompt(size: int, **fields: Any) -> Call:
    """A call with a prompt of about so many bytes."""
    return call(messages=[{"role": "user", "content": text(size)}], **fields)


def image(size: int, mime: str = "data:image/png;base64,") -> dict[str, Any]:
    """A part of a message with so many bytes of pixels."""
    pixels = base64.b64encode(random.Random(size).randbytes(size)).decode()
    return {"type": "image_url", "image_url": {"url": mime + pixels}}


def seen(parts: list[dict[str, Any]], **fields: Any) -> Call:
    return call(messages=[{"role": "user", "content": [{"type": "text", "text": "What is this?"}, *parts]}], **fields)


def output(asked: Call, estimator: Estimator | None = None) -> int:
    return (estimator or Estimator()).estimate(asked, "k", "r").output


@pytest.mark.parametrize("size", [40, 400, 4000, 40_000, 400_000])
def test_a_prompt_is_a_token_for_four_bytes_at_first(size: int) -> None:
    asked = prompt(size)
    assert Estimator().estimate(asked, "k", "r").input == len(asked.body.raw) // 4


@pytest.mark.parametrize(
    "names", [("max_tokens",), ("max_completion_tokens",), ("max_tokens", "max_completion_tokens")]
)
@pytest.mark.parametrize("n", [None, 1, 3])
def test_an_answer_is_as_long_as_it_may_be(names: tuple[str, ...], n: int | None) -> None:
    fields: dict[str, Any] = dict.fromkeys(names, 100) | ({} if n is None else {"n": n})
    estimate = Estimator().estimate(call(**fields), "k", "r")
    assert estimate.output == 100 * (n or 1)
    assert estimate.least[1] == estimate.output


@pytest.mark.parametrize(("one", "other"), [(1, 10_000), (10_000, 1)])
def test_of_two_bounds_the_larger_counts(one: int, other: int) -> None:
    """BerriAI/litellm#37001: max_tokens=1 with max_completion_tokens=10000 reserved 2 tokens."""
    assert output(call(max_tokens=one, max_completion_tokens=other)) == 10_000


def test_candidates_that_are_not_shown_are_paid_for_too() -> None:
    assert output(call(max_tokens=10, n=2, best_of=5)) == 50


@pytest.mark.parametrize("n", [0, -1, -5, "-3", 0.5, None, True, False, [], {}, "x", "nan", "inf", -(10**30)])
def test_an_n_that_is_none_is_one(n: Any) -> None:
    assert output(call(max_tokens=100, n=n)) == 100


@pytest.mark.parametrize("most", [0, -1, "x", None, True, [], {}, 0.5, "nan", "-inf", -(10**30)])
def test_a_bound_that_is_none_leaves_the_answer_to_what_was_learned(most: Any) -> None:
    """The target's to refuse, or to read as unbounded; it must neither reserve nothing nor be a mistake of ours."""
    estimate = Estimator().estimate(call(max_tokens=most), "k", "r")
    assert estimate.output == FIRST_OUTPUT
    assert estimate.least[1] == 0


@pytest.mark.parametrize("most", [100.0, 1e2, "100"])
def test_a_bound_that_engines_take_for_a_whole_number_is_one(most: Any) -> None:
    """vLLM reads 100.0 and "100" as 100: reserving less is a way around the limit."""
    assert output(call(max_tokens=most, max_completion_tokens=1)) >= 100


@pytest.mark.parametrize("digits", [18, 19, 20, 30, 4000])
def test_a_huge_bound_is_huge(digits: int) -> None:
    """However many digits: it must not reserve less than a smaller one."""
    asked = Body(b'{"model":"m","messages":[],"max_tokens":' + b"9" * digits + b"}")
    assert output(Call("c", "chat/completions", "m", asked)) >= 10**15


@given(st.dictionaries(st.sampled_from(["max_tokens", "max_completion_tokens", "n", "best_of"]), st.integers() | st.none() | st.floats() | st.text() | st.booleans() | st.lists(st.integers())))  # fmt: skip  # noqa: E501
def test_whatever_stands_there_is_no_mistake_of_ours(fields: dict[str, Any]) -> None:
    raw = json.dumps({"model": "m", "messages": [], **fields}, allow_nan=False, default=str) if _json(fields) else "{}"
    estimate = Estimator().estimate(Call("c", "chat/completions", "m", Body(raw.encode())), "k", "r")
    assert estimate.input >= 1
    assert estimate.output >= 1
    assert 0 <= estimate.least[0] <= estimate.input and 0 <= estimate.least[1] <= estimate.output


def _json(fields: dict[str, Any]) -> bool:
    try:
        json.dumps(fields, allow_nan=False).encode()
    except (ValueError, UnicodeEncodeError):
        return False
    return True


def test_embeddings_have_no_answer_in_tokens() -> None:
    asked = call(endpoint="embeddings", input=text(4000), max_tokens=500, n=3)
    estimate = Estimator().estimate(asked, "k", "r")
    assert estimate.output == 0 and estimate.least[1] == 0
    assert estimate.input == len(asked.body.raw) // 4


@pytest.mark.parametrize("size", [20_000, 300_000, 3_000_000])
@pytest.mark.parametrize("mime", ["data:image/png;base64,", "data:image/jpeg;base64,", "data:video/mp4;base64,"])
def test_pixels_are_no_text(size: int, mime: str) -> None:
    """An image is some hundred tokens, however many bytes it has."""
    estimate = Estimator().estimate(seen([image(size, mime)]), "k", "r")
    assert estimate.input < 2500
    assert estimate.least[0] < 1000


def test_a_recording_is_no_text() -> None:
    sound = base64.b64encode(random.Random(1).randbytes(500_000)).decode()
    estimate = Estimator().estimate(seen([{"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}]), "k", "r")  # fmt: skip  # noqa: E501
    assert estimate.input < 2500


def test_pixels_whose_slashes_are_escaped_are_no_text() -> None:
    r"""PHP and others write "/" as "\/", which is the same JSON."""
    raw = seen([image(300_000)]).body.raw.replace(b"/", rb"\/")
    estimate = Estimator().estimate(Call("c", "chat/completions", "m", Body(raw)), "k", "r")
    assert estimate.input < 2500


def test_each_image_counts() -> None:
    one, four = (Estimator().estimate(seen([image(30_000)] * count), "k", "r").input for count in (1, 4))
    assert 3 * 500 < four - one < 3 * 2000


@pytest.mark.parametrize("count", [1, 4, 16])
def test_images_alone_never_make_a_call_too_large(count: int) -> None:
    """A small image is 85 tokens: of a call that must be refused for good, pixels prove nothing."""
    estimate = Estimator().estimate(seen([image(30_000)] * count), "k", "r")
    assert estimate.least[0] <= 85 * count + 100


def test_a_long_text_is_refused_only_if_it_cannot_fit() -> None:
    """English is four to five bytes a token, source code about three: half of a quarter is never too much."""
    estimate = Estimator().estimate(prompt(40_000), "k", "r")
    assert estimate.least[0] <= 40_000 / 6


def test_bytes_per_token_are_learned_for_each_model() -> None:
    estimator, asked = Estimator(), prompt(3000)
    size = len(asked.body.raw)
    for _ in range(200):
        estimator.learn(asked, "k", "dense", size // 2, 10)
        estimator.learn(asked, "k", "sparse", size // 6, 10)
    assert estimator.estimate(asked, "new", "dense").input == pytest.approx(size / 2, rel=0.01)
    assert estimator.estimate(asked, "new", "sparse").input == pytest.approx(size / 6, rel=0.01)
    assert estimator.estimate(asked, "new", "new").input == size // 4


def test_what_one_key_sends_does_not_lock_others_out() -> None:
    """Calls whose tokens are not in their bytes (an image behind a link) must not make all others' "never fit"."""
    estimator = Estimator()
    link = seen([{"type": "image_url", "image_url": {"url": "http://pictures/1.png"}}])
    for _ in range(500):
        estimator.learn(link, "somebody", "r", 1500, 10)
    honest = prompt(40_000)
    assert estimator.estimate(honest, "other", "r").least[0] < len(honest.body.raw) / 4


@pytest.mark.parametrize("reported", [0, -5, 10**9])
def test_nonsense_from_a_target_moves_the_estimate_within_bounds_only(reported: int) -> None:
    estimator, asked = Estimator(), prompt(3000)
    size = len(asked.body.raw)
    for _ in range(500):
        estimator.learn(asked, "k", "r", reported, reported)
    estimate = estimator.estimate(asked, "k", "r")
    assert size / 16 <= estimate.input <= size * 2
    assert estimate.output >= 1


def test_images_teach_nothing_about_text() -> None:
    estimator = Estimator()
    for _ in range(100):
        estimator.learn(seen([image(200_000)]), "k", "r", 300, 10)
    assert estimator.estimate(prompt(4000), "new", "r").input == len(prompt(4000).body.raw) // 4


def test_calls_that_are_all_envelope_teach_nothing_about_text() -> None:
    estimator = Estimator()
    tiny = Call("c", "chat/completions", "m", Body(b'{"model":"m","messages":[]}'))
    for _ in range(100):
        estimator.learn(tiny, "k", "r", 500, 10)
    assert estimator.estimate(prompt(4000), "new", "r").input == len(prompt(4000).body.raw) // 4


def test_the_length_of_answers_is_learned_for_a_key_on_a_model() -> None:
    estimator = Estimator()
    for _ in range(50):
        estimator.learn(call(), "short", "r", 10, 20)
        estimator.learn(call(), "long", "r", 10, 2000)
    assert estimator.estimate(call(), "short", "r").output == pytest.approx(20, rel=0.2)
    assert estimator.estimate(call(), "long", "r").output == pytest.approx(2000, rel=0.2)
    assert estimator.estimate(call(), "short", "q").output == FIRST_OUTPUT


def test_a_key_that_is_new_to_a_model_is_taken_to_be_like_the_others() -> None:
    estimator = Estimator()
    for _ in range(50):
        estimator.learn(call(), "k", "r", 10, 1000)
    assert estimator.estimate(call(), "new", "r").output == pytest.approx(1000, rel=0.2)


def test_the_learned_length_is_one_that_few_answers_exceed() -> None:
    """The 90th percentile, within what a step allows."""
    chance, estimator = random.Random(7), Estimator()
    lengths = [chance.lognormvariate(5, 1) for _ in range(4000)]
    expected = []
    for length in lengths:
        expected.append(estimator.estimate(call(), "k", "r").output)
        estimator.learn(call(), "k", "r", 20, round(length))
    above = sum(length > guess for length, guess in zip(lengths[500:], expected[500:], strict=True)) / 3500
    assert 0.05 < above < 0.2
    assert sorted(lengths)[3600] * 0.4 < sorted(expected[500:])[1750] < sorted(lengths)[3600] * 2.5


def test_an_unbounded_answer_counts_for_each_choice() -> None:
    estimator = Estimator()
    for _ in range(50):
        estimator.learn(call(), "k", "r", 10, 100)
    assert estimator.estimate(call(n=3), "k", "r").output == 3 * estimator.estimate(call(), "k", "r").output


def test_answers_of_several_choices_are_learned_as_what_one_of_them_is() -> None:
    """Else n is counted twice: once in what was learned, once in what is asked."""
    estimator = Estimator()
    for _ in range(100):
        estimator.learn(call(n=4), "k", "r", 10, 400)
    assert estimator.estimate(call(n=4), "k", "r").output == pytest.approx(400, rel=0.25)


def test_learning_forgets_keys_that_are_not_seen_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.limits.estimate.MAX_KEYS", 10)
    estimator = Estimator()
    for number in range(100):
        estimator.learn(call(), f"k{number}", "r", 10, 5000 if number < 95 else 20)
    assert len(estimator._outputs) == 10
