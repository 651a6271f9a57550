"""`/v1/files` over real sockets, by OpenAI's own client and by hand: whose files they are, how many, how large."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness.gateway_process import GatewayProcess, gateway_process
from harness.lazily import Lazily
from integration.client import Reply, ask, eventually, get

if TYPE_CHECKING:
    import openai
else:
    openai = Lazily("openai")

MEBIBYTE = 1024 * 1024
LIMITS = {"storage": {"bytes": 4 * MEBIBYTE, "files": 4}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def storing(folder: Path) -> Iterator[GatewayProcess]:
    """A gateway with files, whose tenants may store little."""
    targets = [{"name": "t", "backend": "openai", "url": "http://127.0.0.1:9"}]
    table = json.dumps({"routes": {"m": {"targets": targets}}, "limits": LIMITS})
    with gateway_process(table, env={"TRUNKLINE_FILES": str(folder)}) as started:
        yield started


def client(gateway: GatewayProcess, tenant: str) -> openai.OpenAI:
    return openai.OpenAI(api_key=gateway.issue(tenant=tenant).secret, base_url=f"{gateway.url}/v1", max_retries=0)


def content(folder: Path, tenant: str) -> list[Path]:
    return [path for path in (folder / "files").glob(f"{tenant}/*") if path.is_file()]


def test_a_file_goes_in_and_comes_out(storing: GatewayProcess, folder: Path) -> None:
    with client(storing, "round") as ours:
        data = bytes(range(256)) * 4096
        made = ours.files.create(file=("lines.jsonl", io.BytesIO(data)), purpose="batch")
        assert (made.object, made.bytes, made.filename, made.purpose) == ("file", MEBIBYTE, "lines.jsonl", "batch")
        assert made.expires_at is not None and made.expires_at - made.created_at == 30 * 86400
        assert ours.files.retrieve(made.id) == made
        assert ours.files.content(made.id).read() == data
        empty = ours.files.create(
            file=("empty", io.BytesIO(b"")),
            purpose="user_data",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        assert empty.expires_at is not None and empty.expires_at - empty.created_at == 3600
        assert ours.files.content(empty.id).read() == b""
        assert [file.id for file in ours.files.list()] == [empty.id, made.id]
        assert [file.id for file in ours.files.list(limit=1)] == [empty.id, made.id], "page after page"
        assert [file.id for file in ours.files.list(order="asc", purpose="batch")] == [made.id]
        assert ours.files.delete(made.id).deleted
        assert [path.name for path in content(folder, "round")] == [empty.id]
        with pytest.raises(openai.NotFoundError, match="There is no file"):
            ours.files.retrieve(made.id)


def test_files_are_their_tenants(storing: GatewayProcess) -> None:
    with client(storing, "ours") as ours, client(storing, "theirs") as theirs:
        made = ours.files.create(file=("a", b"secret"), purpose="batch")
        for wrong in (theirs.files.retrieve, theirs.files.content, theirs.files.delete):
            with pytest.raises(openai.NotFoundError):
                wrong(made.id)
        assert list(theirs.files.list()) == []
        assert ours.files.content(made.id).read() == b"secret"


def test_a_tenant_stores_no_more_than_it_may(storing: GatewayProcess, folder: Path) -> None:
    with client(storing, "greedy") as greedy:
        greedy.files.create(file=("a", bytes(3 * MEBIBYTE)), purpose="batch")
        with pytest.raises(openai.RateLimitError, match=str(4 * MEBIBYTE)) as refused:
            greedy.files.create(file=("b", bytes(2 * MEBIBYTE)), purpose="batch")
        assert refused.value.code == "storage_limit_reached"
        assert refused.value.response.headers["x-should-retry"] == "false"
        for _ in range(3):
            last = greedy.files.create(file=("c", b"."), purpose="batch")
        with pytest.raises(openai.RateLimitError, match="4 files"):
            greedy.files.create(file=("d", b"."), purpose="batch")
        greedy.files.delete(last.id)
        greedy.files.create(file=("d", b"."), purpose="batch")
        assert len(content(folder, "greedy")) == 4, "what was refused left nothing"


def post(gateway: GatewayProcess, key: str, body: bytes, content_type: str) -> Reply:
    return ask(gateway, body, key, "/v1/files", headers={"content-type": content_type})


FORM = "multipart/form-data; boundary=x"


@pytest.mark.parametrize(
    ("body", "content_type", "param"),
    [
        (b"{}", "application/json", "content-type"),
        (b"", "multipart/form-data", "content-type"),
        (b"nonsense", FORM, "file"),
        (b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n', FORM, "file"),
        (b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nA\r\n--x--\r\n', FORM, "purpose"),
        (b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nA', FORM, "file"),
        (b'--x\r\ncontent-disposition: form-data; name="n"\r\n\r\n' + bytes(5000) + b"\r\n--x--\r\n", FORM, "n"),
    ],
)
def test_what_is_no_upload_is_refused_by_name(
    storing: GatewayProcess, folder: Path, body: bytes, content_type: str, param: str
) -> None:
    issued = storing.issue(tenant="odd")
    reply = post(storing, issued.secret, body, content_type)
    assert (reply.status, reply.error["param"]) == (400, param)
    assert content(folder, "odd") == []


def test_only_keys_come_to_files(storing: GatewayProcess) -> None:
    assert get(storing, "/v1/files").status == 401
    assert post(storing, "tl_nonsense", b"", FORM).status == 401


def test_where_files_are_off_it_is_said(gateway: GatewayProcess, key: str) -> None:
    reply = get(gateway, "/v1/files", key)
    assert (reply.status, "TRUNKLINE_FILES" in reply.error["message"]) == (404, True)


def test_a_client_that_leaves_in_its_upload_leaves_nothing(storing: GatewayProcess, folder: Path) -> None:
    issued = storing.issue(tenant="leaving")
    head = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {issued.secret}\r\ncontent-type: {FORM}\r\n"
        "content-length: 2000000\r\n\r\n"
        '--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
    )
    before = storing.stderr()
    with socket.create_connection(("127.0.0.1", storing.port)) as wire:
        wire.sendall(head.encode() + bytes(500_000))
    with client(storing, "leaving") as next_one:
        next_one.files.create(file=("b", b"."), purpose="batch")
    eventually(lambda: len(content(folder, "leaving")) == 1, "what had come is gone")
    assert "Traceback" not in storing.stderr().removeprefix(before)
