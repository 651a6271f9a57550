"""What can be asked of a target: what its server has, and what can be said in other words."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from backends.capabilities import Capabilities, native
from backends.endpoints import FORMS, Endpoint
from backends.native import natives
from backends.passed import Passed, recordings
from gateway.config import TargetSpec
from gateway.dialects import translated


def spoken(capabilities: Capabilities, spec: TargetSpec) -> Mapping[str, Capabilities]:
    """Each endpoint that the target can be asked for, and who speaks with its server then."""
    return _spoken(capabilities, spec.endpoints, spec.tool_parser)


PASSED = Capabilities.of(Passed())


@cache
def _spoken(
    capabilities: Capabilities, endpoints: tuple[Endpoint, ...] | None, parser: str | None
) -> Mapping[str, Capabilities]:
    known = native(capabilities)
    if endpoints is not None:
        missing = [each for each in endpoints if each not in known]
        audio = [each for each in missing if each in FORMS]
        others = {**natives(*missing), **(recordings(*audio) if audio else {})}
        known = {
            each: known[each] if each in known else Capabilities.of(others[each]) for each in dict.fromkeys(endpoints)
        }
    return translated(known, parser)
