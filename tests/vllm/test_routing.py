"""Conversations behind the gateway with two replicas: how much of their prompts the replicas find cached, by their own
counters and policy by policy."""

import random
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, NamedTuple

import httpx
import pytest
from harness.replicas import NAMES, Answer, Messages, Replicas, routed, stream, user
from harness.vllm_server import client
from integration.client import eventually, samples, total

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

Tell = Callable[[str], None]

CONVERSATIONS, TURNS, AT_ONCE = 24, 6, 4
QUESTION, MORE = 180, 110
"""Words of a conversation's first question and of each later one; nearly each is a token."""
CALLS = CONVERSATIONS * TURNS
WORDS = ("river", "stone", "bread", "window", "garden", "market", "winter", "letter", "silver", "orange", "engine")
MISSES_KEPT = 0.75
"""home-cost may read at most this part of the prompt tokens that round-robin reads."""


class Figures(NamedTuple):
    """What a policy made of the conversations."""

    prompts: list[int]
    """Prompt tokens, by replica, as vLLM counts them."""
    hits: list[int]
    """Those found in its prefix cache."""
    told: tuple[float, float]
    """Both summed, as the gateway's metrics have them."""
    answers: list[Answer]

    @property
    def misses(self) -> int:
        return sum(self.prompts) - sum(self.hits)

    def row(self) -> list[str]:
        """A line of the table."""
        calls = [[answer.target for answer in self.answers].count(name) for name in NAMES]
        firsts = [answer.first for answer in self.answers]
        pairs = [*zip(self.hits, self.prompts, strict=True), (sum(self.hits), sum(self.prompts))]
        ratios = [f"{hits / max(1, prompts):.3f}" for hits, prompts in pairs]
        times = statistics.fmean(firsts), statistics.quantiles(firsts, n=10)[-1]
        return [str(len(firsts)), " + ".join(map(str, calls)), *ratios, *(f"{each:.2f} s" for each in times)]


def test_conversations_find_their_prompts_cached(replicas: Replicas, record: Callable[..., None], tell: Tell) -> None:
    """All the conversations together fit into both caches, but not into one."""
    found = {}
    for policy in ("round-robin", "home-cost"):
        tell(f"{policy}: {CONVERSATIONS} conversations of {TURNS} turns")
        found[policy] = measured(replicas, policy, tell)
        record("routing", policy, *found[policy].row())
    room = replicas[0].kv_tokens
    for policy, figures in found.items():
        assert all(answer.whole and answer.attempts == 1 for answer in figures.answers), policy
        prompts, cached = figures.told
        assert prompts == pytest.approx(sum(figures.prompts), rel=0.02), "the gateway counts what the engines count"
        assert cached == pytest.approx(sum(figures.hits), rel=0.02)
        assert room < sum(answer.prompt_tokens for answer in figures.answers[-CONVERSATIONS:]) < 2 * room
    assert found["home-cost"].misses <= MISSES_KEPT * found["round-robin"].misses


def measured(replicas: Replicas, policy: str, tell: Tell) -> Figures:
    """The conversations, from cold caches."""

    def counted(which: str) -> list[int]:
        return [replica.metric(f"prefix_cache_{which}_total") for replica in replicas]

    for replica in replicas:
        replica.forget()
    queries, hits = counted("queries"), counted("hits")
    with routed(replicas, policy) as (gateway, key), client(gateway.url, authorization=f"Bearer {key}") as towards:
        answers = talk(towards, tell)

        def ended() -> Any:
            found = samples(gateway)
            return found if total(found, "requests_total") == CALLS else None

        found = eventually(ended, "all calls are counted")
    prompts, cached = (
        [now - before for now, before in zip(counted(which), start, strict=True)]
        for which, start in (("queries", queries), ("hits", hits))
    )
    return Figures(prompts, cached, (total(found, "prompt_tokens_total"), total(found, "cached_tokens_total")), answers)


def talk(towards: httpx.Client, tell: Tell) -> list[Answer]:
    """All turns of all conversations: one of each, in an order by chance, before the next one of any."""
    chance = random.Random(20)

    def said(words: int) -> str:
        return " ".join(chance.choices(WORDS, k=words))

    def turn(messages: Messages, following: str) -> Answer:
        answer = stream(towards, messages, max_tokens=8)
        messages += [{"role": "assistant", "content": answer.text}, *user(following)]
        return answer

    talks = [user(said(QUESTION)) for _ in range(CONVERSATIONS)]
    answers: list[list[Answer]] = []
    with ThreadPoolExecutor(AT_ONCE) as clients:
        for number in range(1, TURNS + 1):
            order, following = chance.sample(talks, CONVERSATIONS), [said(MORE) for _ in talks]
            answers.append(list(clients.map(turn, order, following)))
            tell(f"turn {number} of {TURNS}: {CONVERSATIONS} calls are answered")
    return list(chain(*answers))
