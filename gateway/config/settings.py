"""What is set outside the routing table: where to listen, where keys live, how keys are hashed."""

from __future__ import annotations

import os
import re
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

PREFIX = "TRUNKLINE_"
_SHA256 = re.compile("[0-9a-f]{64}")
_SERVICE_LINK = re.compile(
    PREFIX + r"(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)", re.ASCII
)
"""What Kubernetes sets in each container beside a Service called trunkline, or trunkline-admin."""
_SERVICE_URL = re.compile("(tcp|udp|sctp)://")
"""What it sets `TRUNKLINE_PORT` and `TRUNKLINE_ADMIN_PORT` to."""
INTERNAL = ("launched", "kept")
NEAR = 2
"""So many letters between an unknown variable's name and a setting's are a slip."""


class Settings(Struct, frozen=True, kw_only=True):
    """Each field is read from `TRUNKLINE_<FIELD>`; options of the command line go first."""

    routing: str = "routing.yaml"
    """The routing table's file."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 for all."""
    port: int = 8080
    """The port to listen on."""
    workers: int = 1
    """Serving processes; more than one needs Redis."""
    redis_url: str | None = None
    """`redis://host:6379/0`, `rediss://` or `unix://`; without it keys live in the state file."""
    records_url: str | None = None
    """A Redis of their own for keys, tenants, admin keys and the audit log; without it they live where limits do."""
    cache_url: str | None = None
    """A Redis for answers that are kept (`response_cache` of routes), and for nothing else, with `maxmemory` and a
    policy that evicts, such as `allkeys-lru`."""
    redis_timeout: float = 0.25
    """Seconds without any answer of Redis, after which it is taken for lost."""
    state: str = ""
    """The state file of a gateway without Redis, an SQLite database; empty: `trunkline/keys.db` in the user's state
    folder. `keys.json`, of an earlier version, is read once into `keys.db` beside it."""
    files: str = ""
    """Where files of tenants are stored, for batches: a folder, which all hosts must share, or `s3://bucket/prefix`,
    `gs://`, `az://`; empty: there are no files and no batches. It needs the extra `files`."""
    batch_lines: Annotated[int, Meta(ge=0, le=1024)] = 16
    """The most lines of batches that a worker runs at once; 0: it leaves batches to others."""
    peppers: str = ""
    """`1:secret,2:newer`: peppers for hashing keys, by version; the highest is used for new keys. Keys that were hashed
    without one are refused then: who can write to the store could make some."""
    pepper_migrate: str = ""
    """`2026-12-31`: until when, by UTC, keys without a pepper are accepted beside `TRUNKLINE_PEPPERS`, and hashed anew
    when they are used; `trunkline keys list` says what remains."""
    trusted_proxies: str = ""
    """`10.0.0.0/8,fd00::/8`: networks of proxies whose `X-Forwarded-For` is believed."""
    admin_host: str = "127.0.0.1"
    """The address of the admin listener."""
    admin_port: int = 0
    """The port of the admin listener, which is a process of its own; 0: there is none."""
    admin_hash: str = ""
    """SHA-256, hexadecimal, of an admin key that is always valid; `trunkline admin hash` makes both."""
    admin_url: str = ""
    """Where operators reach the admin listener, for what it prints; empty: its host and port."""
    drain_accept: Annotated[float, Meta(ge=0)] = 5.0
    """Seconds that new calls are accepted after SIGTERM, so that load balancers can learn of it; 0: none are."""
    grace: Annotated[float, Meta(ge=0)] = 30.0
    """Seconds that calls in flight may go on after that."""
    head_timeout: Annotated[float, Meta(ge=1, le=60)] = 10.0
    """Seconds, from 1 to 60, in which a request's head must arrive, the first one from the connection's beginning on. A
    connection is kept for 75 s between two requests: load balancers must close their idle ones before that."""
    connection_idle: Annotated[float, Meta(ge=0)] = 4.0
    """Seconds that a connection to a target is kept without a request; servers close theirs after 5 s, and ours must be
    gone before."""
    connection_max_age: Annotated[float, Meta(ge=0)] = 60.0
    """Seconds after which a connection to a target takes no more requests, so that a busy gateway follows DNS."""
    answer_head_bytes: Annotated[int, Meta(ge=1024)] = 65_536
    """The largest head of a target's answer, in bytes."""
    answer_head_lines: Annotated[int, Meta(ge=16)] = 256
    """The most lines of the head of a target's answer."""
    ask_without_credential: bool = True
    """Whether each target that has a credential is asked once without it, for a warning if it answers anybody."""
    log_level: str = "info"
    """`debug`, `info`, `warning` or `error`, for the gateway's own messages; call records are always written."""
    log_format: str = "text"
    """`text`, or `json`: each of these messages is a line of JSON: `time`, `level`, `pid`, `logger`, `message`."""
    launched: str = ""
    """Set by `trunkline serve` for its workers: the URLs of the targets it launched, as JSON."""
    kept: str = ""
    """Set by `trunkline serve` for its workers: where the last good routing table is kept."""

    @property
    def state_path(self) -> Path:
        if self.state:
            return Path(self.state)
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        return Path(home) / "trunkline" / "keys.db"

    @property
    def admin_address(self) -> str:
        """The URL of the admin listener, without a slash at its end."""
        host = f"[{self.admin_host}]" if ":" in self.admin_host else self.admin_host
        return self.admin_url.rstrip("/") or f"http://{host}:{self.admin_port}"

    def admin_digest(self) -> str:
        """The bootstrap hash in lower case, or nothing; `ValueError` for what is no hash."""
        digest = self.admin_hash.strip().lower()
        if digest and not _SHA256.fullmatch(digest):
            raise ValueError(f"{PREFIX}ADMIN_HASH: expected 64 hexadecimal digits; `trunkline admin hash` prints them")
        return digest

    @classmethod
    def read(cls, environment: Mapping[str, str] | None = None, **options: object) -> Settings:
        """Settings from the environment, overridden by the options that are not None.

        Raises `ValueError` naming the variable that cannot be read, or that is a setting's but for a slip.
        """
        environment = _ours(os.environ if environment is None else environment)
        for name in unknown(environment):
            if near := [field.upper() for field in _public() if _slips(name, PREFIX + field.upper()) <= NEAR]:
                raise ValueError(f"{name} is no setting; is {' or '.join(PREFIX + each for each in near)} meant?")
        hints = typing.get_type_hints(cls, include_extras=True)
        values: dict[str, object] = {}
        for field in cls.__struct_fields__:
            if options.get(field) is not None:
                values[field] = options[field]
            elif text := environment.get(PREFIX + field.upper()):
                try:
                    values[field] = msgspec.convert(text, hints[field], strict=False)
                except msgspec.ValidationError as error:
                    raise ValueError(f"{PREFIX}{field.upper()}={text!r}: {error}") from None
        return cls(**values)  # type: ignore[arg-type]

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, for the worker processes."""
        return {
            PREFIX + field.upper(): str(value)
            for field in self.__struct_fields__
            if (value := getattr(self, field)) not in (None, "")
        }

    def pepper_versions(self) -> PepperVersions:
        """The peppers by version. Raises `ValueError` for what cannot be read."""
        peppers = {}
        for item in filter(None, self.peppers.split(",")):
            version, separator, secret = item.partition(":")
            if not separator or not version.strip().isdigit() or not secret:
                raise ValueError(f"{PREFIX}PEPPERS: expected VERSION:SECRET, separated by commas")
            peppers[int(version)] = secret.encode()
        return PepperVersions(peppers, self._migrates_until())

    def _migrates_until(self) -> float:
        if not self.pepper_migrate:
            return 0.0
        try:
            until = datetime.fromisoformat(self.pepper_migrate)
        except ValueError:
            raise ValueError(
                f"{PREFIX}PEPPER_MIGRATE={self.pepper_migrate!r}: expected a date such as 2026-12-31"
            ) from None
        return (until if until.tzinfo else until.replace(tzinfo=UTC)).timestamp()


class PepperVersions(Mapping[int, bytes]):
    """Peppers by version. Version 0, which is none, is there without any other, and `until` a time since the epoch."""

    def __init__(self, peppers: Mapping[int, bytes], until: float = 0.0, now: Callable[[], float] = time.time) -> None:
        self._peppers, self.until, self._now = dict(peppers), until, now

    @property
    def takes_unpeppered(self) -> bool:
        """Keys that were hashed without a pepper are accepted."""
        return not self._peppers or self._now() < self.until

    def __getitem__(self, version: int) -> bytes:
        return b"" if not version and self.takes_unpeppered else self._peppers[version]

    def __iter__(self) -> Iterator[int]:
        return iter([*([0] if self.takes_unpeppered else []), *self._peppers])

    def __len__(self) -> int:
        return len(self._peppers) + self.takes_unpeppered


def unknown(environment: Mapping[str, str] | None = None) -> list[str]:
    """Variables that look like settings and are none."""
    ours = _ours(os.environ if environment is None else environment)
    return sorted(name for name in ours if name.removeprefix(PREFIX).lower() not in Settings.__struct_fields__)


def _public() -> list[str]:
    return [field for field in Settings.__struct_fields__ if field not in INTERNAL]


def _ours(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that are meant for us."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(PREFIX)
        and not _SERVICE_LINK.fullmatch(name)
        and not (name.endswith("_PORT") and _SERVICE_URL.match(value))
    }


def _slips(one: str, other: str) -> int:
    """How many letters must be put in, left out, changed, or swapped with their neighbour, to make one of the other.

    Optimal string alignment.
    """
    before: list[int] = []
    above = list(range(len(other) + 1))
    for row, letter in enumerate(one, 1):
        line = [row]
        for column, its in enumerate(other, 1):
            least = min(above[column] + 1, line[-1] + 1, above[column - 1] + (letter != its))
            if row > 1 and column > 1 and letter == other[column - 2] and one[row - 2] == its:
                least = min(least, before[column - 2] + 1)
            line.append(least)
        before, above = above, line
    return above[-1]
