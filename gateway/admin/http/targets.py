"""Targets in the admin interface: how they stand, and orders to take them out and back in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from litestar import Controller, Request, get, patch

from gateway.admin import targets
from gateway.admin.http.guards import Desk, told
from gateway.admin.models import TargetChange, TargetList, TargetShown
from gateway.core.errors import NotFound


class Targets(Controller):
    """Targets of the routing table, as all gateways see them."""

    path = "/admin/v1/targets"
    tags = ("targets",)

    @get(summary="List targets, with what all gateways report of them")
    async def list_targets(self, desk: Desk) -> TargetList:
        return TargetList(await targets.targets(desk.store, desk.targets, desk.clock.now()))

    @get("/{name:path}", summary="Show a target")
    async def show(self, desk: Desk, name: str) -> TargetShown:
        with _known():
            return await targets.target(desk.store, desk.targets, name.removeprefix("/"), desk.clock.now())

    @patch("/{name:path}", summary="Take a target out or back in, for all gateways; calls that run there go on")
    async def order(self, request: Request[Any, Any, Any], desk: Desk, name: str, data: TargetChange) -> TargetShown:
        name, now = name.removeprefix("/"), desk.clock.now()
        with told("target"), _known():
            await targets.give(desk.store, desk.registrar(request), desk.targets, name, data, now)
            return await targets.target(desk.store, desk.targets, name, now)


@contextmanager
def _known() -> Iterator[None]:
    """Turn a name that the table does not have into an answer."""
    try:
        yield
    except targets.UnknownTarget as error:
        text = str(error)
        raise NotFound(f"{text[0].upper()}{text[1:]}.", param="name") from None
