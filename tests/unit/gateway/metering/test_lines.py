"""Log lines reach a reader that reads; one that stalls or leaves costs lines, never time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.metering import Lines, lines


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for descriptor in (reader, writer):
        with suppress(OSError):
            os.close(descriptor)


def test_lines_come_out_whole_and_in_order(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        written = Lines(file.fileno())
        for number in range(5000):
            written.write(b"line %d" % number)
        written.close()
    assert (tmp_path / "log").read_bytes() == b"".join(b"line %d\n" % number for number in range(5000))


def test_lines_of_many_threads_do_not_mix(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        written = Lines(file.fileno())

        def write(name: int) -> None:
            for number in range(300):
                written.write(b"%d:%d:" % (name, number) + b"x" * 50)

        threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        written.close()
    found = (tmp_path / "log").read_bytes().splitlines()
    assert len(found) == 1200 and all(line.endswith(b"x" * 50) for line in found)


def test_lines_are_written_before_the_end(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    written = Lines(writer)
    for number in range(3):
        written.write(b"%d" % number)
        assert os.read(reader, 100) == b"%d\n" % number
    written.close()


def test_a_reader_that_stalls_costs_lines_and_no_time(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody reads before all is written: a writer that waited would wait for ever."""
    monkeypatch.setattr(lines, "MAX_WAITING", 1000)
    reader, writer = pipe
    dropped: list[int] = []
    written = Lines(writer, dropped.append)
    line = b"x" * 1000
    for _ in range(5000):
        written.write(line)
    assert sum(dropped) >= 5000 - 2 * 1000 - 200
    received = b""
    closing = threading.Thread(target=written.close)
    closing.start()
    while len(received) < (5000 - sum(dropped)) * 1001:
        received += os.read(reader, 1 << 20)
    closing.join()
    assert received == (line + b"\n") * (5000 - sum(dropped)), "what was taken is written when the reader goes on"


def test_a_reader_that_left_costs_lines_and_no_time(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    dropped: list[int] = []
    written = Lines(writer, dropped.append)
    for _ in range(100):
        written.write(b"line")
    written.close(60)
    assert sum(dropped) == 100
    assert not written._thread.is_alive()


def test_closing_does_not_wait_for_a_stalled_reader_for_ever(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    written = Lines(writer)
    for _ in range(1000):
        written.write(b"x" * 1000)
    written.close(0.2)
    assert written._thread.is_alive()
    os.set_blocking(reader, False)
    while written._thread.is_alive():  # let the thread end with the test
        with suppress(BlockingIOError):
            os.read(reader, 1 << 20)


def test_a_full_disk_costs_lines_only() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        dropped: list[int] = []
        written = Lines(full.fileno(), dropped.append)
        written.write(b"line")
        written.close()
    assert dropped == [1]
