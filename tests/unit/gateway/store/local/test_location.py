"""Where the database is for a state file's name, and file systems on which it must not be."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.store import StoreDown
from gateway.store.local import location, prepare
from gateway.store.local.location import database_of, json_of


@pytest.mark.parametrize(
    ("state", "database", "earlier"),
    [
        ("keys.json", "keys.db", "keys.json"),
        ("keys.db", "keys.db", "keys.json"),
        ("keys.sqlite", "keys.sqlite", "keys.json"),
        ("a.b.sqlite3", "a.b.sqlite3", "a.b.json"),
        ("keys", "keys.db", "keys"),
        ("keys.txt", "keys.txt.db", "keys.txt"),
        (".json", ".json.db", ".json"),
    ],
)
def test_the_database_is_found_by_the_name_alone(state: str, database: str, earlier: str) -> None:
    assert (database_of(Path("/s") / state), json_of(Path("/s") / state)) == (Path("/s", database), Path("/s", earlier))


MOUNTS = r"""
/dev/vda / ext4 rw 0 0
proc /proc proc rw 0 0
server:/export {0}/net nfs4 rw,vers=4.2 0 0
tmpfs {0}/net/local tmpfs rw 0 0
//server/share {0}/with\040space cifs rw 0 0
host {0}/wsl 9p rw 0 0
me@server: {0}/ssh fuse.sshfs rw 0 0
/dev/sdb1 {0}/ntfs fuseblk rw 0 0
/dev/sdb2 {0}/twice nfs rw 0 0
/dev/sdb2 {0}/twice ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("keys.db", ""),
        ("net/keys.db", "nfs4"),
        ("net/deep/er/keys.db", "nfs4"),
        ("net/local/keys.db", ""),
        ("network/keys.db", ""),
        ("with space/keys.db", "cifs"),
        ("wsl/keys.db", "9p"),
        ("ssh/keys.db", "fuse.sshfs"),
        ("ntfs/keys.db", ""),
        ("twice/keys.db", ""),
        ("link/keys.db", "nfs4"),
    ],
)
def test_a_network_file_system_is_refused(
    tmp_path: Path, path: str, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    monkeypatch.setattr(location, "MOUNTS", mounts)
    mounts.write_text(MOUNTS.strip().replace("{0}", str(tmp_path)))
    (tmp_path / "link").symlink_to(tmp_path / "net")
    if not refused:
        assert prepare(tmp_path / path).exists()
        return
    with pytest.raises(StoreDown, match=rf"{path} is on a network file system \({refused} at .*use Redis"):
        prepare(tmp_path / path)
    assert not (tmp_path / path).exists()


def test_without_a_list_of_mounts_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(location, "MOUNTS", tmp_path / "absent")
    assert prepare(tmp_path / "keys.db").exists()
