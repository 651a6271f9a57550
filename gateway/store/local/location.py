"""Where the database of a gateway without Redis is, and where it must not be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from gateway.store import StoreDown

SUFFIXES: Final = (".db", ".sqlite", ".sqlite3")
"""A state file of such a name is the database itself."""
MOUNTS: Final = Path("/proc/self/mounts")
NETWORKED: Final = re.compile(
    r"(fuse\.)?(nfs\d?|cifs|smb\w*|9p|afs|ceph|glusterfs|lustre|gpfs|beegfs|ncpfs|sshfs|s3fs|gcsfuse|rclone|davfs2?)"
)
"""File systems of other machines: their locks and shared memory do not do what SQLite needs."""


def database_of(state: Path) -> Path:
    """The database for a state file of this name: `keys.db` for `keys.db`, for `keys.json` and for `keys`."""
    if state.suffix in SUFFIXES:
        return state
    return state.with_suffix(".db") if state.suffix == ".json" else state.with_name(state.name + ".db")


def json_of(state: Path) -> Path:
    """Where an earlier version kept what is now in the database of this state file."""
    return state.with_suffix(".json") if state.suffix in SUFFIXES else state


def refuse_network(path: Path) -> None:
    """Raise `StoreDown` for a path on a file system of another machine; where there is no list of mounts, never."""
    try:
        lines = MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    resolved, best, kind = path.resolve(), Path(), ""
    for line in lines:
        point, of = (_unescaped(word) for word in line.split(" ")[1:3])
        if resolved.is_relative_to(point) and len(Path(point).parts) >= len(best.parts):
            best, kind = Path(point), of
    if NETWORKED.fullmatch(kind):
        raise StoreDown(
            f"{path} is on a network file system ({kind} at {best}), where SQLite can lose data: "
            "name a file on a local disk (TRUNKLINE_STATE, --state), or use Redis (TRUNKLINE_REDIS_URL)"
        )


def _unescaped(word: str) -> str:
    """A word of the list of mounts, in which a space is `\\040`."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)
