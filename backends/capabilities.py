"""What an adapter can do beside its three methods, asked once: when the table that names it is loaded."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from backends.api import (
    Adapter,
    AnswersMistakesWith500,
    ContinuousUsage,
    Counted,
    Described,
    Exposed,
    Gauged,
    Guarded,
    Launchable,
    Probed,
    RefusesInItsOwnWords,
    Resumable,
    Speaks,
    Stateful,
    Wakeable,
)
from backends.endpoints import COMMON, Endpoint


class Capabilities(Struct, frozen=True, kw_only=True):
    """An adapter, and the same adapter again for each thing that it can; None: it cannot."""

    adapter: Adapter
    stateful: Stateful | None
    continuous: ContinuousUsage | None
    resumable: Resumable | None
    refusing: RefusesInItsOwnWords | None
    mistaken: AnswersMistakesWith500 | None
    probed: Probed | None
    guarded: Guarded | None
    exposed: Exposed | None
    gauged: Gauged | None
    described: Described | None
    counted: Counted | None
    launchable: Launchable | None
    wakeable: Wakeable | None

    @classmethod
    def of(cls, adapter: Adapter) -> Capabilities:
        """Asks for each protocol, which together takes a tenth of a millisecond."""
        return cls(
            adapter=adapter,
            stateful=adapter if isinstance(adapter, Stateful) else None,
            continuous=adapter if isinstance(adapter, ContinuousUsage) else None,
            resumable=adapter if isinstance(adapter, Resumable) else None,
            refusing=adapter if isinstance(adapter, RefusesInItsOwnWords) else None,
            mistaken=adapter if isinstance(adapter, AnswersMistakesWith500) else None,
            probed=adapter if isinstance(adapter, Probed) else None,
            guarded=adapter if isinstance(adapter, Guarded) else None,
            exposed=adapter if isinstance(adapter, Exposed) else None,
            gauged=adapter if isinstance(adapter, Gauged) else None,
            described=adapter if isinstance(adapter, Described) else None,
            counted=adapter if isinstance(adapter, Counted) else None,
            launchable=adapter if isinstance(adapter, Launchable) else None,
            wakeable=adapter if isinstance(adapter, Wakeable) else None,
        )


def native(capabilities: Capabilities) -> Mapping[Endpoint, Capabilities]:
    """The endpoints that the adapter's servers have themselves, and what can speak for each."""
    adapter = capabilities.adapter
    if not isinstance(adapter, Speaks):
        return dict.fromkeys(COMMON, capabilities)
    return {
        endpoint: capabilities if speaker is adapter else Capabilities.of(speaker)
        for endpoint, speaker in adapter.endpoints.items()
    }
