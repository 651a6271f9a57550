"""Where keys, limits and the ledger live: the protocols, and how a store is chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

from gateway.core.batches import Batch, Part, Progress, Storage, StoredFile, Work
from gateway.core.types import AdminKey, Ask, Audit, Entry, KeyRecord, Sum, TargetOrder, Tenant, Verdict

if TYPE_CHECKING:
    import asyncio

    from gateway.store.redis.answers import RedisAnswers
    from gateway.store.seen import RedisSeen

LEASE_SECONDS = 15.0
"""How long a slot outlives a gateway that dies; leases are renewed three times in that time."""
RENEW_SECONDS = 5.0

FRESH_SECONDS = 2.0
"""How old a report on a board may be: a gateway that has published nothing for longer is taken for dead."""
DEAD_SECONDS = 10.0
"""When words and reports of workers that say nothing more are forgotten."""

AnyRecord: TypeAlias = KeyRecord | Tenant | AdminKey | TargetOrder
R = TypeVar("R", KeyRecord, Tenant, AdminKey, TargetOrder)

KINDS: dict[type, str] = {KeyRecord: "key", Tenant: "tenant", AdminKey: "admin", TargetOrder: "target"}
"""What a record's kind is called in the store."""
PLURALS: dict[type, str] = {KeyRecord: "keys", Tenant: "tenants", AdminKey: "admins", TargetOrder: "orders"}
"""What all of a kind are called; `targets` are the ledger's."""


class StoreDown(Exception):
    """The store did not answer in time; nothing is known about what was asked."""


class NotAllowed(StoreDown):
    """The store answers, but not this: its rules do not let us. It says what is missing."""


class Conflict(Exception):
    """Somebody else changed the record since it was read."""


class QuotaReached(Exception):
    """A tenant has as much as it may have; `what` is the field of `Storage` that says so."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class Limits(Protocol):
    """The counters. Methods that wait raise `StoreDown` when the store cannot be asked."""

    async def admit(self, ask: Ask) -> Verdict:
        """Check all dimensions, then charge all or none, in one step that no other admission can interleave."""

    async def look(self, ask: Ask) -> Verdict:
        """What `admit` would say now, whatever the versions of its records; nothing is charged.

        The standings are those before the call. A store of one process knows what this process has counted, and of
        others what the ledger has.
        """

    def settle(self, ask: Ask, at: int, used: Sequence[int]) -> asyncio.Future[Any] | None:
        """End a granted ask: give its leases back, turn what its dimensions reserved into what they really took.

        `at` is the verdict's; `used` has a number for each dimension, in its unit. Twice does what once does. Never
        waits: what cannot be sent now is sent when the store answers again. The future ends when the store knows of
        it; None: it knows already.
        """

    def charge_later(self, ask: Ask, at: int, used: Sequence[int]) -> None:
        """Charge what a call used that was admitted without the store, as soon as it answers again; once."""

    def register_lease(self, ask: Ask) -> None:
        """Count the leases of an ask that was granted without the store, as soon as it answers again, until settled."""

    def open_leases(self) -> list[Ask]:
        """Granted asks that are not settled, as far as this worker must count them itself when it is cut off."""

    @property
    def unsettled(self) -> int:
        """Settlements that wait for the store to answer again."""


class Records(Protocol):
    """Keys, tenants, admin keys, orders about targets, the log of their changes. Every method raises `StoreDown`."""

    async def get(self, kind: type[R], id: str) -> R | None:
        """The record as it stands."""

    async def all(self, kind: type[R]) -> list[R]:
        """All records of a kind, oldest first."""

    async def put(self, record: AnyRecord, audit: Audit | None = None) -> None:
        """Write a record whose version is one above the stored one (1: a new one); raises `Conflict` otherwise.

        The audit entry is written with it or not at all.
        """

    async def audit(self, count: int = 100) -> list[Audit]:
        """The newest entries of the audit log, newest first."""

    def watch(self, changed: Callable[[str | None], None]) -> None:
        """Have `changed` called with `key:<id>`, `tenant:<id>` or `target:<name>` soon after a change by anybody; None:
        with anything.

        A hint that may be lost: admission compares versions all the same.
        """

    @property
    def subscribed(self) -> bool:
        """Changes by others are being heard of at the moment."""


class Ledger(Protocol):
    """Who used what, call by call and summed by day."""

    async def append(self, batch: str, entries: Sequence[Entry]) -> None:
        """Write the entries and add them to their days' sums; a batch that is there already is not written again."""

    async def sums(self, first: str, last: str) -> list[Sum]:
        """What was used from one UTC day to another, both included, such as `2026-11-01`."""

    async def by_target(self) -> dict[str, tuple[int, int]]:
        """Prompt and completion tokens ever counted for each target, for comparison with the engines' own counters."""


