"""Admin keys in the admin interface, and how the first one comes to be."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from litestar import Controller, Request, delete, get, post

from gateway.admin import Registrar
from gateway.admin.http.guards import AdminContext, told
from gateway.admin.models import AdminKeyList, AdminKeyShown, IssuedAdminKey, NewAdminKey
from gateway.admin.operations import lifetime
from gateway.admin.views import issued_admin, shown_admin
from gateway.core.types import AdminKey
from gateway.store import Store, StoreDown

log = logging.getLogger("trunkline.admin")

RETRY_SECONDS = 1.0
REMINDER = (
    "No admin key can be used, and the one-time token was made at an earlier start. "
    "`trunkline admin create --name me` makes an admin key where the store can be reached.\n"
)


class Access(Controller):
    """Admin keys: they administer and cannot infer."""

    path = "/admin/v1/admin-keys"
    tags = ("admin keys",)

    @get(summary="List admin keys, the oldest first")
    async def list_keys(self, context: AdminContext) -> AdminKeyList:
        return AdminKeyList([shown_admin(record) for record in await context.store.records.all(AdminKey)])

    @post(opt={"once": True}, summary="Make an admin key; its secret is in this answer and nowhere else")
    async def create(self, request: Request[Any, Any, Any], context: AdminContext, data: NewAdminKey) -> IssuedAdminKey:
        with told("admin key"):
            left = lifetime(data.expires, context.clock.now())
            record, secret = await context.registrar(request).create_admin(data.name, lifetime=left)
        return issued_admin(record, secret)

    @delete("/{key_id:str}", status_code=200, summary="Revoke an admin key for good")
    async def revoke(self, request: Request[Any, Any, Any], context: AdminContext, key_id: str) -> AdminKeyShown:
        with told("admin key"):
            return shown_admin(await context.registrar(request).revoke_admin(key_id))


async def offer_token(registrar: Registrar, store: Store, url: str, say: Callable[[str], None]) -> None:
    """As soon as the store answers: if there is no admin key, make a token for making one, and say so once."""
    warned = False
    while True:
        try:
            made = await registrar.first_admin()
            if made is not None:
                say(invitation(url, made[1]))
            elif all(record.once or record.revoked is not None for record in await store.records.all(AdminKey)):
                say(REMINDER)
            return
        except StoreDown as error:
            if not warned:
                log.warning("whether there is an admin key cannot be seen yet: %s", error)
            warned = True
            await asyncio.sleep(RETRY_SECONDS)


def invitation(url: str, token: str) -> str:
    """What the operator of a new gateway is told."""
    return (
        "There is no admin key yet. This token makes the first one, once:\n\n"
        f"  curl {url}/admin/v1/admin-keys \\\n"
        f"    -H 'Authorization: Bearer {token}' \\\n"
        "    -H 'Content-Type: application/json' -d '{\"name\": \"me\"}'\n\n"
        "So does `trunkline admin create --name me`, where the store can be reached.\n"
    )
