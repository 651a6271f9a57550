"""What a fuzz run needs to know of one function under test, and where its corpus stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar
from zlib import crc32

from msgspec import Struct

T = TypeVar("T")

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
SHORT = 6000
"""Bytes; longer seeds take too long to read a thousand times."""


class Harness(Struct, frozen=True):
    """One way to feed bytes to the code. What drives it (hypothesis, atheris, a file) is not its business.

    `corpus/NAME` holds inputs: good ones, those that once did harm, those that are likely to. `tokens/NAME.txt` holds
    the pieces that matter to whoever reads such input, one a line.
    """

    name: str
    check: Callable[[bytes], None]
    """Any bytes must pass; an exception is a finding."""
    recorded: tuple[bytes, ...] = ()
    """Good inputs that stand elsewhere already."""

    def kept(self) -> Iterator[tuple[str, bytes]]:
        """The inputs of its corpus, with the names of their files."""
        for path in sorted((CORPUS / self.name).glob("*")):
            yield path.name, read(path)

    def seeds(self) -> list[bytes]:
        """What damage is done to."""
        return [*self.recorded, *(data for _, data in self.kept())]

    def tokens(self) -> list[bytes]:
        """The pieces; `\\xHH` in the file is a byte."""
        lines = (HERE / "tokens" / f"{self.name}.txt").read_text().splitlines()
        return [line.encode().decode("unicode_escape").encode("latin-1") for line in lines]

    def keep(self, data: bytes) -> Path:
        """Put an input into the corpus."""
        text = all(byte in b"\n\t" or 32 <= byte < 127 for byte in data)
        path = CORPUS / self.name / f"found-{crc32(data):08x}.{'txt' if text else 'hex'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if text else _lines(data.hex()))
        return path


def read(path: Path) -> bytes:
    """An input of the corpus: hexadecimal digits in `.hex`, anything else is what it is."""
    raw = path.read_bytes()
    return bytes.fromhex(raw.decode()) if path.suffix == ".hex" else raw


def allow(
    expected: type[Exception] | tuple[type[Exception], ...], function: Callable[..., T], *given: object
) -> T | None:
    """What the function makes of this; None when it raises what it may."""
    try:
        return function(*given)
    except expected:
        return None


def short(seeds: Iterable[bytes], most: int = SHORT) -> tuple[bytes, ...]:
    """The seeds that are quickly read, each once."""
    return tuple(dict.fromkeys(seed for seed in seeds if len(seed) <= most))


def _lines(digits: str) -> bytes:
    return "\n".join(digits[at : at + 100] for at in range(0, len(digits), 100)).encode() + b"\n"
