"""Checks that a stand-in ends when told to or when its parent is gone, and takes its model with it."""

import asyncio
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from standin import tgi
from standin.embedded import child

pytestmark = pytest.mark.standin_only
program = Path(tgi.__file__).resolve()


async def gone(processes: list[psutil.Process]) -> None:
    try:
        async with asyncio.timeout(20):
            while any(lives(process) for process in processes):
                await asyncio.sleep(0.05)
    finally:
        for process in filter(lives, processes):
            process.kill()


def lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def test_sigterm_ends_the_standin_and_its_model(client_of):
    command = [sys.executable, str(program), "--port", "0", "--embedded"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        said, url = process.stdout.readline().decode().split()
        family = psutil.Process(process.pid).children(recursive=True)
        assert (said, len(family)) == ("listening", 1)
        assert (await client_of(url).get("/health")).status == 200
        process.terminate()
        assert process.wait(60) == 0
    await gone(family)


async def test_standin_does_not_outlive_its_parent():
    between = f"import subprocess, sys; subprocess.run([sys.executable, {str(program)!r}, '--port', '0', '--embedded'])"
    with subprocess.Popen(
        [sys.executable, "-c", between], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"listening ")
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) == 2
        process.kill()
    await gone(family)


def test_a_standin_that_cannot_start_says_why():
    command = [sys.executable, str(program), "--port", "0", "--model-url", "http://127.0.0.1:9"]
    with pytest.raises(RuntimeError, match="did not start"), child(command):
        pass
