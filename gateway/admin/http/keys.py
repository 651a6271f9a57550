"""Virtual keys in the admin interface: list, make, show, change, rotate, revoke."""

from __future__ import annotations

from typing import Annotated, Any

from litestar import Controller, Request, delete, get, patch, post
from litestar.params import Parameter

from gateway.admin.http.guards import AdminContext, told
from gateway.admin.models import IssuedKey, Key, KeyChange, KeyHeld, KeyList, NewKey, Rotation, Status
from gateway.admin.operations import change_key, create_key
from gateway.admin.standing import key_held
from gateway.admin.validation import known_routes
from gateway.admin.views import issued, key, keys, shown
from gateway.core.errors import BadRequest

PAGE = 100
MAX_PAGE = 1000


class Keys(Controller):
    """Virtual keys."""

    path = "/admin/v1/keys"
    tags = ("keys",)

    @get(summary="List keys, the oldest first")
    async def list_keys(
        self,
        context: AdminContext,
        tenant: Annotated[str | None, Parameter(description="Only this tenant's")] = None,
        label: Annotated[
            list[str] | None, Parameter(description="Only with this label, NAME:VALUE; repeatable")
        ] = None,
        status: Annotated[Status | None, Parameter(description="Only with this status")] = None,
        limit: Annotated[int, Parameter(ge=1, le=MAX_PAGE, description="Keys on a page")] = PAGE,
        after: Annotated[str | None, Parameter(description="Begin after this key; `next` of the page before")] = None,
    ) -> KeyList:
        labels = dict(map(_label, label or ()))
        records = await keys(context.store, tenant=tenant, status=status, labels=labels)
        return _page(records, limit, after)

    @post(summary="Make a key; its secret is in this answer and nowhere else")
    async def create(self, request: Request[Any, Any, Any], context: AdminContext, data: NewKey) -> IssuedKey:
        _known(context, data.model_limits)
        with told("key"):
            return issued(*await create_key(context.registrar(request), data, context.clock.now()))

    @get("/{key_id:str}", summary="Show a key, the limits that hold for it, and what is left of them")
    async def show(self, context: AdminContext, key_id: str) -> KeyHeld:
        with told("key"):
            return await key_held(context.store, context.holding, await key(context.store, key_id))

    @patch("/{key_id:str}", summary="Change a key, for the very next call")
    async def change(self, request: Request[Any, Any, Any], context: AdminContext, key_id: str, data: KeyChange) -> Key:
        if isinstance(data.model_limits, dict):
            _known(context, {route: limit for route, limit in data.model_limits.items() if limit is not None})
        with told("key"):
            return shown(await change_key(context.store, context.registrar(request), key_id, data, context.clock.now()))

    @delete("/{key_id:str}", status_code=200, summary="Revoke a key for good, from the very next call")
    async def revoke(
        self,
        request: Request[Any, Any, Any],
        context: AdminContext,
        key_id: str,
        forget: Annotated[bool, Parameter(description="Delete it: it is listed no more. The ledger stays")] = False,
    ) -> Key:
        registrar = context.registrar(request)
        with told("key"):
            return shown(await (registrar.delete(key_id) if forget else registrar.revoke(key_id)))

    @post("/{key_id:str}/rotate", status_code=200, summary="Give a key a new secret, which is shown this once")
    async def rotate(
        self, request: Request[Any, Any, Any], context: AdminContext, key_id: str, data: Rotation | None = None
    ) -> IssuedKey:
        with told("key"):
            return issued(*await context.registrar(request).rotate(key_id, (data or Rotation()).overlap_seconds))


def _page(records: list[Key], limit: int, after: str | None) -> KeyList:
    start = 0
    if after is not None:
        ids = [record.id for record in records]
        if after not in ids:
            raise BadRequest("after: there is no such key among these; begin again.", param="after")
        start = ids.index(after) + 1
    page = records[start : start + limit]
    return KeyList(page, page[-1].id if start + limit < len(records) else None)


def _label(text: str) -> tuple[str, str]:
    name, separator, value = text.partition(":")
    if not name or not separator:
        raise BadRequest("label: expected NAME:VALUE.", param="label")
    return name, value


def _known(context: AdminContext, limits: dict[str, Any]) -> None:
    try:
        known_routes(limits, context.routes)
    except ValueError as error:
        raise BadRequest(str(error), param="model_limits") from None
