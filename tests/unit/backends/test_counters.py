"""The engines' own token counters, as they really export them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standin.tgi_metrics import Metrics

from backends.api import Counted
from backends.counters import counted
from backends.llamacpp import LlamaCpp
from backends.openai import OpenAI
from backends.tgi import TGI
from backends.vllm import VLLM

VLLM_TEXT = """\
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="org/model \\"x\\" {a}"} 1.25e+03
vllm:prompt_tokens_total{engine="1",model_name="org/model"} 250.0
vllm:prompt_tokens_created{engine="0",model_name="org/model"} 1.7953466958629107e+09
vllm:prompt_tokens_by_source_total{engine="0",source="local_cache_hit"} 77.0
vllm:prompt_tokens_cached_total{engine="0",model_name="org/model"} 900.0
vllm:generation_tokens_total{engine="0",model_name="org/model"} 40.0
vllm:generation_tokens_total{engine="1",model_name="org/model"} 2.0
vllm:request_generation_tokens_sum{engine="0",model_name="org/model"} 41.0
"""


def test_vllm_is_summed_over_its_engines() -> None:
    assert VLLM().counters(VLLM_TEXT) == (1500, 42)


def test_vllm_without_labels() -> None:
    assert VLLM().counters("vllm:prompt_tokens_total 3\nvllm:generation_tokens_total 4.0 1795346695\n") == (3, 4)


def test_llamacpp_counts_cached_prompt_tokens_apart() -> None:
    text = "llamacpp:prompt_tokens_total 30\n{}llamacpp:prompt_tokens_seconds 9\nllamacpp:tokens_predicted_total 8\n"
    assert LlamaCpp().counters(text.format("llamacpp:prompt_tokens_cached_total 12\n")) == (42, 8)
    assert LlamaCpp().counters(text.format("")) == (30, 8)


def test_tgi_tells_sums_of_histograms() -> None:
    metrics = Metrics()
    assert TGI().counters(metrics.render()) == (0, 0), "before its first call"
    for prompt, answer in ((10, 3), (300, 40)):
        metrics.observe("tgi_request_input_length", prompt)
        metrics.observe("tgi_request_generated_tokens", answer)
    assert TGI().counters(metrics.render()) == (310, 43)


@pytest.mark.parametrize("adapter", [VLLM(), LlamaCpp(), TGI()], ids=lambda adapter: type(adapter).__name__)
def test_who_counts_says_so(adapter: Counted) -> None:
    assert isinstance(adapter, Counted) and adapter.counters_path == "/metrics"
    for text in ("", "vllm:prompt_tokens_total", "llamacpp:prompt_tokens_total nonsense", "<html>", "x 1\n"):
        assert adapter.counters(text) is None


def test_a_server_of_which_nothing_is_known_is_not_counted() -> None:
    assert not isinstance(OpenAI(), Counted)


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("a 5", {"a": 5}),
        ('a{x="} 7"} 5', {"a": 5}),
        ("a\t5", {"a": 5}),
        ("a 5 1795346695000", {"a": 5}),
        ("a NaN", {}),
        ("a +Inf", {}),
        ("a x", {}),
        ("a", {}),
        (" a 5", {}),
        ("aa 5", {}),
        ("a_total 5", {}),
        ("# a 5", {}),
        ("a 1\na 2\r\na 3", {"a": 6}),
    ],
)
def test_samples(line: str, found: dict[str, int]) -> None:
    assert counted(line, "a") == found


@given(st.text(alphabet='a{}="\\ \n0123456789.e+-x', max_size=40))
def test_any_text_is_read(text: str) -> None:
    for adapter in (VLLM(), LlamaCpp(), TGI()):
        adapter.counters(text)
    counted(text, "a")
