"""Every adapter of ours passes the conformance suite that third parties run on theirs."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest
from harness.captures import captures
from msgspec import structs

from backends import registry
from backends.api import Call, Chunk, Facts, Gauges, Reply, Target, UpstreamFault, UpstreamRequest, Usage
from backends.llamacpp import LlamaCpp
from backends.openai import OpenAI
from backends.samples import OPENAI, Sample
from backends.sglang import SGLang
from backends.testing import Case, conformance, read
from backends.vllm import VLLM

RECORDED = {
    "vllm/vllm-chat": Usage(25, 8),
    "vllm/vllm-chat-stream-usage": Usage(25, 8),
    "vllm/vllm-completions-stream": Usage(5, 5),
    "llamacpp/llamacpp-chat-stream-usage": Usage(25, 8, 24),
    "llamacpp/llamacpp-completions-stream": Usage(5, 5, 4),
}


def samples(kind: str) -> list[Sample]:
    """The suite's own samples and recorded ones."""
    found = list(OPENAI)
    for name, usage in RECORDED.items():
        if name.startswith(kind):
            (capture,) = captures(name)
            found.append(
                Sample(
                    name=capture.name,
                    asked=capture.request,
                    answered=capture.body,
                    endpoint=capture.endpoint,
                    usage=usage,
                )
            )
    return found


@pytest.mark.parametrize("case", conformance(OpenAI), ids=str)
def test_openai(case: Case) -> None:
    case()


@pytest.mark.parametrize("case", conformance(VLLM, samples=samples("vllm")), ids=str)
def test_vllm(case: Case) -> None:
    case()


@pytest.mark.parametrize("case", conformance(LlamaCpp, samples=samples("llamacpp")), ids=str)
def test_llamacpp(case: Case) -> None:
    case()


@pytest.mark.parametrize("case", conformance(SGLang), ids=str)
def test_sglang(case: Case) -> None:
    case()


@pytest.mark.parametrize("name", ["openai", "vllm", "llamacpp", "sglang", "tgi"])
def test_built_in_adapters_come_through_the_entry_points(name: str) -> None:
    assert type(registry.load(name)).__module__ == f"backends.{name}"


def test_an_unknown_backend_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        registry.load("no-such-backend")


# The suite itself must be able to fail: each of these adapters has one fault.


class Deaf(OpenAI):
    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        return tuple(structs.replace(chunk, done=False) for chunk in super().chunk(call, event))


class Chatty(OpenAI):
    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        return tuple(structs.replace(chunk, data=event) for chunk in super().chunk(call, event))


class Tidy(OpenAI):
    def reply(self, call: Call, body: bytes) -> Reply:
        reply = super().reply(call, body)
        return structs.replace(reply, body=body.strip())


class Talkative(OpenAI):
    def request(self, call: Call, target: Target) -> UpstreamRequest:
        open("/dev/null").close()
        return super().request(call, target)


class Timed(OpenAI):
    def headers(self, call: Call, target: Target) -> dict[str, str]:
        return {**super().headers(call, target), "x-at": str(time.perf_counter_ns())}


class Credulous(OpenAI):
    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        try:
            return super().chunk(call, event)
        except (UpstreamFault, ValueError):
            return (Chunk(event),)


class Dropping(OpenAI):
    def request(self, call: Call, target: Target) -> UpstreamRequest:
        asked = super().request(call, target)
        return structs.replace(asked, body=asked.body.replace(b'"x_unknown"', b'"x_other"'))


class Mixed(OpenAI):
    usage: Usage | None = None

    def chunk(self, call: Call, event: bytes) -> tuple[Chunk, ...]:
        (chunk,) = super().chunk(call, event)
        self.usage = chunk.usage or self.usage
        return (structs.replace(chunk, usage=self.usage if chunk.done else None),)


class Relative(OpenAI):
    fact_paths = ("v1/models",)


class Guarding(OpenAI):
    credential_path = "/v1/models"


class Inventive(OpenAI):
    gauges_path = "/metrics"

    def gauges(self, text: str) -> Gauges | None:
        return Gauges(running=0, waiting=0)


class Trusting(OpenAI):
    def facts(self, answers: Mapping[str, bytes], model: str | None) -> Facts:
        return Facts(context=4096 if answers else None)


@pytest.mark.parametrize(
    ("faulty", "caught"),
    [
        (Deaf, "ends as told"),
        (Chatty, "tells usage only if asked"),
        (Tidy, "whole"),
        (Talkative, "no io"),
        (Timed, "requests"),
        (Credulous, "fails on a broken answer"),
        (Dropping, "transparent"),
        (Mixed, "ends as told"),
        (Relative, "working capabilities"),
        (Guarding, "working capabilities"),
        (Inventive, "no other text for metrics"),
        (Trusting, "no other answer for facts"),
    ],
)
def test_the_suite_catches_a_faulty_adapter(faulty: type[OpenAI], caught: str) -> None:
    failed = 0
    for case in conformance(faulty):
        if caught in case.name:
            try:
                case()
            except AssertionError:
                failed += 1
            except (UpstreamFault, ValueError):
                pass  # no verdict of the suite
    assert failed


def test_samples_must_cover_every_kind_of_answer() -> None:
    (coverage,) = [case for case in conformance(OpenAI, samples=OPENAI[:2]) if "cover" in case.name]
    with pytest.raises(AssertionError, match="no sample"):
        coverage()


def test_a_stream_is_read_as_the_gateway_reads_it() -> None:
    (sample,) = [sample for sample in OPENAI if sample.name == "chat stream"]
    seen = read(OpenAI(), sample.call(), [sample.answered[:70], sample.answered[70:]])
    assert (seen.usage, seen.finished, seen.done) == (Usage(25, 8), True, 1)
