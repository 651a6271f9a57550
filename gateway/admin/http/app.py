"""The admin listener's app: its routes, who may come in, how it is described."""

from __future__ import annotations

import warnings

from litestar import Litestar, Router
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, OpenAPIMediaType, OpenAPIResponse, Schema, SecurityScheme, Tag
from litestar.openapi.spec.enums import OpenAPIType

from gateway import __version__
from gateway.admin.http.credentials import Access
from gateway.admin.http.guards import AdminContext, finish, guard, read_strictly, refuse
from gateway.admin.http.keys import Keys
from gateway.admin.http.reports import Reports, health
from gateway.admin.http.targets import Targets
from gateway.admin.http.tenants import Tenants
from gateway.auth import AdminKeys
from gateway.http import openapi

MAX_BODY = 2**20
_SCHEME = "admin key"
_PROBLEMS = {
    400: "The request is not right; `message` and `param` say where",
    401: "Admin key missing or not valid",
    404: "There is no such record",
    409: "Somebody else changed it: `version` is not the stored one",
    429: "Too many wrong keys came from this address",
    503: "The store cannot be asked; try again",
}


def build_app(context: AdminContext, admin_keys: AdminKeys) -> Litestar:
    """The app of the admin listener."""
    guarded = Router(
        "/",
        route_handlers=[Keys, Tenants, Targets, Access, Reports],
        guards=[guard(admin_keys, context.proxies)],
        before_request=read_strictly,
        dependencies={"context": Provide(lambda: context, sync_to_thread=False)},
        security=[{_SCHEME: []}],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        app = Litestar(
            route_handlers=[guarded, health, openapi.assets()],
            after_request=finish,
            exception_handlers={Exception: refuse},
            openapi_config=_description(),
            request_max_body_size=MAX_BODY,
            logging_config=None,
            pdb_on_exception=False,
        )
    _describe_problems(app)
    return app


def _describe_problems(app: Litestar) -> None:
    """Say of all guarded routes how they fail; Litestar would describe errors of its own form."""
    for path, item in (app.openapi_schema.paths or {}).items():
        for method in ("get", "post", "put", "patch", "delete") if path.startswith("/admin/") else ():
            operation = getattr(item, method)
            if operation is not None:
                operation.responses |= {str(status): _problem(text) for status, text in _PROBLEMS.items()}


def _problem(text: str) -> OpenAPIResponse:
    texts = {name: Schema(type=OpenAPIType.STRING) for name in ("message", "type")}
    maybe = {name: Schema(type=[OpenAPIType.STRING, OpenAPIType.NULL]) for name in ("param", "code")}
    error = Schema(type=OpenAPIType.OBJECT, properties={**texts, **maybe})
    body = Schema(type=OpenAPIType.OBJECT, properties={"error": error})
    return OpenAPIResponse(text, content={"application/json": OpenAPIMediaType(schema=body)})


def _description() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="trunkline admin",
        version=__version__,
        description=(
            "Keys, tenants, limits, budgets, targets. Send an admin key as `Authorization: Bearer tladm_...`. "
            "Times are seconds since the epoch; money is in millionths of the currency of the prices."
        ),
        path="/docs",
        render_plugins=[openapi.OfflineSwagger()],
        components=Components(
            security_schemes={_SCHEME: SecurityScheme(type="http", scheme="bearer", bearer_format="tladm_...")}
        ),
        tags=[Tag(name=name) for name in ("keys", "tenants", "targets", "admin keys", "reports", "operations")],
        use_handler_docstrings=True,
    )
