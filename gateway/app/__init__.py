"""The composition root: settings and table in, an ASGI app out."""

from gateway.app.gateway import build, from_environment

__all__ = ["build", "from_environment"]
