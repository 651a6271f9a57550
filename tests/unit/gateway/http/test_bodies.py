"""Bodies that are being read, counted for their key and tenant."""

from __future__ import annotations

import pytest

from gateway.config.table import Bodies
from gateway.core.errors import BodyMemoryFull, TooManyBodies
from gateway.core.types import KeyRecord
from gateway.http.bodies import BodyMemory

BODIES = Bodies(request=10, in_flight=100)


def key(id: str, tenant: str) -> KeyRecord:
    return KeyRecord(id=id, name="n", secrets=(), created=1.0, tenant=tenant)


def test_a_key_has_a_quarter_a_tenant_half_and_all_together_no_more_than_all() -> None:
    memory = BodyMemory()
    memory.take(key("a", "t"), 25, BODIES)
    with pytest.raises(TooManyBodies, match="The key may send bodies of 25 bytes"):
        memory.take(key("a", "t"), 1, BODIES)
    memory.take(key("b", "t"), 25, BODIES)
    with pytest.raises(TooManyBodies, match="The tenant may send bodies of 50 bytes"):
        memory.take(key("c", "t"), 1, BODIES)
    memory.take(key("d", "u"), 25, BODIES)
    memory.take(key("e", "u"), 25, BODIES)
    with pytest.raises(BodyMemoryFull, match="100 bytes"):
        memory.take(key("f", "v"), 1, BODIES)


def test_one_of_the_largest_size_always_may() -> None:
    BodyMemory().take(key("a", "t"), 10, Bodies(request=10, in_flight=10))


def test_what_was_given_back_can_be_taken_again_and_nothing_is_left() -> None:
    memory = BodyMemory()
    for _ in range(3):
        memory.take(key("a", "t"), 25, BODIES)
        memory.give_back(key("a", "t"), 25)
    assert not memory._of and not memory._all
