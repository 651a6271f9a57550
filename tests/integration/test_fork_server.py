"""Gateways of these tests are forks; a fork is what the command would be that operators type."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness.fork_server import fork_server
from harness.gateway_process import TRUNKLINE, GatewayProcess, start
from integration.client import eventually, get

TABLE = '{"routes": {"m": {"targets": [{"name": "t", "backend": "openai", "url": "http://127.0.0.1:9"}]}}}'
Start = Callable[[Sequence[str], Path, Path, Mapping[str, str]], Any]


def ran(how: Start, folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """The exit code, the output and the errors of a command."""
    out, err = folder / "out", folder / "err"
    code = how([*TRUNKLINE, *arguments], out, err, {**os.environ, **environment}).wait(90)
    return code, out.read_text(), err.read_text()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--version",), 0),
        (("keys", "list", "--state", "no/such/folder/keys.db"), 1),
        (("no-such-command",), 2),
        (("serve", "no-such-table.yaml"), 2),
    ],
)
def test_it_says_and_ends_as_the_command_does(tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    forked, alone = (ran(how, tmp_path, *arguments, TRUNKLINE_WORKER="2") for how in (fork_server().start, start))
    assert forked == alone and forked[0] == code and (forked[1] or forked[2])


def shown(gateway: GatewayProcess) -> dict[str, Any]:
    """What the kernel knows of its main process and of its worker, without what differs from one start to the other."""
    main = psutil.Process(gateway.process.pid)
    (worker,) = main.children()
    return {name: _shown(each, gateway) for name, each in (("main", main), ("worker", worker))}


def _shown(process: psutil.Process, gateway: GatewayProcess) -> dict[str, Any]:
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    words = [word for word in process.cmdline() if word]
    return {
        "command": [word for word in words if word not in (str(gateway.port), words[-1], words[5])],
        "folder": process.cwd(),
        "signals": [line for line in status if line.startswith(("SigBlk", "SigIgn", "SigCgt"))],
        "group": os.getpgid(process.pid),
        "session": os.getsid(process.pid),
        "files": sorted(
            os.readlink(each).partition(":")[0].rpartition("/")[2] for each in Path(f"/proc/{process.pid}/fd").iterdir()
        ),
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_it_is_a_process_like_the_commands(tmp_path: Path, number: signal.Signals) -> None:
    found, codes = [], []
    for forked in (True, False):
        folder = tmp_path / str(forked)
        folder.mkdir()
        gateway = GatewayProcess(TABLE, folder, redis_url=None, workers=1, env={}, forked=forked)
        try:
            gateway.wait_ready()
            assert get(gateway, "/health").status == 200 and gateway.process.poll() is None
            eventually(lambda gateway=gateway: "target t is down: unreachable" in gateway.stderr(), "it logs")
            found.append(shown(gateway))
            gateway.process.send_signal(number)
            codes.append(gateway.process.wait(60))
        finally:
            gateway.process.kill()
            gateway.process.wait()
    for of, what in product(("main", "worker"), found[0]["main"]):
        # A worker probes its target meanwhile, and reads its table in a child.
        if (of, what) == ("worker", "files"):
            continue
        assert found[0][of][what] == found[1][of][what], (of, what)
    assert codes == [0 if number == signal.SIGTERM else -number] * 2


def test_forks_end_with_nobody_to_ask_for_more(tmp_path: Path) -> None:
    """As the commands would, a gateway goes on; only the server ends with the tests."""
    code = (
        "import sys; from pathlib import Path; from harness.fork_server import fork_server; import os;"
        f"f = fork_server().start({[*TRUNKLINE, '--version']!r}, Path('out'), Path('err'), dict(os.environ));"
        "print(f.wait(90), fork_server().pid)"
    )
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=path, capture_output=True, text=True)
    status, server = done.stdout.split()
    assert status == "0" and done.stderr == "" and (tmp_path / "out").read_text().startswith("trunkline")
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(server)).wait(60)
