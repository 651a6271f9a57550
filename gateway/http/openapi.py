"""The API's description: OpenAPI for all routes, the raw ones too, shown by pages that need no internet."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from litestar import Litestar, Router
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import SwaggerRenderPlugin
from litestar.openapi.spec import (
    Components,
    OpenAPIMediaType,
    OpenAPIResponse,
    Operation,
    Parameter,
    PathItem,
    Reference,
    RequestBody,
    Schema,
    SecurityScheme,
    Tag,
)
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType
from litestar.static_files import create_static_files_router

from backends.endpoints import ALWAYS_STREAMED, PATHS, Endpoint
from gateway import __version__

ASSETS = "/docs/assets"
_KEY: list[dict[str, list[str]]] = [{"virtual key": []}]
_STRING, _OBJECT, _ARRAY = (Schema(type=kind) for kind in (OpenAPIType.STRING, OpenAPIType.OBJECT, OpenAPIType.ARRAY))
_BOOLEAN = Schema(type=OpenAPIType.BOOLEAN)

_TEXT = "The model's route name or alias. All other fields go to the model server as they are."
_ENDPOINTS: dict[Endpoint, tuple[str, dict[str, Schema]]] = {
    "chat/completions": ("Answer a chat", {"messages": _ARRAY, "stream": _BOOLEAN, "stream_options": _OBJECT}),
    "completions": ("Continue a text", {"prompt": _STRING, "stream": _BOOLEAN, "stream_options": _OBJECT}),
    "embeddings": ("Embed texts", {"input": _STRING}),
    "responses": ("Answer a chat, in the words of OpenAI's responses", {"input": _ARRAY, "stream": _BOOLEAN}),
    "messages": ("Answer a chat, in Anthropic's words", {"messages": _ARRAY, "stream": _BOOLEAN}),
    "messages/count_tokens": ("Count the tokens of a chat, in Anthropic's words", {"messages": _ARRAY}),
    "rerank": ("Sort documents by how well they answer a query", {"query": _STRING, "documents": _ARRAY}),
    "score": ("Compare texts", {"text_1": _STRING, "text_2": _STRING}),
    "decisions": ("The probabilities of choices", {"input": _STRING}),
    "tokenize": ("The tokens of a text", {"prompt": _STRING}),
    "detokenize": ("The text of tokens", {"tokens": _ARRAY}),
    "generate": ("Go on with a text, in TGI's words", {"inputs": _STRING, "parameters": _OBJECT}),
    "audio/transcriptions": ("The text of a recording", {"file": _STRING, "stream": _BOOLEAN}),
    "audio/translations": ("The text of a recording, in English", {"file": _STRING, "stream": _BOOLEAN}),
    "generate/root": ("The same, as a list", {"inputs": _STRING, "parameters": _OBJECT, "stream": _BOOLEAN}),
}
_KEPT = {
    "get": ("/v1/responses/{response_id}", "Show a response that its server keeps"),
    "delete": ("/v1/responses/{response_id}", "Delete a response that its server keeps"),
    "post": ("/v1/responses/{response_id}/cancel", "Stop a response"),
    "get of items": ("/v1/responses/{response_id}/input_items", "What a response answers"),
}
_ERRORS = {
    "400": "The body cannot be routed, or asks what the target cannot do",
    "401": "Key missing or not valid",
    "403": "The key may not use this model",
    "404": "No such model, or no server of it has the endpoint",
    "408": "The body did not arrive in time",
    "413": "Body too large",
    "429": "A limit of the key; see retry-after",
    "431": "Headers too large",
    "502": "The model server failed",
    "503": "No target can take the call",
    "504": "The model server did not answer in time",
}

_MODEL_ERRORS = {
    **{status: _ERRORS[status] for status in ("401", "404")},
    "403": "The key may not be used from this address",
    "429": "Too many wrong keys came from this address",
    "503": "The key cannot be checked at the moment",
}


_STORED = ("/v1/files", "/v1/batches")
_STORED_ERRORS = {
    "400": "A parameter, or the form, is not as it must be",
    "404": "No such file or batch of the key's tenant; or files are off",
    "409": "It is being used, or has ended",
    "429": "The tenant may store no more; or too many wrong keys came from this address",
    "503": "The store, or the storage of files, cannot be asked at the moment",
}
_UPLOAD = Schema(
    type=OpenAPIType.OBJECT,
    properties={
        "file": Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY),
        "purpose": Schema(type=OpenAPIType.STRING, enum=["batch", "user_data"]),
    },
    required=["file", "purpose"],
)


class OfflineSwagger(SwaggerRenderPlugin):
    """Swagger UI from the installed bundle; Litestar's page asks a public host for its icon, this one does not."""

    def __init__(self) -> None:
        super().__init__(
            js_url=f"{ASSETS}/swagger-ui-bundle.js",
            css_url=f"{ASSETS}/swagger-ui.css",
            standalone_preset_js_url=f"{ASSETS}/swagger-ui-standalone-preset.js",
            favicon=f'<link rel="icon" type="image/png" href="{ASSETS}/favicon-32x32.png">',
            path="/",
        )


