"""Secrets of the gateway itself that are easily guessed. They are named, never shown."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote

from gateway.config.settings import PREFIX, Settings

LEAST_PEPPER: Final = 16
"""Characters; what is shorter can be tried out by whoever has read the store."""
_WORDS: Final = (
    "", "-", "0000", "1234", "12345", "123456", "12345678", "123456789", "abc123", "admin", "admin123",
    "administrator", "api-key", "apikey", "changeit", "changeme", "default", "demo", "dummy", "empty", "example",
    "fake", "foobar", "key", "letmein", "local", "master", "na", "no-key", "none", "null", "passw0rd", "password",
    "password1", "password123", "placeholder", "qwerty", "redis", "root", "secret", "sk-1234", "sk-fake",
    "sk-local", "sk-no-key-required", "sk-xxx", "test", "test123", "token", "token-abc123", "trunkline", "welcome",
    "x", "xxx", "your-api-key",
)  # fmt: skip
_WEAK: Final = frozenset(hashlib.sha256(word.encode()).hexdigest() for word in _WORDS)


def is_weak(secret: str) -> bool:
    """It is a word that anybody would try, among them those of engines' own examples."""
    words = {secret, secret.strip().lower()}
    return any(hashlib.sha256(word.encode()).hexdigest() in _WEAK for word in words)


def weak_secrets(settings: Settings) -> Iterator[str]:
    """What is weak about each secret that is, beginning with the setting's name."""
    for version, pepper in settings.pepper_versions().items():
        if version and len(pepper) < LEAST_PEPPER:
            yield f"{PREFIX}PEPPERS: pepper {version} has fewer than {LEAST_PEPPER} characters"
    urls = (("REDIS_URL", settings.redis_url), ("RECORDS_URL", settings.records_url), ("CACHE_URL", settings.cache_url))
    for name, url in urls:
        if url is not None and (password := _password(url)) is not None and is_weak(password):
            yield f"{PREFIX}{name}: its password is a word that anybody would try"
    if settings.admin_digest() in _WEAK:
        yield f"{PREFIX}ADMIN_HASH is the hash of a word that anybody would try; `trunkline admin hash` makes a key"


def _password(url: str) -> str | None:
    """That of a Redis URL, of whatever kind; None: it has none."""
    login, found, _ = url.partition("://")[2].rpartition("@")
    _, given, password = login.partition(":")
    return unquote(password) if found and given and password else None
