"""The gateway's own messages: where they go, and in which form. Call records are another thing (`metering.lines`)."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Final

import msgspec

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("text", "json")
_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_up(level: str, format: str) -> None:
    """Write messages from `level` up to standard error. Raises `ValueError` for a level or a form that is none."""
    if level.lower() not in LEVELS:
        raise ValueError(f"TRUNKLINE_LOG_LEVEL={level!r}: expected one of {', '.join(LEVELS)}")
    if format not in FORMATS:
        raise ValueError(f"TRUNKLINE_LOG_FORMAT={format!r}: expected one of {', '.join(FORMATS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_TEXT) if format == "text" else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


class JsonFormatter(logging.Formatter):
    """A message as one line of JSON: `time` (UTC), `level`, `pid`, `logger`, `message`, perhaps `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, str | int] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "pid": record.process or 0,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()
