"""Where policies of others may still import from: the paths of the layout before, for one release."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Final

POLICIES: Final = "gateway.routing.policies"
"""What a policy imports from."""

MOVED: Final = {
    "gateway.routes": "gateway.routing",
    "gateway.routes.load": "gateway.targets.load",
    "gateway.routes.policies": POLICIES,
    "gateway.routes.policies.api": "gateway.routing.policies.api",
    "gateway.routes.policies.home_cost": "gateway.routing.policies.home_cost",
    "gateway.routes.policies.least_tokens": "gateway.routing.policies.least_tokens",
    "gateway.routes.policies.registry": "gateway.routing.policies.registry",
    "gateway.routes.policies.round_robin": "gateway.routing.policies.round_robin",
    "gateway.routes.policies.session": "gateway.routing.policies.session",
    "gateway.routes.policies.tables": "gateway.routing.policies.tables",
    "gateway.routes.rendezvous": "gateway.routing.rendezvous",
}
"""Old path to new path."""


class OldPaths:
    """A finder and loader of modules: an old path is the module at its new path, with a `DeprecationWarning`."""

    # No `importlib.abc.Loader`, which would load 40 modules into every process.

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module that has moved."""
        return ModuleSpec(name, self) if name in MOVED else None  # type: ignore[arg-type] # not one of that class

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Nothing: `exec_module` puts the module at the new path into its place."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Let the old name stand for the module that has moved."""
        name = module.__name__
        warnings.warn(
            f"{name} is now {MOVED[name]}, and its old path goes with the next release; import from {POLICIES}",
            DeprecationWarning,
            stacklevel=2,
        )
        sys.modules[name] = importlib.import_module(MOVED[name])


def install() -> None:
    """Find modules that have moved, from now on. Ahead of the other finders, which would load a second copy."""
    if not any(isinstance(finder, OldPaths) for finder in sys.meta_path):
        sys.meta_path.insert(0, OldPaths())
