"""nginx with Lua, and wrk: Debian 12's packages, unpacked below .cache. Nothing is installed.

    python tests/bench/debian.py     fetch what is missing, and name the versions

Every package is pinned by version and hash.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / ".cache" / "bench"
PACKAGES = {
    "nginx=1.22.1-9+deb12u9": "4e7b52f8b31f26d77ffb5c427c41e36223e81b047242ecfa8dc1d7f939734885",
    "libnginx-mod-http-ndk=1:0.3.2-3": "1ba51305af78458549aa587bfaae2555f950ffd11ebebacf8f7a9e5cfe1a583e",
    "libnginx-mod-http-lua=1:0.10.23-1+deb12u1": "c6060e48e01172b6a04fc9b13271cb056bc8377199292d6b03f2207f15b0c598",
    "lua-resty-core=0.1.25-1": "ec3474d16db332c6deb9c35c13ff3e09f10773705e3b42c0e80cb318b67dc9e5",
    "lua-resty-lrucache=0.13-10": "74b1a5621936fa0aac1e85dfe2ee49f8fa9dad1856bdbc52e4109528916a8400",
    "libluajit2-5.1-2=2.1-20230119-1": "83f4cb79e75286a1100ed7fd0f849b5823c911067fc9d6a1e29dfbdc84353909",
    "libpcre3=2:8.39-15": "993ea623ce5b42d67f653f2faaa7ef15e7c9d72bfcb93e22a1eaff7aa3532303",
    "libpcre2-8-0=10.42-1": "030db54f4d76cdfe2bf0e8eb5f9efea0233ab3c7aa942d672c7b63b52dbaf935",
    "wrk=4.1.0-3+b2": "b0206dc74df85365a248ddac2433c0ee3f210579fc5ed83758e73354bb1bbefb",
}


class CannotBeHad(Exception):
    """The tools are not here and cannot be fetched; the message says why."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The two programs, and the environment that they find their libraries by."""

    root: Path

    @property
    def nginx(self) -> Path:
        return self.root / "usr/sbin/nginx"

    @property
    def wrk(self) -> Path:
        return self.root / "usr/bin/wrk"

    @property
    def modules(self) -> Path:
        return self.root / "usr/lib/nginx/modules"

    @property
    def lua(self) -> Path:
        """Where Lua's libraries are."""
        return self.root / "usr/share/lua/5.1"

    @property
    def environment(self) -> dict[str, str]:
        folders = {str(file.parent) for pattern in ("lib", "usr/lib") for file in self.root.glob(f"{pattern}/*/*.so*")}
        return {**os.environ, "LD_LIBRARY_PATH": ":".join(sorted(folders))}

    def versions(self) -> dict[str, str]:
        """By program. Raises `CannotBeHad` if one of them does not run here."""
        found = {}
        for program, option, pattern in ((self.nginx, "-v", r"nginx/(\S+)"), (self.wrk, "-v", r"wrk \S*?([\d.]+)")):
            try:
                done = subprocess.run(
                    [program, option], env=self.environment, capture_output=True, text=True, check=False
                )
            except OSError as error:
                raise CannotBeHad(f"{program} cannot be run: {error}") from None
            version = re.search(pattern, done.stdout + done.stderr)
            if version is None:
                raise CannotBeHad(f"{program} {option}: {(done.stderr or done.stdout).strip()}")
            found[program.name] = version[1]
        return found


def prepare() -> Tools:
    """The tools, fetched if they are not here. Raises `CannotBeHad`."""
    tools, stamp = Tools(FOLDER), FOLDER / "made-from"
    pins = hashlib.sha256(repr(PACKAGES).encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != pins:
        FOLDER.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER.parent) as scratch:
            _fetch(Path(scratch))
            shutil.rmtree(FOLDER, ignore_errors=True)
            (Path(scratch) / "out").rename(FOLDER)
        tools.versions()
        stamp.write_text(pins)
    return tools


def _fetch(scratch: Path) -> None:
    for package, digest in PACKAGES.items():
        _run(["apt-get", "-qq", "download", package], scratch)
        archive = next(scratch.glob(package.partition("=")[0] + "_*.deb"))
        if hashlib.sha256(archive.read_bytes()).hexdigest() != digest:
            raise CannotBeHad(f"{package} is not the package that is pinned here (Debian 12, amd64)")
        _run(["dpkg", "-x", str(archive), str(scratch / "out")], scratch)


def _run(command: list[str], cwd: Path) -> None:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CannotBeHad(f"Debian's packages of nginx and wrk are needed: {error}") from None
    if done.returncode:
        words = " / ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise CannotBeHad(f"{' '.join(command)} ended with {done.returncode}: {words} (`apt-get update` may help)")


if __name__ == "__main__":
    print(prepare().versions())
