"""Secrets of the gateway itself that are easily guessed. They are named, never shown."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

from gateway.config.settings import PREFIX, Settings

LEAST_PEPPER: Final = 16
"""Characters; what is shorter can be tried out by whoever has read the store."""
_WORDS: Final = (
    "", "0000", "1234", "12345", "123456", "12345678", "123456789", "admin", "admin123", "administrator", "changeit",
    "changeme", "default", "demo", "example", "foobar", "letmein", "master", "passw0rd", "password", "password1",
    "password123", "qwerty", "root", "secret", "sk-1234", "test", "test123", "token", "trunkline", "welcome",
)  # fmt: skip
_WEAK: Final = frozenset(hashlib.sha256(word.encode()).hexdigest() for word in _WORDS)


def weak_secrets(settings: Settings) -> Iterator[str]:
    """What is weak about each secret that is, beginning with the setting's name."""
    for version, pepper in settings.pepper_versions().items():
        if version and len(pepper) < LEAST_PEPPER:
            yield f"{PREFIX}PEPPERS: pepper {version} has fewer than {LEAST_PEPPER} characters"
    if settings.admin_digest() in _WEAK:
        yield f"{PREFIX}ADMIN_HASH is the hash of a word that anybody would try; `trunkline admin hash` makes a key"
