"""Dialects of clients, for servers that do not speak them: pure functions from bytes to bytes, one a direction."""

from gateway.dialects.dialect import Dialect, Writer
from gateway.dialects.known import translated
from gateway.dialects.parsing import Parsing
from gateway.dialects.tools.parser import FORMATS
from gateway.dialects.translating import Translating

__all__ = ["FORMATS", "Dialect", "Parsing", "Translating", "Writer", "translated"]
