"""Who administers: admin keys, and the hash in the environment that begins it all."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Final

from gateway.auth.presented import Authenticator, presented
from gateway.auth.throttle import Throttle
from gateway.auth.token import ADMIN, parse
from gateway.core.clock import Clock
from gateway.core.types import AdminKey
from gateway.store import Records

BOOTSTRAP: Final = AdminKey(id="bootstrap", name="bootstrap", secrets=(), created=0.0)
"""Whoever holds the token whose hash was configured."""


class AdminKeys:
    """Tells which admin key a call came with, always by the store: a revocation holds for the next call.

    `bootstrap` is the SHA-256 of an admin token (`tladm_...`) in hexadecimal digits, or empty; raises `ValueError` for
    anything else.
    """

    def __init__(
        self,
        store: Records,
        peppers: Mapping[int, bytes],
        clock: Clock,
        *,
        bootstrap: str = "",
        throttle: Throttle | None = None,
    ) -> None:
        if bootstrap and not re.fullmatch(r"[0-9a-fA-F]{64}", bootstrap):
            raise ValueError("the bootstrap hash must be the SHA-256 of an admin token: 64 hexadecimal digits")
        self._bootstrap = bootstrap.lower().encode()
        self._authenticator = Authenticator(
            store, AdminKey, peppers, clock, throttle or Throttle(clock), prefix=ADMIN, stale=0.0
        )

    async def open(self) -> None:
        """Start to re-hash keys under the newest pepper as they are used."""
        self._authenticator.rehash.open()

    async def close(self) -> None:
        """End what goes on in the background."""
        await self._authenticator.close()

    async def authenticate(self, headers: Mapping[bytes, bytes], source: str | None) -> AdminKey:
        """The admin key of a call. Raises `Unauthenticated`, `Throttled` and `StoreUnavailable`.

        A key with `once` is good for nothing but making an admin key.
        """
        if self._bootstrap and self._is_bootstrap(presented(headers, ADMIN)):
            return BOOTSTRAP
        return await self._authenticator.identify(headers, source, fresh=True)

    def _is_bootstrap(self, sent: bytes) -> bool:
        try:
            parse(sent.decode("ascii"), ADMIN)  # a weak word is no token, whatever was configured
        except ValueError:
            return False
        return hmac.compare_digest(hashlib.sha256(sent).hexdigest().encode(), self._bootstrap)
