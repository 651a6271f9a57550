"""Parts are opened in order and closed in reverse, whatever fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.app.lifetime import Lifetime, Part


class Diary:
    """Parts that write down what is done with them."""

    def __init__(self, failing: str = "") -> None:
        self.lines: list[str] = []
        self._failing = failing

    def part(self, name: str) -> Part:
        return self._step(f"open {name}"), self._step(f"close {name}")

    def _step(self, line: str) -> Callable[[], object]:
        async def later() -> None:
            self._write(line)

        def at_once() -> None:
            self._write(line)

        return later if line.endswith(("a", "c")) else at_once

    def _write(self, line: str) -> None:
        self.lines.append(line)
        if line == self._failing:
            raise RuntimeError(line)


def lifetime(diary: Diary) -> Lifetime:
    return Lifetime([diary.part("a"), diary.part("b"), (None, diary.part("c")[1]), diary.part("d")])


async def test_what_is_opened_first_is_closed_last() -> None:
    diary = Diary()
    life = lifetime(diary)
    await life.open()
    await life.close()
    assert diary.lines == ["open a", "open b", "open d", "close d", "close c", "close b", "close a"]


async def test_what_cannot_be_opened_is_closed_with_all_that_was_opened_before() -> None:
    diary = Diary("open b")
    with pytest.raises(RuntimeError, match="open b"):
        await lifetime(diary).open()
    assert diary.lines == ["open a", "open b", "close b", "close a"]


async def test_a_part_that_cannot_be_closed_keeps_no_other_open() -> None:
    diary = Diary("close d")
    life = lifetime(diary)
    await life.open()
    with pytest.raises(RuntimeError, match="close d"):
        await life.close()
    assert diary.lines[-4:] == ["close d", "close c", "close b", "close a"]
