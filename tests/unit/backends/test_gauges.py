"""The load that engines tell, as they really export it, under the names of their old and new versions."""

from __future__ import annotations

import pytest
from harness.captures import captures
from hypothesis import given
from hypothesis import strategies as st
from standin.tgi_metrics import Metrics

from backends.api import Gauged, Gauges
from backends.llamacpp import LlamaCpp
from backends.openai import OpenAI
from backends.sglang import SGLang
from backends.tgi import TGI
from backends.vllm import VLLM

TWO_ENGINES = """\
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:num_requests_waiting{engine="1",model_name="m"} 2.0
vllm:num_requests_waiting_by_reason{engine="1",model_name="m",reason="capacity"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1000.0
vllm:prefix_cache_queries_total{engine="1",model_name="m"} 500.0
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.79e+09
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 600.0
vllm:prefix_cache_hits_total{engine="1",model_name="m"} 0.0
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1000"} 1.0
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="500"} 1.0
vllm:lora_requests_info{max_lora="2",running_lora_adapters="old",waiting_lora_adapters=""} 1.79e+09
vllm:lora_requests_info{max_lora="2",running_lora_adapters="fr,de",waiting_lora_adapters="de,it"} 1.80e+09
vllm:engine_sleep_state{engine="0",model_name="m",sleep_state="awake"} 1.0
vllm:engine_sleep_state{engine="1",model_name="m",sleep_state="awake"} 0.0
process_start_time_seconds 1.79534656099e+09
"""
V0 = """\
vllm:num_requests_running{model_name="m"} 1.0
vllm:num_requests_waiting{model_name="m"} 5.0
vllm:gpu_cache_usage_perc{model_name="m"} 0.5
vllm:gpu_prefix_cache_queries{model_name="m"} 30.0
vllm:gpu_prefix_cache_hits{model_name="m"} 10.0
vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0
"""
SGLANG = """\
sglang:num_running_reqs{{dp_rank="0",model_name="m",tp_rank="0"}} 5.0
sglang:num_running_reqs{{dp_rank="0",model_name="m",tp_rank="1"}} 5.0
sglang:num_running_reqs{{dp_rank="1",model_name="m",tp_rank="0"}} 2.0
sglang:num_queue_reqs{{dp_rank="0",model_name="m",priority="",tp_rank="0"}} 4.0
sglang:num_queue_reqs{{dp_rank="0",model_name="m",priority="1",tp_rank="0"}} 3.0
sglang:num_queue_reqs{{dp_rank="0",model_name="m",priority="0",tp_rank="0"}} 1.0
sglang:token_usage{{dp_rank="0",model_name="m",tp_rank="0"}} 0.5
sglang:cache_hit_rate{{model_name="m"}} 0.1
sglang:prompt_tokens_total{{model_name="m"}} 900.0
sglang:cached_tokens_total{{cache_source="device",model_name="m"}} 300.0
sglang:cached_tokens_total{{cache_source="host",model_name="m"}} 30.0
sglang:generation_tokens_total{{model_name="m"}} 70.0
{0}sglang:max_total_num_tokens{{dp_rank="0",model_name="m",tp_rank="0"}} 10000.0
{0}sglang:max_total_num_tokens{{dp_rank="1",model_name="m",tp_rank="0"}} 10000.0
"""


def recorded(name: str) -> str:
    (capture,) = captures(name)
    return capture.body.decode()


def test_a_real_vllm() -> None:
    assert VLLM().gauges(recorded("vllm/vllm-metrics")) == Gauges(
        running=0,
        waiting=0,
        kv_usage=0.0,
        kv_tokens=364 * 128,
        prefix_queries=0,
        prefix_hits=0,
        steps=0,
        started=1.79534656099e09,
    )


def test_vllm_is_summed_over_its_engines() -> None:
    assert VLLM().gauges(TWO_ENGINES) == Gauges(
        running=7,
        waiting=2,
        kv_usage=0.5,
        kv_tokens=24_000,
        prefix_queries=1500,
        prefix_hits=600,
        loras=("de", "fr", "it"),
        asleep=False,
        started=1.79534656099e09,
    )


