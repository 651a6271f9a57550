"""One SQLite file, used from two threads of its own: one writes, one reads, and neither waits for the other."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias, TypeVar
from urllib.parse import quote

from gateway.store import StoreDown
from gateway.store.local.earlier import EarlierFiles
from gateway.store.local.location import database_of, json_of, refuse_network
from gateway.store.local.schema import APPLICATION, STEPS, TABLES, VERSION

log = logging.getLogger("trunkline.store")

BUSY_SECONDS: Final = 5.0
"""How long another process may keep the file to itself before that is an outage."""
TURN_SECONDS: Final = 1.0
"""How long a writer lets those before it go first. It is a courtesy: what guards the file is SQLite's own lock."""
LENGTHS: Final = 65536
"""The generation file's length is the generation modulo this."""

Stamp: TypeAlias = os.stat_result | None
"""The generation file as it was seen. Its length alone tells two changes apart that are of one moment."""
T = TypeVar("T")


class Connection(sqlite3.Connection):
    """A connection that knows which file it has open, by device and inode; (0, 0): none, it is empty."""

    identity: tuple[int, int] = (0, 0)


class Database:
    """The database for a state file of this name.

    It is made when it is first written to; where an earlier version has left files, they are read in at the first use.

    Work is a function of a connection. It raises `StoreDown`, with the file's name and what to do, for whatever is
    wrong with the file.
    """

    def __init__(self, state: Path) -> None:
        self.path = database_of(state)
        self._earlier = EarlierFiles(json_of(state), named=json_of(state) == state)
        self.generation = self.path.with_name(self.path.name + ".generation")
        self._reading, self._writing = _Worker(self.path, self._for_reading), _Worker(self.path, self._for_writing)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` finds. A file that does not exist yet reads as one without content."""
        return await self._reading.run(work)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Have `work` done in a transaction, all or nothing; when this returns, it is on the disk."""
        return await self._writing.run(partial(self._transaction, work))

    async def change(self, work: Callable[[Connection], int]) -> None:
        """The same for a change of records. `work` returns the generation that it makes; all stamps change after it."""
        await self._writing.run(lambda connection: self._announce(self._transaction(work, connection)))

    async def close(self) -> None:
        """Finish what was begun, and close the file. It is opened again when it is used again."""
        await self._reading.close()
        await self._writing.close()

    def stamp(self) -> Stamp:
        """What changes whenever somebody has changed records: one look at the generation file. Raises `StoreDown`."""
        try:
            return os.stat(self.generation)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreDown(f"{self.generation} cannot be looked at: {error}") from error

    def make(self) -> None:
        """Make the file, or find out why it cannot be used; in the thread that calls."""
        self._for_writing(None).close()

    def _transaction(self, work: Callable[[Connection], T], connection: Connection) -> T:
        with self._turn():
            connection.execute("BEGIN IMMEDIATE")
        try:
            done = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            _rollback(connection)
            raise
        return done

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Until the file is ours to write, keep others from asking for it.

        SQLite gives a lock to whoever asks in the right moment, and who waits asks ten times a second: beside a process
        that writes without a pause that can take for ever. With this, that process waits for us after each transaction.
        """
        try:
            descriptor = os.open(self.generation, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError:  # no turns then; `_announce` tells of it
            yield
            return
        try:
            until = time.monotonic() + TURN_SECONDS
            while not _locked(descriptor) and time.monotonic() < until:
                time.sleep(0.001)
            yield
        finally:
            os.close(descriptor)

    def _announce(self, generation: int) -> None:
        try:
            descriptor = os.open(self.generation, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.ftruncate(descriptor, generation % LENGTHS)
            finally:
                os.close(descriptor)
        except OSError as error:  # the change is made: others come upon it when they next read all the same
            log.warning("%s cannot be written, changes are seen later: %s", self.generation, error)

    def _for_reading(self, former: Connection | None) -> Connection:
        if self.path.exists() or self._earlier.exist():
            return self._for_writing(former)
        if former is not None:
            if former.identity == (0, 0):
                return former
            former.close()
        empty = sqlite3.connect(":memory:", isolation_level=None, factory=Connection, check_same_thread=False)
        empty.executescript(TABLES)
        return empty

    def _for_writing(self, former: Connection | None) -> Connection:
        """The former connection if it still has the file open that is there, else a new one."""
        with suppress(FileNotFoundError):
            if former is not None and former.identity == _identity(self.path):
                return former
        if former is not None:
            former.close()
        try:
            return self._connect()
        except sqlite3.Error as error:
            raise StoreDown(_explained(error, self.path)) from error
        except OSError as error:
            raise StoreDown(f"the state file {self.path} cannot be used: {error}") from error

    def _connect(self) -> Connection:
        refuse_network(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Made first, as the database takes over its mode and owner. The database itself is never opened but by SQLite:
        # closing any descriptor of a file ends all locks that the process has on it.
        os.close(os.open(self.generation, os.O_RDWR | os.O_CREAT, 0o600))
        where = f"file:{quote(str(self.path.resolve()))}?mode=rwc&modeof={quote(str(self.generation.resolve()))}"
        connection = sqlite3.connect(
            where,
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            factory=Connection,
        )
        try:
            connection.execute("BEGIN")  # all that is looked at is of one moment
            version = self._version(connection)
            connection.execute("COMMIT")
            if version < VERSION:
                self._fill(connection)
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise StoreDown(f"{self.path} cannot be used: its file system does not share memory (SQLite's WAL)")
            connection.execute("PRAGMA synchronous = FULL")
            self._earlier.refuse_changed(connection, self.path)
            connection.identity = _identity(self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _fill(self, connection: Connection) -> None:
        """Make the tables, with what an earlier version had in files or in tables of its own; of many processes that
        try, one does.

        Without WAL yet: new pages need no journal, so that a large ledger is written once.
        """
        connection.execute("BEGIN EXCLUSIVE")
        try:
            version = self._version(connection)
            for each in range(version, VERSION) if version else ():
                connection.execute(STEPS[each])
            if version == 0:
                for statement in TABLES.split(";"):
                    connection.execute(statement)
                self._earlier.read_into(connection, self.path)
                connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("COMMIT")
        except BaseException:
            _rollback(connection)
            raise

    def _version(self, connection: Connection) -> int:
        """The version of the file's tables, 0: it has none. Raises `StoreDown` for a file that is not for us."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != APPLICATION and (application or version or tables):
            raise StoreDown(f"{self.path} is another program's database: name another state file (TRUNKLINE_STATE)")
        if version > VERSION:
            raise StoreDown(
                f"{self.path} was written by a newer version of trunkline (its tables are of version {version}, this "
                f"one knows {VERSION}): upgrade, or go back to a copy made before"
            )
        return int(version)


def _explained(error: sqlite3.Error, path: Path) -> str:
    """What is wrong with the file and what to do, in a sentence."""
    sentence = _SENTENCES.get(_kind(error), "the state file {path} cannot be used: {error}")
    return sentence.format(path=path, error=error)


def _kind(error: sqlite3.Error) -> str:
    """`FULL` for `SQLITE_FULL`, `IOERR` for `SQLITE_IOERR_WRITE`."""
    return (getattr(error, "sqlite_errorname", "") + "__").split("_")[1]


_SENTENCES: Final = {
    "FULL": "there is no room on the disk for {path} ({error}): free some; nothing was written by halves",
    "BUSY": "{path} is being written by another process for more than "
    f"{BUSY_SECONDS:.0f} s" + " ({error}): end that one",
    "READONLY": "{path} cannot be written ({error}): see who owns it and its folder, and how it is mounted",
    "CANTOPEN": "{path} cannot be opened ({error}): its folder must be there, and writable as well",
    "CORRUPT": "{path} is damaged ({error}): stop the gateway and put a copy back, or save what can be saved with "
    "`sqlite3 {path} .recover`",
    "NOTADB": "{path} is no SQLite database ({error}): name another state file (TRUNKLINE_STATE); if an earlier "
    "version wrote it, give it a name that ends in .json",
    "IOERR": "the disk of {path} does not work, or has no room ({error})",
}


class _Worker:
    """A thread with a connection; what it is given is done in turn."""

    def __init__(self, path: Path, connect: Callable[[Connection | None], Connection]) -> None:
        self._path, self._connect = path, connect
        self._connection: Connection | None = None
        self._thread = ThreadPoolExecutor(1, "store")

    async def run(self, work: Callable[[Connection], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._work, work)

    async def close(self) -> None:
        """After what was given before this."""
        thread, self._thread = self._thread, ThreadPoolExecutor(1, "store")  # which costs nothing unless it is used
        await asyncio.get_running_loop().run_in_executor(thread, self._end)
        thread.shutdown(wait=False)

    def _work(self, work: Callable[[Connection], T]) -> T:
        former, self._connection = self._connection, None
        self._connection = self._connect(former)
        try:
            return work(self._connection)
        except sqlite3.Error as error:
            if _kind(error) not in ("FULL", "BUSY"):
                self._end()  # what is wrong may be gone when the file is opened again
            raise StoreDown(_explained(error, self._path)) from error

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _locked(descriptor: int) -> bool:
    """Whether waiting for the lock is over: we have it, or this file system has no such locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _rollback(connection: Connection) -> None:
    with suppress(sqlite3.Error):  # what went wrong before is what matters
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _identity(path: Path) -> tuple[int, int]:
    seen = os.stat(path)
    return seen.st_dev, seen.st_ino
