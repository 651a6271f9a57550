"""The values that travel between floors: keys, limits, verdicts of admission."""

from __future__ import annotations

from msgspec import Struct


class Limit(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What one key may use; None is unlimited."""

    rpm: int | None = None
    """Requests a minute; as many may come at once after a quiet minute."""
    concurrency: int | None = None
    """Calls in flight at the same time."""

    def over(self, base: Limit) -> Limit:
        """This limit where it says something, `base` elsewhere."""
        return Limit(
            rpm=base.rpm if self.rpm is None else self.rpm,
            concurrency=base.concurrency if self.concurrency is None else self.concurrency,
        )


class Secret(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The stored half of a virtual key's secret."""

    digest: str
    """HMAC-SHA256 of the secret under pepper number `pepper`, hexadecimal."""
    pepper: int = 0
    not_after: float | None = None
    """Seconds since the epoch; set on the old secret by a rotation."""


class KeyRecord(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """All that is known of a virtual key. `version` rises with every change and is compared at admission."""

    id: str
    name: str
    secrets: tuple[Secret, ...]
    created: float
    version: int = 1
    tenant: str = "default"
    models: tuple[str, ...] = ("*",)
    """Globs over route names and aliases."""
    limit: Limit = Limit()
    expires: float | None = None
    revoked: float | None = None
    """Seconds since the epoch."""


class Dimension(Struct, frozen=True):
    """One thing an admission checks, such as a key's requests per minute.

    `kind` is "rate" (a GCRA over `window` seconds) or "lease" (slots held until released or `window` seconds
    after the last renewal).
    """

    name: str
    """What a denial is labelled with: `rpm`, `concurrency`."""
    kind: str
    key: str
    """Where the store keeps it; the same string in every gateway."""
    limit: int
    window: float
    amount: int = 1


class Ask(Struct, frozen=True):
    """One admission: all dimensions are granted, or none is charged."""

    call_id: str
    key_id: str
    key_version: int
    dimensions: tuple[Dimension, ...]


class Standing(Struct, frozen=True):
    """How a dimension stands after an admission: units left, and seconds until it is whole again."""

    remaining: int
    reset: float


class Verdict(Struct, frozen=True):
    """What admission said. `denied` is the index of the dimension that said no; None is a grant."""

    standings: tuple[Standing, ...] = ()
    denied: int | None = None
    retry_after: float = 0.0
    """Seconds; after exactly this long the same ask would be granted if nobody else asked."""
    stale: bool = False
    """The key's version is not the one asked with: load the record again."""