def config() -> OpenAPIConfig:
    return OpenAPIConfig(
        title="trunkline",
        version=__version__,
        description="An LLM routing gateway. Send a virtual key as `Authorization: Bearer tl_...`.",
        path="/docs",
        render_plugins=[OfflineSwagger()],
        components=Components(
            security_schemes={"virtual key": SecurityScheme(type="http", scheme="bearer", bearer_format="tl_...")}
        ),
        tags=[Tag(name=name) for name in ("inference", "models", "files", "batches", "operations")],
        use_handler_docstrings=True,
    )


def assets() -> Router:
    """The scripts and styles of the pages, from the installed package; its code is not imported."""
    spec = find_spec("swagger_ui")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).with_name("static")
    return create_static_files_router(ASSETS, directories=[folder], include_in_schema=False)


def describe_data_plane(app: Litestar) -> None:
    """Add the raw handlers, which Litestar does not describe by itself."""
    paths = app.openapi_schema.paths
    assert paths is not None
    for path, endpoint in PATHS.items():
        summary, properties = _ENDPOINTS[endpoint]
        described = paths.setdefault(path, PathItem())  # at the root there is something to get as well
        described.post = _operation(path, endpoint, summary, properties)
    for which, (path, summary) in _KEPT.items():
        setattr(paths.setdefault(path, PathItem()), which.partition(" ")[0], _of_kept(path, which, summary))
    for path, item in paths.items():
        for operation in filter(None, (item.get, item.post, item.delete)):
            if path.startswith("/v1/models") or path == "/info":
                _secured(operation, _MODEL_ERRORS)
            elif path.startswith(_STORED):
                _secured(operation, {**_MODEL_ERRORS, **_STORED_ERRORS})
    if (upload := paths.get("/v1/files")) is not None and upload.post is not None:
        upload.post.request_body = RequestBody(content={"multipart/form-data": OpenAPIMediaType(schema=_UPLOAD)})


def _of_kept(path: str, which: str, summary: str) -> Operation:
    """What can be done with a response, as an operation of its path."""
    pattern = Schema(type=OpenAPIType.STRING, pattern="^[A-Za-z0-9_-]{1,128}$")
    good = {"application/json": OpenAPIMediaType(schema=_OBJECT)}
    return Operation(
        operation_id=f"v1_responses_{which.replace(' ', '_')}",
        tags=["inference"],
        summary=summary,
        security=_KEY,
        parameters=[Parameter(name="response_id", param_in="path", required=True, schema=pattern)],
        responses={"200": OpenAPIResponse(summary, content=good), **_refusals(_ERRORS)},
    )


def _secured(operation: Operation, refusals: dict[str, str]) -> None:
    operation.security = _KEY
    operation.responses = {"200": (operation.responses or {})["200"], **_refusals(refusals)}


def _refusals(texts: dict[str, str]) -> dict[str, OpenAPIResponse | Reference]:
    json = {"application/json": OpenAPIMediaType(schema=_OBJECT)}
    return {status: OpenAPIResponse(text, content=json) for status, text in texts.items()}


def _operation(path: str, endpoint: str, summary: str, properties: dict[str, Schema]) -> Operation:
    model = Schema(type=OpenAPIType.STRING, description=_TEXT)
    body = Schema(
        type=OpenAPIType.OBJECT,
        properties={"model": model, **properties},
        required=[*([] if "inputs" in properties else ["model"]), next(iter(properties))],
    )
    kind = "multipart/form-data" if "file" in properties else "application/json"
    whole = _ARRAY if endpoint == "generate/root" else _OBJECT
    good = {"application/json": OpenAPIMediaType(schema=whole)}
    if "stream" in properties or path.encode() == ALWAYS_STREAMED:
        good["text/event-stream"] = OpenAPIMediaType(schema=_STRING)
    responses: dict[str, OpenAPIResponse | Reference] = {
        "200": OpenAPIResponse("The model server's answer, byte for byte", content=good),
        **_refusals(_ERRORS),
    }
    return Operation(
        operation_id=path.removeprefix("/").replace("/", "_") or "root",
        tags=["inference"],
        summary=summary,
        security=_KEY,
        request_body=RequestBody(content={kind: OpenAPIMediaType(schema=body)}, required=True),
        responses=responses,
    )
