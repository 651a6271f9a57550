"""Targets in the admin interface: how they stand, and orders to take them out and back in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from litestar import Controller, Request, get, patch

from gateway.admin import targets
from gateway.admin.http.guards import AdminContext, told
from gateway.admin.models import TargetChange, TargetList, TargetShown
from gateway.core.errors import NotFound


class Targets(Controller):
    """Targets of the routing table, as all gateways see them."""

    path = "/admin/v1/targets"
    tags = ("targets",)

    @get(summary="List targets, with what all gateways report of them")
    async def list_targets(self, context: AdminContext) -> TargetList:
        return TargetList(await targets.targets(context.store, context.targets, context.clock.now()))

    @get("/{name:path}", summary="Show a target")
    async def show(self, context: AdminContext, name: str) -> TargetShown:
        with _known():
            return await targets.target(context.store, context.targets, name.removeprefix("/"), context.clock.now())

    @patch("/{name:path}", summary="Take a target out or back in, for all gateways; calls that run there go on")
    async def order(
        self, request: Request[Any, Any, Any], context: AdminContext, name: str, data: TargetChange
    ) -> TargetShown:
        name, now = name.removeprefix("/"), context.clock.now()
        with told("target"), _known():
            await targets.give(context.store, context.registrar(request), context.targets, name, data, now)
            return await targets.target(context.store, context.targets, name, now)


@contextmanager
def _known() -> Iterator[None]:
    """Turn a name that the table does not have into an answer."""
    try:
        yield
    except targets.UnknownTarget as error:
        text = str(error)
        raise NotFound(f"{text[0].upper()}{text[1:]}.", param="name") from None
