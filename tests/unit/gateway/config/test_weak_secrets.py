"""Secrets that are easily guessed are named, and never shown."""

from __future__ import annotations

import hashlib

import pytest

from gateway.config import Settings
from gateway.config.weak_secrets import weak_secrets


@pytest.mark.parametrize("word", ["", "admin", "password", "changeme", "secret"])
def test_the_hash_of_a_word_is_no_secret(word: str) -> None:
    (told,) = weak_secrets(Settings(admin_hash=hashlib.sha256(word.encode()).hexdigest().upper()))
    assert told.startswith("TRUNKLINE_ADMIN_HASH")


def test_short_peppers_are_told_of_by_their_versions() -> None:
    found = list(weak_secrets(Settings(peppers=f"1:short-pepper,2:{'x' * 15},3:{'x' * 16}")))
    assert [("pepper 1" in told, "pepper 2" in told) for told in found] == [(True, False), (False, True)]
    assert "short-pepper" not in "".join(found)


def test_good_secrets_are_not_complained_of() -> None:
    strong = hashlib.sha256(b"tladm_a long random text of many signs").hexdigest()
    assert not list(weak_secrets(Settings()))
    assert not list(weak_secrets(Settings(admin_hash=strong, peppers=f"1:{'x' * 32}")))
