"""Tenants in the admin interface: list, show, set."""

from __future__ import annotations

from typing import Any

from litestar import Controller, Request, delete, get, patch, put

from gateway.admin.http.guards import AdminContext, told
from gateway.admin.models import TenantBody, TenantChange, TenantDeleted, TenantHeld, TenantList, TenantShown
from gateway.admin.operations import change_tenant, delete_tenant, set_tenant
from gateway.admin.standing import tenant_held
from gateway.admin.views import tenant, tenants


class Tenants(Controller):
    """Tenants: those with a record, and those that keys name."""

    path = "/admin/v1/tenants"
    tags = ("tenants",)

    @get(summary="List tenants, by name")
    async def list_tenants(self, context: AdminContext) -> TenantList:
        return TenantList(await tenants(context.store))

    @get("/{tenant_id:str}", summary="Show a tenant, the limits that hold for it, and what is left of them")
    async def show(self, context: AdminContext, tenant_id: str) -> TenantHeld:
        with told("tenant"):
            return await tenant_held(context.store, context.holding, tenant_id)

    @delete("/{tenant_id:str}", status_code=200, summary="Delete what is set of a tenant that has no keys")
    async def delete(self, request: Request[Any, Any, Any], context: AdminContext, tenant_id: str) -> TenantDeleted:
        with told("tenant"):
            buried = await delete_tenant(context.store, context.registrar(request), tenant_id)
            return TenantDeleted(buried.id, buried.version)

    @put("/{tenant_id:str}", summary="Write a tenant, whole: what is left out is not limited")
    async def put(
        self, request: Request[Any, Any, Any], context: AdminContext, tenant_id: str, data: TenantBody
    ) -> TenantShown:
        with told("tenant"):
            await set_tenant(context.registrar(request), tenant_id, data)
            return await tenant(context.store, tenant_id)

    @patch("/{tenant_id:str}", summary="Change a tenant: what is left out stays, null removes")
    async def change(
        self, request: Request[Any, Any, Any], context: AdminContext, tenant_id: str, data: TenantChange
    ) -> TenantShown:
        with told("tenant"):
            await change_tenant(context.store, context.registrar(request), tenant_id, data)
            return await tenant(context.store, tenant_id)
