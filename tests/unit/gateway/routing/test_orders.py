"""Orders that are kept are those that hashing gives, whichever way they are gone through."""

from __future__ import annotations

from random import Random

import pytest
from harness.routing import key

from gateway.routing.policies.orders import KEPT_PLACES, Order, Orders, marked, marks_of
from gateway.routing.rendezvous import Rendezvous


@pytest.mark.parametrize("count", [1, 3, 16, 17, 100])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 1.0])
def test_marked_places_come_nearest_first(count: int, part: float) -> None:
    chance = Random(count)
    for _ in range(20):
        places = chance.sample(range(count), count)
        chosen = [place for place in range(count) if chance.random() < part]
        marks = marks_of(chosen, count)
        assert list(Order(places).among(marks)) == [place for place in places if place in chosen]
        start = chance.randrange(count + 1)
        assert list(marked(marks, start, count)) == [place for place in chosen if place >= start]


def test_no_marks_are_no_places() -> None:
    assert not list(Order([1, 0]).among(b"")) and not list(marked(b"", 0, 2))


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 0.5]])
def test_an_order_is_that_of_the_hashes(weights: list[float] | None) -> None:
    rendezvous = Rendezvous(["a", "b", "c"])
    orders = Orders(rendezvous, 3)
    for n in range(50):
        assert list(orders.of(key(n), weights).places) == rendezvous.order(key(n), range(3), weights)


def test_orders_are_kept_until_the_weights_are_others() -> None:
    orders = Orders(Rendezvous(["a", "b", "c"]), 3)
    kept = orders.of(key(1), None)
    assert orders.of(key(1), None) is kept
    orders.clear()
    assert orders.of(key(1), [9.0, 1.0, 1.0]) is not kept


def test_no_more_orders_are_kept_than_there_is_room_for() -> None:
    names = [f"t{n}" for n in range(512)]
    orders = Orders(Rendezvous(names), len(names))
    kept = orders.of(key(0), None)
    for n in range(1, KEPT_PLACES // 512):
        orders.of(key(n), None)
    assert orders.of(key(0), None) is kept
    orders.of(key("one more"), None)
    assert orders.of(key(0), None) is not kept, "the oldest went"
