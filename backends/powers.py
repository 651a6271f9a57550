"""What the conformance suite checks of an adapter's optional powers."""

from __future__ import annotations

from typing import Final

from backends.api import (
    Adapter,
    Counted,
    Described,
    Facts,
    Gauged,
    Guarded,
    Launchable,
    Probed,
)
from backends.samples import NOT_ANSWERS


def paths_and_launch(adapter: Adapter) -> None:
    """Paths stand below the target's URL; what can be launched listens where it is told to."""
    for name in ("probe_path", "credential_path", "counters_path", "gauges_path", "wake_path"):
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
