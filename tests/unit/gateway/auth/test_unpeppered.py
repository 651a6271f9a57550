"""Keys hashed without a pepper, in a gateway that has peppers: who can write to the store could make some."""

from __future__ import annotations

import pytest

from gateway.auth.pepper import Peppers
from gateway.auth.token import digest
from gateway.config.settings import PepperVersions
from gateway.core.types import Secret

FORGED = (Secret(digest=digest("word", b""), pepper=0),)


@pytest.mark.parametrize(
    ("versions", "is_accepted"),
    [
        (PepperVersions({}), True),
        (PepperVersions({1: b"one"}), False),
        (PepperVersions({1: b"one", 2: b"two"}), False),
        (PepperVersions({1: b"one"}, until=100.0, now=lambda: 99.0), True),
        (PepperVersions({1: b"one"}, until=100.0, now=lambda: 100.0), False),
    ],
)
def test_they_are_accepted_only_without_peppers_or_until_a_date(versions: PepperVersions, is_accepted: bool) -> None:
    assert (Peppers(versions).find(FORGED, "word") is not None) is is_accepted


def test_the_date_comes_while_the_gateway_runs() -> None:
    now = [99.0]
    peppers = Peppers(PepperVersions({1: b"one"}, until=100.0, now=lambda: now[0]))
    assert peppers.find(FORGED, "word") is not None and peppers.hash("word").pepper == 1
    now[0] = 100.0
    assert peppers.find(FORGED, "word") is None
