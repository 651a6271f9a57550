"""The built-in workloads by name: those the routing rule was chosen by, and two that it had never seen."""

from __future__ import annotations

from random import Random
from typing import Final

from msgspec import Struct

from gateway.simulate.agents import agents
from gateway.simulate.calls import Call, Make
from gateway.simulate.documents import documents
from gateway.simulate.patterns import bursts, chats, grouped, mixed, one_prefix, unique, unique_system

SECONDS: Final = 300.0


class Workload(Struct, frozen=True):
    """A workload; its rate is what eight targets of weight 1 can well carry."""

    name: str
    alias: str
    """The short name it has where the rule's evidence is tabulated."""
    rate: float
    """Calls a second."""
    make: Make
    about: str


def _mixture() -> Make:
    return mixed((0.35, grouped(150, 6000)), (0.40, chats(8, 500, 1000)), (0.25, unique))


def _hot_mixture() -> Make:
    return mixed((0.3, grouped(100, 6000, zipf=True)), (0.3, chats(8, 500, 4000, 20)), (0.2, one_prefix), (0.2, bursts))


questions: Final = grouped(40, 6000, question=100, answer=48)
quick_chats: Final = chats(8, 386, 1200, 6, pause=2.0, answer=64)

WORKLOADS: Final = (
    Workload("groups", "b", 31, grouped(150, 6000), "150 system prompts of 6 k tokens, each call a question of 1.2 k"),
    Workload("groups-10", "z10", 36, grouped(10, 6000, zipf=True), "the same with 10 system prompts, Zipf popularity"),
    Workload("groups-100", "z100", 33, grouped(100, 6000, zipf=True), "the same with 100"),
    Workload(
        "groups-1000", "z1000", 17, grouped(1000, 6000, zipf=True), "the same with 1000: more than all caches hold"
    ),
    Workload("groups-short", "bs", 33, grouped(300, 2000), "300 system prompts of 2 k, each call a question of 1.2 k"),
    Workload("one-prefix", "e", 36, one_prefix, "one system prompt of 2.5 k for all calls, a question of 1.2 k"),
    Workload("chats", "a", 54, chats(8, 500, 1000), "chats of 8 turns of 0.5 k on one short system prompt of 1 k"),
    Workload("chats-20", "ag", 52, chats(8, 500, 4000, 20), "the same on 20 system prompts of 4 k"),
    Workload("chats-200", "ag1", 49, chats(4, 500, 4000, 200), "chats of 4 turns on 200 system prompts of 4 k"),
    Workload("questions", "q", 60, questions, "40 documents of 6 k tokens, questions of 100 on any of them"),
    Workload("chats-6", "c6", 80, quick_chats, "chats of 8 quick turns of 0.4 k on 6 system prompts of 1.2 k"),
    Workload("unique", "d", 19, unique, "2.4 k tokens that no other call shares"),
    Workload("bursts", "f", 19, bursts, "64 calls at a time: 1.2 k shared by all calls, 1.2 k their own"),
    Workload("unique-system", "u", 14, unique_system, "a system prompt of 3 k that no other call has"),
    Workload("mixture", "mix1", 27, _mixture(), "35 % groups, 40 % chats, 25 % unique"),
    Workload("mixture-hot", "mix2", 33, _hot_mixture(), "30 % groups-100, 30 % chats-20, 20 % one-prefix, 20 % bursts"),
    Workload("agents", "agents", 36, agents, "tool loops that fan out: long shared tools, many short follow-ups"),
    Workload(
        "documents", "rag-diurnal", 24, documents, "documents whose popularity drifts, traffic that ebbs and flows"
    ),
)


def find(name: str) -> Workload:
    """A workload by name or alias. Raises `KeyError`."""
    return {**{each.alias: each for each in WORKLOADS}, **{each.name: each for each in WORKLOADS}}[name]


def calls(workload: Workload, rate: float, seconds: float, seed: int) -> list[Call]:
    """The workload's calls, the same for the same seed."""
    return workload.make(Random(f"{seed} {workload.name}"), rate, seconds)  # noqa: S311
