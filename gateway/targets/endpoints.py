"""What can be asked of a target: what its server has, and what can be said in other words."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from backends.capabilities import Capabilities, native
from backends.endpoints import Endpoint
from backends.native import natives
from gateway.config import TargetSpec
from gateway.dialects import translated


def spoken(capabilities: Capabilities, spec: TargetSpec) -> Mapping[Endpoint, Capabilities]:
    """Each endpoint that the target can be asked for, and who speaks with its server then."""
    return _spoken(capabilities, spec.endpoints, spec.tool_parser)


@cache
def _spoken(
    capabilities: Capabilities, endpoints: tuple[Endpoint, ...] | None, parser: str | None
) -> Mapping[Endpoint, Capabilities]:
    known = native(capabilities)
    if endpoints is not None:
        others = natives(*(each for each in endpoints if each not in known))
        known = {
            each: known[each] if each in known else Capabilities.of(others[each]) for each in dict.fromkeys(endpoints)
        }
    return translated(known, parser)
