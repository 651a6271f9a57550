"""Built-in workloads: what they promise, and the same calls for the same seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from gateway.simulate import workloads
from gateway.simulate.calls import Call
from gateway.simulate.patterns import ANSWER
from gateway.simulate.workloads import WORKLOADS, Workload, find

every = pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)


def made(name: str, seconds: float = 200, seed: int = 1) -> list[Call]:
    workload = find(name)
    return workloads.calls(workload, workload.rate, seconds, seed)


def whole(calls: list[Call]) -> Iterator[Call]:
    for call in calls:
        yield call
        yield from whole(list(call.next))


@every
def test_calls_say_of_themselves_what_is_in_them(workload: Workload) -> None:
    for call in whole(made(workload.name, 20)):
        prompt = call.prompt
        assert prompt.tokens == sum(size for _, size in call.segments) > 0
        assert prompt.conversation and prompt.conversation == prompt.session
        assert (prompt.group is None) == (prompt.prefix == 0)
        if prompt.group is not None:
            assert call.segments[0] == (prompt.group, prompt.prefix)
        assert 0 <= call.draw < 1 and call.after >= 0


@every
def test_the_same_seed_makes_the_same_calls(workload: Workload) -> None:
    def written(seed: int) -> list[object]:
        return [(call.after, call.prompt, call.segments, call.draw) for call in whole(made(workload.name, 10, seed))]

    assert written(3) == written(3)
    assert written(3) != written(4)


@every
def test_calls_come_about_as_often_as_is_said(workload: Workload) -> None:
    calls = list(whole(made(workload.name, 400)))
    assert len(calls) / 400 == pytest.approx(workload.rate, rel=0.15)


@every
def test_what_follows_begins_with_what_it_follows(workload: Workload) -> None:
    for call in whole(made(workload.name, 20)):
        for later in call.next:
            assert later.segments[: len(call.segments)] == call.segments
            assert later.prompt.follow_up
            assert later.prompt.conversation == call.prompt.conversation
            assert later.prompt.tokens > call.prompt.tokens + ANSWER


def test_names_and_aliases_are_one_each() -> None:
    names = [name for each in WORKLOADS for name in {each.name, each.alias}]
    assert len(names) == len(set(names))
    assert find("b") is find("groups")
    with pytest.raises(KeyError):
        find("nothing")


def test_groups_are_as_many_and_as_popular_as_is_said() -> None:
    even = Counter(call.prompt.group for call in made("groups"))
    assert len(even) == 150
    assert max(even.values()) < 3 * min(even.values())
    zipf = Counter(call.prompt.group for call in made("groups-10")).most_common()
    assert len(zipf) == 10
    assert zipf[0][1] / zipf[3][1] == pytest.approx(4, rel=0.4)


def test_a_short_system_prompt_is_shared_and_no_group() -> None:
    calls = made("chats", 50)
    assert len({call.segments[0] for call in calls}) == 1
    assert {call.prompt.group for call in calls} == {None}


def test_chats_have_so_many_turns() -> None:
    def turns(call: Call) -> int:
        return 1 + (turns(call.next[0]) if call.next else 0)

    assert {turns(call) for call in made("chats", 50)} == {8}
    assert {turns(call) for call in made("chats-200", 50)} == {4}


def test_nothing_is_shared_by_unique_calls() -> None:
    for name in ("unique", "unique-system"):
        segments = [segment for call in made(name) for segment, _ in call.segments]
        assert len(segments) == len(set(segments))


def test_bursts_come_at_once() -> None:
    times = Counter(call.after for call in made("bursts"))
    assert set(times.values()) == {64}


def test_agents_branch_from_what_was_said() -> None:
    branching = [call for call in whole(made("agents", 60)) if len(call.next) > 1]
    assert branching
    assert all(len({later.segments[:-1] for later in call.next}) == 1 for call in branching)


def test_documents_go_out_of_fashion() -> None:
    def favourites(begin: float, end: float) -> set[int | None]:
        groups = Counter(call.prompt.group for call in made("documents", 400) if begin <= call.after < end)
        return {group for group, _ in groups.most_common(5)}

    assert len(favourites(0, 40) & favourites(20, 60)) > len(favourites(0, 40) & favourites(300, 400))


def test_traffic_on_documents_ebbs_and_flows() -> None:
    calls = made("documents", 400)
    high = sum(1 for call in calls if 20 <= call.after < 80)  # around the crest at an eighth of the time
    low = sum(1 for call in calls if 120 <= call.after < 180)
    assert high > 2 * low
