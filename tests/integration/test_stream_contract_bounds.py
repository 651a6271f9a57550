"""The stream contract's bounds: how long a target may be silent, and how large an event may become."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from harness.dialects import ENDPOINTS, KINDS, StreamKind, sse
from harness.upstream import Act, stream
from integration.streaming import LARGEST_EVENT, WORDS, Speaking, check_broken, datas, unfinished

MIB = 1024 * 1024
ONE = [kind for kind in KINDS if kind.choices == 1]


def test_silence_between_events_is_a_timeout(over_sockets: Speaking) -> None:
    """For all kinds at once, as it takes its time."""

    def wait(kind: StreamKind) -> None:
        said = unfinished(kind.stream(WORDS))
        began = time.monotonic()
        answer = over_sockets.ask(kind, stream(*datas(said), Act.STALL), patience="pausing-")
        assert time.monotonic() - began > 1.4
        check_broken(over_sockets, answer, said, "upstream_timeout")
        assert over_sockets.upstream.target(f"speaks-{kind.dialect.name}").calls[0].closed.wait(30)

    for endpoint in ENDPOINTS:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(wait, [kind for kind in ONE if kind.endpoint == endpoint]))


@pytest.mark.parametrize("size", [LARGEST_EVENT - 200, LARGEST_EVENT + 200], ids=["below", "above"])
@pytest.mark.parametrize("kind", ONE, ids=str)
def test_an_event_has_at_most_the_tables_bound(speak: Speaking, kind: StreamKind, size: int) -> None:
    events = kind.stream([["x", "y"]])
    choice = kind.dialect.choice(kind.endpoint, 0, "", None)
    frame = len(sse(kind.dialect.chunk(kind.endpoint, [choice])))
    words = [["x", "y" * (size - frame - 40), "z"]]
    events = kind.stream(words)
    answer = speak.ask(kind, stream(*datas(events)))
    if size < LARGEST_EVENT:
        kind.dialect.shown(events, answer.body, False)
    else:
        said = [event for event in events if len(event.data) < LARGEST_EVENT][: events.index(events[-1])]
        first = [event for event in said if event.text == "x" or event.kind == "role"]
        check_broken(speak, answer, first, "answer_too_large")


@pytest.mark.parametrize("filler", [b"data: " + b"a" * 65536, b"a" * 65536, b":" * 65536, b"data: a\n" * 8192])
def test_an_endless_event_is_cut_off_and_costs_little(over_sockets: Speaking, filler: bytes) -> None:
    kind = ONE[0]
    events = kind.stream(WORDS)[:2]
    target = over_sockets.target(kind.dialect.name)
    before = resident(over_sockets)
    answer = over_sockets.ask(kind, stream(*datas(events), *[filler] * 1024, Act.STALL))
    check_broken(over_sockets, answer, events, "answer_too_large")
    assert target.calls[0].closed.wait(30)
    assert resident(over_sockets) - before < 24 * MIB, "64 MiB were sent"


def resident(over_sockets: Speaking) -> int:
    """Bytes that the gateway has in memory."""
    process = psutil.Process(over_sockets.gateway.process.pid)
    return sum(int(each.memory_info().rss) for each in [process, *process.children(recursive=True)])
