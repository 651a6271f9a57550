"""Secrets that are easily guessed are named, and never shown."""

from __future__ import annotations

import hashlib

import pytest

from gateway.config import Settings
from gateway.config.weak_secrets import is_weak, weak_secrets


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


@pytest.mark.parametrize("secret", ["token-abc123", "EMPTY", "empty", " changeme ", "sk-no-key-required", "Password"])
def test_words_of_engines_examples_are_weak(secret: str) -> None:
    assert is_weak(secret)


@pytest.mark.parametrize("secret", ["hf_QXlRvTq0bW", "sk-proj-9f3kd02kfa", "correct horse battery staple"])
def test_what_nobody_tries_is_not(secret: str) -> None:
    assert not is_weak(secret)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:password@host/0",
        "rediss://default:change%6De@host:6379/0",
        "redis+sentinel://user:admin@a,b/master",
        "unix://user:test@/run/redis.sock",
    ],
)
@pytest.mark.parametrize("setting", ["redis_url", "records_url", "cache_url"])
def test_a_weak_password_of_redis_is_told_of(url: str, setting: str) -> None:
    (told,) = weak_secrets(Settings(**{setting: url}))
    assert told == f"TRUNKLINE_{setting.upper()}: its password is a word that anybody would try"


@pytest.mark.parametrize(
    "url", ["redis://host/0", "redis://user@host/0", "redis://u:k3u98-a9dk2-x@host", "redis://:@h"]
)
def test_a_good_password_or_none_is_not(url: str) -> None:
    assert not list(weak_secrets(Settings(redis_url=url)))
