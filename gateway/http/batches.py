"""`/v1/batches`: what OpenAI's clients ask of batches, answered for the tenant of their key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from litestar import Request, Router, get, post
from litestar.params import Parameter
from msgspec import Struct

from gateway.auth import Network
from gateway.batches.submissions import WINDOW, Submissions
from gateway.call_state import Parts
from gateway.core.batches import Batch
from gateway.http.files import After, on, paged
from gateway.http.operations import caller
from gateway.http.request import source_of

Limit = Annotated[int, Parameter(ge=1, le=100, description="The most entries of a page")]


class NewBatch(Struct, kw_only=True):
    """A batch to be run."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None


class Counts(Struct):
    """Lines of a batch."""

    total: int
    completed: int
    failed: int


class Mistake(Struct):
    """What is wrong with the input file."""

    code: str
    message: str
    line: int | None
    param: str | None


class Mistakes(Struct, kw_only=True):
    """All that is wrong with the input file, or the first hundred."""

    object: Literal["list"] = "list"
    data: list[Mistake]


class BatchShown(Struct, kw_only=True):
    """A batch; times are in seconds since the epoch."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: Mistakes | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: Counts
    metadata: dict[str, str] | None


class BatchList(Struct, kw_only=True):
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[BatchShown]
    first_id: str | None
    last_id: str | None
    has_more: bool


def router(current: Callable[[], Parts], proxies: tuple[Network, ...], batches: Submissions | None) -> Router:
    """The handlers; without `batches` each says that there are none."""

    async def tenant(request: Request[Any, Any, Any]) -> str:
        return (await caller(current(), request, proxies)).key.tenant

    @post("/", tags=["batches"], summary="Have the lines of a file asked within 24 hours", status_code=200)
    async def create(request: Request[Any, Any, Any], data: NewBatch) -> BatchShown:
        who = await caller(current(), request, proxies)
        source = source_of(request.scope["client"], request.scope["headers"], proxies)
        batch = await on(batches).create(
            who,
            source,
            endpoint=data.endpoint,
            input_file=data.input_file_id,
            window=data.completion_window,
            metadata=data.metadata,
        )
        return shown(batch)

    @get("/", tags=["batches"], summary="List the batches of the key's tenant, newest first")
    async def list_batches(request: Request[Any, Any, Any], after: After = None, limit: Limit = 20) -> BatchList:
        page, more = paged(await on(batches).of(await tenant(request)), after, limit)
        data = [shown(batch) for batch in page]
        ends = (data[0].id, data[-1].id) if data else (None, None)
        return BatchList(data=data, first_id=ends[0], last_id=ends[1], has_more=more)

    @get("/{batch_id:str}", tags=["batches"], summary="One batch, and how far it has come")
    async def get_batch(request: Request[Any, Any, Any], batch_id: str) -> BatchShown:
        return shown(await on(batches).find(await tenant(request), batch_id))

    @post("/{batch_id:str}/cancel", tags=["batches"], summary="Have no more of a batch asked", status_code=200)
    async def cancel(request: Request[Any, Any, Any], batch_id: str) -> BatchShown:
        batch = await on(batches).find(await tenant(request), batch_id)
        return shown(await on(batches).cancel(batch))

    return Router("/v1/batches", route_handlers=[create, list_batches, get_batch, cancel])


def shown(batch: Batch) -> BatchShown:
    """As clients see it."""
    mistakes = [Mistake(error.code, error.message, error.line, error.param) for error in batch.errors]
    return BatchShown(
        id=batch.id,
        endpoint=batch.endpoint,
        errors=Mistakes(data=mistakes) if mistakes else None,
        input_file_id=batch.input_file,
        completion_window=WINDOW,
        status=batch.status,
        output_file_id=batch.output_file,
        error_file_id=batch.error_file,
        created_at=int(batch.created),
        in_progress_at=_at(batch.in_progress_at),
        expires_at=int(batch.deadline),
        finalizing_at=_at(batch.finalizing_at),
        completed_at=_at(batch.completed_at),
        failed_at=_at(batch.failed_at),
        expired_at=_at(batch.expired_at),
        cancelling_at=_at(batch.cancelling_at),
        cancelled_at=_at(batch.cancelled_at),
        request_counts=Counts(batch.total, batch.completed, batch.failed),
        metadata=batch.metadata,
    )


def _at(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