class Board(Protocol):
    """What gateway workers tell each other of their targets, and all of them the operator. It raises `StoreDown`.

    Words are by boot id, with their age in seconds by the store's clock. A worker that closes its store takes back
    what it has told; one without a boot id only reads.
    """

    async def exchange(self, mine: Mapping[str, bytes]) -> dict[str, dict[str, tuple[bytes, float]]]:
        """Put this worker's word on each board in `mine` (b"" only reads), and return what others have there.

        Words older than `FRESH_SECONDS` are left out.
        """

    async def report(self, word: bytes) -> None:
        """Replace what this worker reports of its targets."""

    async def reports(self) -> dict[str, tuple[bytes, float]]:
        """The newest report of each worker, this one's too, that has reported in the last `DEAD_SECONDS`."""


class Taken(NamedTuple):
    """A piece of work that this worker has for now."""

    id: str
    work: Work


class Batches(Protocol):
    """What is known of stored files and of batches, and the work on those, shared by all workers.

    A piece of work is one worker's from `take` on until it has recorded it; one that was not held for `LEASE_SECONDS`
    is another's. Every method raises `StoreDown`.
    """

    async def add_file(self, file: StoredFile, most: Storage | None = None) -> None:
        """Note a file whose content is stored; twice does what once does. Raises `QuotaReached` if `most` is given."""

    async def file(self, tenant: str, id: str) -> StoredFile | None:
        """A file of this tenant."""

    async def files(self, tenant: str) -> list[StoredFile]:
        """All of the tenant's, newest first."""

    async def remove_file(self, file: StoredFile) -> bool:
        """Forget it; whether it was there."""

    async def put(self, batch: Batch, most: Storage | None = None) -> None:
        """Write a batch whose version is one above the stored one (1: a new one); raises `Conflict` otherwise.

        Raises `QuotaReached` for a new one if `most` is given and as many have not ended.
        """

    async def batch(self, tenant: str, id: str) -> Batch | None:
        """A batch of this tenant, with the progress it has made."""

    async def batches(self, tenant: str | None = None) -> list[Batch]:
        """All of a tenant's, or all there are, newest first, each with the progress it has made."""

    async def active(self) -> list[Batch]:
        """Those that have not ended, oldest first, without their progress."""

    async def remove_batch(self, batch: Batch) -> None:
        """Forget it, and all that is left of its work."""

    async def expired(self, now: float) -> tuple[list[StoredFile], list[Batch]]:
        """Some of the files and batches that are to be forgotten now."""

    def watch(self, changed: Callable[[], None]) -> None:
        """Have `changed` called soon after a batch was written by anybody: a hint that may be lost."""

    async def add_work(self, batch: Batch, work: Sequence[Work]) -> None:
        """Add pieces to be done; those that were added before are not added again."""

    async def take(self, batch: Batch) -> Taken | None:
        """A piece that nobody has, if there is any."""

    async def hold(self, batch: Batch, ids: Sequence[str]) -> None:
        """Keep pieces that were taken for `LEASE_SECONDS` more."""

    async def give_back(self, batch: Batch, ids: Sequence[str]) -> None:
        """Leave pieces that were taken to others, now."""

    async def record(self, batch: Batch, part: str, lines: Sequence[tuple[int, bool]], done: Sequence[str]) -> bool:
        """Note that the answers to these lines (True: good ones) are in `part`, and that pieces of work are done.

        In one step; a line that has an answer keeps that one. False: the batch is closed, and nothing was noted.
        """

    async def recorded(self, batch: Batch, first: int, count: int) -> set[int]:
        """Which of these lines have an answer."""

    async def progress(self, batch: Batch, *, close: bool = False) -> Progress:
        """How many lines have an answer. After `close` no more are recorded."""

    async def parts(self, batch: Batch) -> list[Part]:
        """All that was recorded, in order."""

    async def interactive(self, mine: bool) -> bool:
        """Whether any worker, lately, had calls under way that somebody waits for; `mine`: this one has."""

    async def is_cleaner(self) -> bool:
        """Whether it is this worker that looks for content without a file today: one does, once a day."""

    async def forget_work(self, batch: Batch) -> None:
        """It has ended: nothing of its work is needed any more."""


