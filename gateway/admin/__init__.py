"""Administration: keys, tenants and targets as operations, each written into the audit log."""

from gateway.admin.redact import public
from gateway.admin.registrar import Registrar

__all__ = ["Registrar", "public"]
