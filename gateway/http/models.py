"""What clients ask of models: which there are, and what TGI's clients want to know; in the words of who asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from litestar import Request, Router, get
from litestar.params import Parameter
from msgspec import UNSET, Struct, UnsetType

from gateway import __version__
from gateway.auth import Network, may_use
from gateway.call_state import Parts
from gateway.core.errors import NotFound
from gateway.http.operations import caller
from gateway.targets.target import UNBOUNDED


class Model(Struct):
    """A model this key may use."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "trunkline"


class ModelList(Struct):
    """The models this key may use."""

    data: list[Model]
    object: str = "list"
    models: list[Model] | UnsetType = UNSET
    """Empty, for clients that look here for what is known of each model: they are to go by what they know."""


class NamedModel(Struct):
    """A model, in Anthropic's words."""

    id: str
    display_name: str
    type: str = "model"
    created_at: str = "1970-01-01T00:00:00Z"


class NamedModels(Struct):
    """The models this key may use, in Anthropic's words."""

    data: list[NamedModel]
    first_id: str | None
    last_id: str | None
    has_more: bool = False


class Info(Struct):
    """What clients of TGI ask before they call: of the model of calls that name none."""

    model_id: str
    max_input_tokens: int | None
    max_total_tokens: int | None
    version: str = __version__
    router: str = "trunkline"
    model_pipeline_tag: str = "text-generation"


def router(current: Callable[[], Parts], proxies: tuple[Network, ...] = ()) -> Router:
    """The ordinary handlers, all described in OpenAPI."""

    @get("/v1/models", tags=["models"], summary="List the models this key may use")
    async def list_models(request: Request[Any, Any, Any]) -> ModelList | NamedModels:
        parts, key = current(), (await caller(current(), request, proxies)).key
        names = parts.routes.models(lambda *names: may_use(key, *names))
        names += [  # those that only a pattern of the table stands for, but the key names
            name for name in key.models if "*" not in name and name not in names and parts.routes.leads_anywhere(name)
        ]
        if "anthropic-version" in request.headers:
            first, last = (names[0], names[-1]) if names else (None, None)
            return NamedModels([NamedModel(name, name) for name in names], first, last)
        return ModelList(
            [Model(name) for name in names], models=[] if "client_version" in request.query_params else UNSET
        )

    @get("/info", tags=["models"], summary="The model of calls that name none, as TGI tells it")
    async def info(request: Request[Any, Any, Any]) -> Info:
        parts, key = current(), (await caller(current(), request, proxies)).key
        name = parts.routes.default
        if not name:
            raise NotFound("The routing table has no default_route.")
        found = parts.routes.find(name, lambda *names: may_use(key, *names))
        if not may_use(key, name, found.name):
            raise parts.routes.unknown(name, lambda *names: may_use(key, *names))
        context = max((target.context for target in found.targets), default=UNBOUNDED)
        prompt = min(context, max((target.prompt_limit for target in found.targets), default=UNBOUNDED))
        return Info(name, None if prompt == UNBOUNDED else prompt, None if context == UNBOUNDED else context)

    @get("/v1/models/{model_id:path}", tags=["models"], summary="One model, if this key may use it")
    async def get_model(
        request: Request[Any, Any, Any], model_id: str = Parameter(description="May hold slashes and colons")
    ) -> Model | NamedModel:
        name = str(model_id).removeprefix("/")
        parts, key = current(), (await caller(current(), request, proxies)).key
        found = parts.routes.find(name, lambda *names: may_use(key, *names))
        if not may_use(key, name, found.name):
            raise parts.routes.unknown(name, lambda *names: may_use(key, *names))
        return NamedModel(name, name) if "anthropic-version" in request.headers else Model(name)

    return Router("/", route_handlers=[list_models, get_model, info])
