"""Comparing a secret with what is stored of it, under peppers that have versions."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from typing import Final

from gateway.auth.token import digest
from gateway.core.types import Secret

MOST_SECRETS: Final = 2
"""A key has one secret, and during a rotation another."""
_NOBODY: Final = Secret(digest="0" * 64)


class Peppers:
    """The peppers of this gateway. New secrets are hashed under the newest, which has the highest version."""

    def __init__(self, versions: Mapping[int, bytes]) -> None:
        self._versions = versions
        """Asked each time: what is accepted may end at a date."""
        self.newest = max(versions)

    def hash(self, secret: str, not_after: float | None = None) -> Secret:
        """The stored half of a secret, under the newest pepper."""
        pepper = self.newest
        return Secret(digest=digest(secret, self._versions[pepper]), pepper=pepper, not_after=not_after)

    def find(self, stored: Sequence[Secret], presented: str) -> Secret | None:
        """The stored secret that was presented; its `not_after` is not looked at.

        None takes the same work for a wrong secret as for a key that does not exist, which has no stored secrets.
        """
        for candidate in reversed(stored):
            if self._equal(candidate, presented):
                return candidate
        for _ in range(len(stored), MOST_SECRETS):
            self._equal(_NOBODY, presented)
        return None

    def _equal(self, stored: Secret, presented: str) -> bool:
        pepper = self._versions.get(stored.pepper)
        computed = digest(presented, pepper or b"")
        # Without the pepper nothing is equal, or whoever can write to the store could make keys.
        return hmac.compare_digest(computed.encode(), stored.digest.encode()) and pepper is not None
