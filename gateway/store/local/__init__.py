"""The store of a gateway without Redis: counters in this process, everything else in one SQLite file."""

from gateway.store.local.location import database_of
from gateway.store.local.store import LocalStore, prepare

__all__ = ["LocalStore", "database_of", "prepare"]
