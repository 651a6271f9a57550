"""The routing table and the settings: what an operator writes, decoded into frozen values before anything serves."""

from gateway.config.connections import TLSSpec
from gateway.config.settings import Settings
from gateway.config.table import (
    FallbackSpec,
    Launch,
    Mistake,
    Mistakes,
    Retry,
    RouteSpec,
    Table,
    TargetSpec,
    Timeouts,
    load_table,
    parse_table,
    table_schema,
)

__all__ = [
    "FallbackSpec",
    "Launch",
    "Mistake",
    "Mistakes",
    "Retry",
    "RouteSpec",
    "Settings",
    "TLSSpec",
    "Table",
    "TargetSpec",
    "Timeouts",
    "load_table",
    "parse_table",
    "table_schema",
]
