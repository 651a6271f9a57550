"""A simulated gateway exchanges what the real one does: absolute counts with their age, and each note once."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gateway.routes.load import LEAST_CHARGE, RATE
from gateway.routes.policies.api import Candidate, Note, Prompt, Score
from gateway.simulate.replica import Replica
from gateway.simulate.side import Side


class Chatty:
    """Sends all calls to the first target, expects 300 tokens there, and tells of each."""

    def __init__(self) -> None:
        self.told_of: list[Note] = []
        self.heard_of: list[Note] = []
        self.learned: list[tuple[int, int]] = []
        self.pending_when_placed: list[float] = []

    def score(self, prompt: Prompt, targets: Sequence[Candidate], usable: Sequence[int], now: float) -> list[Score]:
        return [Score(place, float(place), cached=300) for place in usable]

    def pick(self, scores: Sequence[Score]) -> Score:
        return scores[0]

    def placed(self, prompt: Prompt, score: Score, targets: Sequence[Candidate]) -> None:
        self.pending_when_placed.append(targets[score.index].load.prefill)
        self.told_of.append(Note("call", prompt.conversation or 0, targets[score.index].name, prompt.tokens))

    def told(self, prompt: Prompt, score: Score, prompt_tokens: int, cached_tokens: int) -> None:
        self.learned.append((prompt_tokens, cached_tokens))

    def notes(self) -> list[Note]:
        notes, self.told_of = self.told_of, []
        return notes

    def heard(self, notes: Sequence[Note], targets: Sequence[Candidate]) -> None:
        self.heard_of.extend(notes)


def pair() -> tuple[list[Side], list[Chatty]]:
    replicas = [Replica(name, 1.0, 8000.0, 100_000) for name in ("a", "b")]
    policies = [Chatty(), Chatty()]
    return [Side(f"gateway-{number}", policy, replicas) for number, policy in enumerate(policies)], policies


def test_the_share_is_taken_before_the_policy_hears_of_the_call() -> None:
    (one, _), (policy, _) = pair()
    one.place(Prompt(1000, 7), 0.0)
    one.place(Prompt(200, 8), 0.0)
    assert policy.pending_when_placed == [700, 700 + LEAST_CHARGE]


def test_counts_fall_as_the_call_goes_on_and_the_policy_learns_at_the_end() -> None:
    (one, _), (policy, _) = pair()
    score, share = one.place(Prompt(1000, 7), 0.0)
    load = one.targets[0].load
    assert (load.prefill, load.waiting, load.running) == (700, 1, 1)
    share.first_token()
    assert (load.prefill, load.waiting, load.running) == (0, 0, 1)
    one.end(Prompt(1000, 7), score, share, 250)
    assert (load.prefill, load.waiting, load.running) == (0, 0, 0)
    assert policy.learned == [(1000, 250)]


def test_another_gateway_sees_what_was_published_as_old_as_it_is() -> None:
    (one, other), _ = pair()
    one.place(Prompt(10_300, 7), 0.0)
    one.exchange([one, other], 0.05)
    one.place(Prompt(10_300, 8), 0.06)  # published next time
    other.exchange([one, other], 0.25)
    load = other.targets[0].load
    assert (load.others_prefill, load.others_waiting, load.others_running) == (10_000, 1, 1)
    assert load.pending(0.25) == pytest.approx(10_000 - 0.2 * RATE, rel=1e-3)
    assert one.targets[0].load.others_prefill == 0


def test_each_note_is_heard_once_by_every_other_gateway() -> None:
    (one, other), (policy, heard) = pair()
    one.place(Prompt(1000, 7), 0.0)
    one.exchange([one, other], 0.1)
    for now in (0.15, 0.16, 0.17):
        other.exchange([one, other], now)
    one.exchange([one, other], 0.3)
    other.exchange([one, other], 0.35)
    assert [note.key for note in heard.heard_of] == [7]
    assert policy.heard_of == []
