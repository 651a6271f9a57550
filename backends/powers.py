"""What the conformance suite checks of an adapter's optional powers."""

from __future__ import annotations

from contextlib import suppress
from typing import Final

from msgspec import structs

from backends import sse
from backends.api import (
    Adapter,
    ContinuousUsage,
    Counted,
    CountsChats,
    Described,
    Facts,
    Gauged,
    Guarded,
    Launchable,
    Probed,
    Stateful,
)
from backends.body import Body
from backends.samples import NOT_ANSWERS, OPENAI, TARGET


def paths_and_launch(adapter: Adapter) -> None:
    """Paths stand below the target's URL; what can be launched listens where it is told to."""
    for name in ("probe_path", "credential_path", "counters_path", "gauges_path", "wake_path", "chat_tokens_path"):
        path = getattr(adapter, name, "/")
        assert isinstance(path, str) and path.startswith("/"), f"{name} is a path below the target's URL"
    for name in ("fact_paths", "inference_paths"):
        for path in getattr(adapter, name, ()):
            assert path.startswith("/"), f"{name} are paths below the target's URL"
    if isinstance(adapter, Probed) and isinstance(adapter, Guarded):
        assert adapter.probe_path != adapter.credential_path, "the health route itself tells of the credential"
    if isinstance(adapter, Launchable):
        assert adapter.launch_models, "launch_models names what can be launched"
        for model in adapter.launch_models:
            argv, environment = adapter.launch(model, "public-name", 54321)
            assert all(isinstance(word, str) for word in argv)
            assert any("54321" in word for word in argv), "the child must listen on the port it is given"
            assert all(isinstance(word, str) for pair in environment.items() for word in pair)


_NO_METRICS: Final = (
    "",
    "nonsense",
    "<html></html>",
    "other_total 1.0\n",
    "process_start_time_seconds 1.0\n",
    '{"a": 1}',
    "{" * 100_000,
)


def metrics(adapter: Adapter) -> None:
    """What is no text of the server's own tells nothing, neither numbers nor an error."""
    for text in _NO_METRICS:
        if isinstance(adapter, Counted):
            assert adapter.counters(text) is None, f"counters() found some in {text[:40]!r}"
        if isinstance(adapter, Gauged):
            assert adapter.gauges(text) is None, f"gauges() found some in {text[:40]!r}"


def continuous(adapter: Adapter) -> None:
    """Usage in every event is asked for, told of, and kept from clients that did not ask: they get what they would get
    without it."""
    if not isinstance(adapter, ContinuousUsage):
        return
    target = structs.replace(TARGET, continuous_usage=True)
    for sample in OPENAI:
        call, events = sample.call(), sse.Splitter().feed(sample.answered)
        beside_choices = any(b'"usage"' in event and b'"choices":[]' not in event for event in events)
        if not call.stream or sample.fault is not None or beside_choices:
            continue
        sent = Body(adapter.request(call, target).body).get("stream_options", dict[str, object], {})
        assert any(value is True for name, value in sent.items() if name != "include_usage"), "it is not asked for"
        plain, hidden = adapter.open(call) if isinstance(adapter, Stateful) else adapter, adapter.open_continuous(call)
        for event in events:
            said = [chunk.data for chunk in plain.chunk(call, event)]
            beside = b'"choices":[{' in event and b'"usage"' not in event and event.endswith(b"}\n\n")
            counted = event[:-3] + b',"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n' if beside else event
            chunks = [*hidden.chunk(call, counted)]
            assert b"".join(chunk.data for chunk in chunks) == b"".join(said), f"{sample.name}: it is shown"
            assert not beside or any(chunk.usage for chunk in chunks), f"{sample.name}: it is not told of"


def counts(adapter: Adapter) -> None:
    """What does not tell how many tokens a chat has is an error, and never a number."""
    if not isinstance(adapter, CountsChats):
        return
    for body in (*NOT_ANSWERS, b"{}", b'{"count": "3", "tokens": 3, "tokenize_response": "abc"}'):
        with suppress(ValueError, RecursionError):
            raise AssertionError(f"chat_tokens() found {adapter.chat_tokens(body)} in {body[:40]!r}")


def facts(adapter: Adapter) -> None:
    """Servers are asked for their facts whoever they are: an answer that is not understood is one not given."""
    if not isinstance(adapter, Described):
        return
    for model in (None, "served/name"):
        assert adapter.facts({}, model) == Facts(), "facts() made some up"
        for body in (*NOT_ANSWERS, b"{}", b'{"data": null}', b'{"data": [3]}', b'{"version": []}'):
            found = adapter.facts(dict.fromkeys(adapter.fact_paths, body), model)
            assert isinstance(found, Facts), f"facts() gave none for {body[:40]!r}"
            assert found.context is None, f"facts() found a context in {body[:40]!r}"
