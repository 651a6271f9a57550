"""Lets atheris look for inputs that do harm to one function: `python tests/fuzz/guided.py HARNESS SECONDS`.

Atheris is in no lock file: its wheel is large, for some machines only, and the tests need it not.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

with atheris.instrument_imports(include=["backends", "gateway"]):
    from fuzz.targets import HARNESSES

LONGEST = 4096
SLOW = 10
"""Seconds after which an input is a finding by its slowness."""


def main(name: str, seconds: str) -> None:
    (harness,) = (each for each in HARNESSES if each.name == name)
    folder = Path(tempfile.mkdtemp(prefix=f"trunkline-fuzz-{name}-"))
    words = folder / "words.dict"
    words.write_text("".join(f'"{_quoted(token)}"\n' for token in harness.tokens() if token))
    (folder / "seeds").mkdir()
    for number, seed in enumerate(harness.seeds()):
        (folder / "seeds" / f"{number}").write_bytes(seed)

    def passes(data: bytes) -> Any:
        try:
            harness.check(data)
        except Exception:
            print(f"kept as {harness.keep(data)}", flush=True)
            raise

    limits = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", f"-timeout={SLOW}", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *limits, f"-dict={words}", str(folder / "seeds")], passes)
    atheris.Fuzz()


def _quoted(token: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in token)


if __name__ == "__main__":
    main(*sys.argv[1:])