class Homes(Protocol):
    """Which target has what a tenant's calls go on with."""

    async def remember(self, tenant: str, name: str, target: str, seconds: int) -> None:
        """For so long. Raises `StoreDown`."""

    async def recall(self, tenant: str, name: str) -> str | None:
        """The target; None: nobody knows it, or no longer. Raises `StoreDown`."""

    async def forget(self, tenant: str, name: str) -> None:
        """It is not there any more. Raises `StoreDown`."""


class KeptValues(Protocol):
    """Values that may be forgotten at any time, in a store of their own."""

    def get(self, name: str, most: int) -> asyncio.Future[Any]:
        """The value, or its first `most` bytes; empty: there is none. The future may end in `StoreDown`."""

    def put(self, name: str, value: bytes, seconds: float, ended: Callable[[Any], None]) -> None:
        """Keep a value for so long; `ended` is called with an exception if it was not."""


class Store(Protocol):
    """All of it, and its life."""

    @property
    def limits(self) -> Limits:
        """The counters."""

    @property
    def records(self) -> Records:
        """What operators have made."""

    @property
    def ledger(self) -> Ledger:
        """What was used."""

    @property
    def board(self) -> Board:
        """What gateways tell each other."""

    @property
    def homes(self) -> Homes:
        """Where calls must go on."""

    @property
    def batches(self) -> Batches:
        """What tenants leave with us."""

    async def open(self) -> None:
        """Start background work; does not wait for the store to be up."""

    async def close(self) -> None:
        """Settle what is still to be settled, and stop."""

    async def ping(self) -> None:
        """Return once the store answers."""

    @property
    def has_answered(self) -> bool:
        """It has answered at least once, whoever asked what."""

    async def verify(self) -> None:
        """Return once the store answers and has not lost what it had."""

    @property
    def gateways(self) -> int:
        """How many gateway workers live, as last heard; at least 1."""


def open_store(
    redis_url: str | None, state: Path, timeout: float = 0.25, *, records_url: str | None = None, boot: str = ""
) -> Store:
    """The store these settings name: Redis, or this process with an SQLite file.

    `boot` names a worker that admits calls, as the ids of its calls do.
    """
    if redis_url is None:
        from gateway.store.local import LocalStore

        return LocalStore(state, boot=boot)
    from gateway.store.redis.store import RedisStore

    return RedisStore(redis_url, timeout=timeout, records_url=records_url, boot=boot)


def open_answers(url: str, timeout: float) -> RedisAnswers:
    """Where answers are kept."""
    from gateway.store.redis.answers import RedisAnswers

    return RedisAnswers(url, timeout)


def examine_cache(url: str, others: Sequence[str]) -> str:
    """Raise `ValueError`, saying why, if the Redis of this URL cannot have the cache beside those of `others`.

    What is to be said of it all the same; empty: nothing.
    """
    import asyncio

    from gateway.store.redis.answers import look

    examine(url)
    try:
        why = asyncio.run(look(url, others))
    except StoreDown as error:
        return f"{error}: answers are kept as soon as it is there, if it evicts"
    if why:
        raise ValueError(f"the Redis {why}")
    return ""


def prepare_state(state: Path) -> Path:
    """Make the database of a gateway without Redis if there is none, and return where it is.

    What an earlier version has left in files is read in. Raises `StoreDown` with a sentence if it cannot be used.
    """
    from gateway.store.local import prepare

    return prepare(state)


def examine(url: str) -> None:
    """Raise `ValueError`, without any part of the URL, if it cannot name a Redis."""
    from gateway.store.redis.connect import Connector

    Connector(url, 1.0)


async def examine_redis(url: str, seconds: float) -> RedisSeen:
    """What the Redis of `url` tells; nothing is changed there. Raises `StoreDown` if it does not answer in time."""
    from gateway.store.redis.examined import examined

    return await examined(url, seconds)


def shown(url: str) -> str:
    """A Redis URL without what may be secret in it, for messages."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"
