"""`/v1/files`: what OpenAI's clients ask of files, answered for the tenant of their key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

from litestar import Request, Response, Router, delete, get, post
from litestar.exceptions import InternalServerException
from litestar.params import Parameter
from litestar.response import Stream
from msgspec import Struct

from gateway.auth import Network
from gateway.batches.files import Files
from gateway.call_state import Parts
from gateway.core.batches import StoredFile
from gateway.core.errors import BadRequest, ClientGone, NotFound
from gateway.http.operations import caller

T = TypeVar("T")
OFF: Final = "Files and batches are off here; the operator turns them on with TRUNKLINE_FILES."
Order = Literal["asc", "desc"]
Limit = Annotated[int, Parameter(ge=1, le=10_000, description="The most entries of a page")]
After = Annotated[str | None, Parameter(description="The id of the entry before the page")]


class FileShown(Struct, kw_only=True):
    """A file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileList(Struct, kw_only=True):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileShown]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(Struct, kw_only=True):
    """A file that is no more."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


def router(current: Callable[[], Parts], proxies: tuple[Network, ...], files: Files | None) -> Router:
    """The handlers; without `files` each says that there are none."""

    async def tenant(request: Request[Any, Any, Any]) -> str:
        return (await caller(current(), request, proxies)).key.tenant

    @post(
        "/",
        tags=["files"],
        summary="Upload a file, as a form with the fields `file` and `purpose`",
        status_code=200,
        request_max_body_size=None,
    )
    async def upload(request: Request[Any, Any, Any]) -> FileShown:
        who = await caller(current(), request, proxies)
        content_type = request.headers.get("content-type", "")
        return shown(await on(files).upload(who, content_type, _pieces(request)))

    @get("/", tags=["files"], summary="List the files of the key's tenant, newest first")
    async def list_files(
        request: Request[Any, Any, Any],
        after: After = None,
        limit: Limit = 10_000,
        order: Order = "desc",
        purpose: str | None = None,
    ) -> FileList:
        found = await on(files).of(await tenant(request))
        found = [file for file in found if purpose in (None, file.purpose)]
        page, more = paged(found if order == "desc" else found[::-1], after, limit)
        data = [shown(file) for file in page]
        ends = (data[0].id, data[-1].id) if data else (None, None)
        return FileList(data=data, first_id=ends[0], last_id=ends[1], has_more=more)

    @get("/{file_id:str}", tags=["files"], summary="One file")
    async def get_file(request: Request[Any, Any, Any], file_id: str) -> FileShown:
        return shown(await on(files).find(await tenant(request), file_id))

    @get("/{file_id:str}/content", tags=["files"], summary="What is in a file", media_type="application/octet-stream")
    async def content(request: Request[Any, Any, Any], file_id: str) -> Response[Any]:
        file = await on(files).find(await tenant(request), file_id)
        headers = {"content-length": str(file.bytes)}
        if not file.bytes:
            return Response(b"", media_type="application/octet-stream")
        pieces = on(files).storage.pieces(file.path)
        first = await anext(pieces)  # what is wrong shows before anything has left

        async def all_of_it() -> Any:
            yield first
            async for piece in pieces:
                yield piece

        return Stream(all_of_it(), media_type="application/octet-stream", headers=headers)

    @delete("/{file_id:str}", tags=["files"], summary="Delete a file", status_code=200)
    async def remove(request: Request[Any, Any, Any], file_id: str) -> FileDeleted:
        file = await on(files).find(await tenant(request), file_id)
        await on(files).delete(file)
        return FileDeleted(id=file.id)

    return Router("/v1/files", route_handlers=[upload, list_files, get_file, content, remove])


async def _pieces(request: Request[Any, Any, Any]) -> AsyncIterator[bytes]:
    """The body as it comes. Raises `ClientGone`."""
    stream = request.stream()
    while True:
        try:
            piece = await anext(stream)
        except StopAsyncIteration:
            return
        except InternalServerException:  # so Litestar calls it
            raise ClientGone("The client left before all of the file had come.") from None
        yield piece


def on(files: T | None) -> T:
    """What is there where files are on. Raises `NotFound`."""
    if files is None:
        raise NotFound(OFF)
    return files


def paged(found: Sequence[Any], after: str | None, limit: int) -> tuple[Sequence[Any], bool]:
    """The page behind the entry with the id `after`, and whether there is more. Raises `BadRequest`."""
    begin = 0
    if after is not None:
        begin = next((place for place, each in enumerate(found, 1) if each.id == after), -1)
        if begin < 0:
            raise BadRequest(f"'after': there is no {after[:64]!r} in this list.", param="after")
    return found[begin : begin + limit], len(found) > begin + limit


def shown(file: StoredFile) -> FileShown:
    """As clients see it."""
    return FileShown(
        id=file.id,
        bytes=file.bytes,
        created_at=int(file.created),
        expires_at=int(file.expires),
        filename=file.filename,
        purpose=file.purpose,
    )
