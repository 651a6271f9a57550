"""What a key may be used for."""

from __future__ import annotations

from gateway.config.names import matches
from gateway.core.errors import EndpointNotAllowed, Forbidden
from gateway.core.types import KeyRecord


def may_use(key: KeyRecord, *names: str) -> bool:
    """Whether one of these names of a model is among those the key may use."""
    return any(matches(glob, name) for glob in key.models for name in names)


def authorize(key: KeyRecord, endpoint: str, model: str, route: str) -> None:
    """Raise `Forbidden` unless the key may use the endpoint, and the model by alias or by the route's own name."""
    if not any(matches(glob, endpoint) for glob in key.endpoints):
        raise EndpointNotAllowed(f"This key may not use the endpoint {endpoint!r}.")
    if not may_use(key, model, route):
        raise Forbidden(f"This key may not use the model {model!r}.", param="model")
