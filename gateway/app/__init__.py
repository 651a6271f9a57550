"""The composition root: settings and table in, an ASGI app out."""

from gateway.app.gateway import Gateway, from_environment

__all__ = ["Gateway", "from_environment"]
