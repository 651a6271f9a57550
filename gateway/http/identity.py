"""The ids of calls."""

from __future__ import annotations

import itertools
import secrets
from typing import Final

BOOT: Final = secrets.token_hex(6)
"""Names this worker: the first part of the ids of its calls."""
_serial = itertools.count(1)


def new_id() -> str:
    """Unique for ever."""
    return f"tl-{BOOT}-{next(_serial):x}"
