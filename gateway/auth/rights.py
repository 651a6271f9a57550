"""What a key may be used for."""

from __future__ import annotations

from gateway.config.names import matches
from gateway.core.errors import EndpointNotAllowed, Forbidden
from gateway.core.types import KeyRecord


def may_use(key: KeyRecord, *names: str) -> bool:
    """Whether one of these names of a model is among those the key may use."""
    for glob in key.models:
        if glob == "*" or glob in names:
            return True
        for name in names:
            if matches(glob, name):
                return True
    return False


def is_good(key: KeyRecord, now: float) -> bool:
    """Whether any secret of the key opens anything as of `now`, in seconds since the epoch."""
    if key.revoked is not None or (key.expires is not None and key.expires <= now):
        return False
    return any(secret.not_after is None or secret.not_after > now for secret in key.secrets)


def authorize(key: KeyRecord, endpoint: str, model: str, route: str) -> None:
    """Raise `Forbidden` unless the key may use the endpoint, and the model by alias or by the route's own name."""
    endpoints, models = key.endpoints, key.models
    if "*" not in endpoints and not any(matches(glob, endpoint) for glob in endpoints):
        raise EndpointNotAllowed(f"This key may not use the endpoint {endpoint!r}.")
    if "*" not in models and not may_use(key, model, route):
        raise Forbidden(f"This key may not use the model {model!r}.", param="model")
