"""Files that tenants store, batches of calls that they leave with us, and how much of either they may have."""

from __future__ import annotations

from typing import Final, Literal
from urllib.parse import quote

from msgspec import Struct

Purpose = Literal["batch", "batch_output", "user_data"]
BatchStatus = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
ENDED: Final[frozenset[BatchStatus]] = frozenset({"failed", "completed", "expired", "cancelled"})
"""Of a batch that has ended nothing changes any more."""
DAY: Final = 86_400.0


class Storage(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How much a tenant may store. None, of a tenant, is what the table says."""

    bytes: int | None = None
    """Of all its files together."""
    files: int | None = None
    """Files, results of batches included."""
    batches: int | None = None
    """Batches that have not ended."""
    lines: int | None = None
    """Lines of one batch."""
    days: int | None = None
    """For which files, and batches that have ended, are kept."""

    def over(self, base: Storage) -> Storage:
        """This where it says something, `base` elsewhere."""
        mine, theirs = (
            {name: value for name in self.__struct_fields__ if (value := getattr(each, name)) is not None}
            for each in (self, base)
        )
        return Storage(**{**theirs, **mine})


def path_of(tenant: str, id: str) -> str:
    """Where the content of a file lies."""
    return f"files/{quote(tenant, safe='')}/{id}"


class StoredFile(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A file of a tenant; what is in it lies in the file storage."""

    id: str
    tenant: str
    created: float
    """Seconds since the epoch, as all times here."""
    bytes: int
    filename: str
    purpose: Purpose
    expires: float

    @property
    def path(self) -> str:
        """Where its content lies."""
        return path_of(self.tenant, self.id)


class LineError(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What is wrong with a batch's input file."""

    code: str
    message: str
    line: int | None = None
    """The first is 1; None: the file as a whole."""
    param: str | None = None


class Batch(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A batch as the store has it. `version` rises with every change; lines that have ended are counted beside it."""

    id: str
    tenant: str
    key_id: str
    """The key that its calls are made with."""
    source: str | None = None
    """The address that it came from."""
    endpoint: str
    """As the client names it: `/v1/chat/completions`."""
    input_file: str
    created: float
    deadline: float
    """When what has not run by then runs no more."""
    expires: float
    """When it is forgotten, at the latest: sooner once it has ended."""
    version: int = 1
    status: BatchStatus = "validating"
    metadata: dict[str, str] | None = None
    errors: tuple[LineError, ...] = ()
    total: int = 0
    """Its lines."""
    completed: int = 0
    failed: int = 0
    """Of a batch that has ended; else the store's counts tell."""
    output_file: str | None = None
    error_file: str | None = None
    ends_as: Literal["completed", "expired", "cancelled"] = "completed"
    """What it becomes once its results are written."""
    in_progress_at: float | None = None
    finalizing_at: float | None = None
    completed_at: float | None = None
    failed_at: float | None = None
    expired_at: float | None = None
    cancelling_at: float | None = None
    cancelled_at: float | None = None

    @property
    def ended(self) -> bool:
        """Nothing happens to it any more."""
        return self.status in ENDED


class Work(Struct, frozen=True, kw_only=True):
    """A piece of a batch's work: to check its input, to ask some lines of it, to write its results."""

    kind: Literal["check", "lines", "finish"]
    first: int = 0
    """The first line, from 0."""
    count: int = 0
    offset: int = 0
    """Where the lines begin in the input file, in bytes."""
    length: int = 0


class Progress(Struct, frozen=True):
    """How many lines of a batch have an answer."""

    completed: int = 0
    failed: int = 0

    @property
    def ended(self) -> int:
        """With a good answer or with an error."""
        return self.completed + self.failed


class Part(Struct, frozen=True):
    """Answers that were written together: an object of the file storage, and the lines in it that do not count.

    Another worker had recorded those first.
    """

    name: str
    void: frozenset[int] = frozenset()
