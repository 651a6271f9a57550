"""Calls and gateways for the tests of policies."""

from __future__ import annotations

from random import Random

from harness.routing import Gateway, Make, Replica, key

from gateway.routing.policies.api import Prompt


def unique(number: int, tokens: int = 1000) -> Prompt:
    """The first call of a conversation that nobody has seen, in a session of its own."""
    return Prompt(tokens, key("unique", number), session=key("session", number))


def anything(chance: Random, _: int = 0) -> Prompt:
    """Chats in a few groups, some with nothing to go by."""
    return Prompt(chance.randrange(1, 9000)) if chance.random() < 0.1 else chat(chance)


def chat(chance: Random) -> Prompt:
    """A call of one of 200 chats in a few groups, some with a session."""
    group, conversation = chance.randrange(5), chance.randrange(40)
    return Prompt(
        tokens=1500 * group + chance.randrange(1, 4000),
        conversation=key("c", group, conversation),
        group=key("g", group) if group else None,
        prefix=1500 * group,
        follow_up=chance.random() < 0.5,
        session=key("s", conversation) if chance.random() < 0.5 else None,
    )


def twins(make: Make, count: int = 5) -> tuple[Gateway, Gateway]:
    one, other = ([Replica(f"t{n}", 1.0 + n % 2) for n in range(count)] for _ in range(2))
    return Gateway(make, one, 7), Gateway(make, other, 7)