def test_an_old_vllm() -> None:
    """Its names, and blocks that it has not counted yet."""
    expected = Gauges(running=1, waiting=5, kv_usage=0.5, prefix_queries=30, prefix_hits=10)
    assert VLLM().gauges(V0) == expected
    assert VLLM().gauges(V0.replace("_queries{", "_queries_total{").replace("_hits{", "_hits_total{")) == expected


def test_a_vllm_whose_engines_all_sleep_is_asleep() -> None:
    gauges = VLLM().gauges(TWO_ENGINES.replace('"awake"} 1.0', '"awake"} 0.0'))
    assert gauges is not None and gauges.asleep


def test_a_vllm_that_tells_one_of_both_is_told_half() -> None:
    assert VLLM().gauges("vllm:num_requests_waiting 3\n") == Gauges(waiting=3)


def test_a_real_llamacpp() -> None:
    assert LlamaCpp().gauges(recorded("llamacpp/llamacpp-metrics")) == Gauges(
        running=0, waiting=0, prefix_queries=0, prefix_hits=0, steps=0
    )


def test_llamacpp_counts_cached_tokens_apart() -> None:
    text = "llamacpp:requests_processing 4\nllamacpp:requests_deferred 2\nllamacpp:prompt_tokens_total 30\n"
    assert LlamaCpp().gauges(text) == Gauges(running=4, waiting=2), "an older one tells nothing of its cache"
    newer = text + "llamacpp:prompt_tokens_cached_total 12\nllamacpp:kv_cache_usage_ratio 0.5\n"
    expected = Gauges(running=4, waiting=2, kv_usage=0.5, prefix_queries=42, prefix_hits=12)
    assert LlamaCpp().gauges(newer) == expected


def test_tgi() -> None:
    metrics = Metrics()
    assert TGI().gauges(metrics.render()) == Gauges(running=0, waiting=0)
    metrics.gauges.update(tgi_batch_current_size=3, tgi_queue_size=9, tgi_batch_max_total_tokens=8192)
    assert TGI().gauges(metrics.render()) == Gauges(running=3, waiting=9, kv_tokens=8192)


@pytest.mark.parametrize("sep", [":", "_"], ids=["colons", "underscores"])
def test_sglang(sep: str) -> None:
    """Tensor-parallel ranks tell the same again, priorities a part of the whole, data-parallel ranks their own."""
    expected = Gauges(running=7, waiting=4, kv_usage=0.5, kv_tokens=20_000, prefix_queries=900, prefix_hits=330)
    text = SGLANG.format("").replace("sglang:", f"sglang{sep}")
    assert SGLang().gauges(text) == expected
    assert SGLang().counters(text) == (900, 70)


def test_an_older_sglang_does_not_tell_its_size() -> None:
    gauges = SGLang().gauges(SGLANG.format("# "))
    assert gauges is not None and gauges.kv_tokens is None and gauges.running == 7


def test_sglang_values_that_are_no_numbers() -> None:
    assert SGLang().gauges("sglang:num_running_reqs NaN\nsglang:num_queue_reqs +Inf\n") is None


def test_who_does_not_tell_has_no_gauges() -> None:
    assert not isinstance(OpenAI(), Gauged)
    for adapter in (VLLM(), TGI(), LlamaCpp(), SGLang()):
        assert isinstance(adapter, Gauged) and adapter.gauges_path == "/metrics"


NAMES = [line.split("{")[0].split(" ")[0] for text in (TWO_ENGINES, V0, SGLANG) for line in text.splitlines()]


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.text(alphabet='{}=",1 eN\\', max_size=20))))
def test_any_text_is_read(lines: list[tuple[str, str]]) -> None:
    text = "\n".join(name + rest for name, rest in lines)
    for adapter in (VLLM(), TGI(), LlamaCpp(), SGLang()):
        adapter.gauges(text)
