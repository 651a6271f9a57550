"""Faults 34 to 36: names, certificates, file descriptors and disks of the gateway's host, and retries on retries."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import openai
import pytest
from faults.kit import HASTY, asked, key_in, odd_gateway, status, statuses, until
from faults.report import Report
from harness.fake_backend import fake
from harness.gateway_process import gateway_process
from harness.redis_server import free_port, wait_listening

HOSTS = ["unshare", "-rm", "sh", "-c", 'mount --bind hosts /etc/hosts && exec "$@"', "sh"]
"""Gives a command a hosts file of its own, which is the test's to change."""
FILES = 160
SHORT = ["sh", "-c", 'ulimit -f 64 && exec "$@"', "sh"]
"""No file of its own can grow beyond 32 KiB, the log in particular: writing fails as on a full disk."""
NARROW = ["sh", "-c", f'ulimit -n {FILES} && exec "$@"', "sh"]


def _may_unshare() -> bool:
    command = [*HOSTS[:4], "mount --bind /etc/hostname /etc/hosts"]
    return subprocess.run(command, capture_output=True).returncode == 0


async def test_34_a_targets_address_changes(tmp_path: Path, report: Report) -> None:
    if not _may_unshare():
        report.fault(34, "address (needs a name space of one's own)", 0, "served again", "not tried here")
        pytest.skip("no hosts file of one's own here")
    port, secret, hosts = free_port(), await key_in(tmp_path), tmp_path / "hosts"
    hosts.write_text("127.0.0.1 model.test localhost\n")
    table = {"routes": {"m": {"targets": [{"name": "a", "backend": "vllm", "url": f"http://model.test:{port}"}]}}}
    with ExitStack() as first, fake(name="new", address=("127.0.0.2", port)) as new:
        old = first.enter_context(fake(name="old", address=("127.0.0.1", port)))
        with odd_gateway(table, tmp_path, HOSTS) as gateway_port:
            await until(lambda: status(gateway_port, secret) == 200, "it serves", 120)
            assert old.tells()["calls"] >= 1
            first.close()
            hosts.write_text("127.0.0.2 model.test localhost\n")
            began = time.monotonic()
            await until(lambda: status(gateway_port, secret) == 200, "it serves again", 120)
            took = time.monotonic() - began
    report.fault(34, "address", 1, "served again", f"after {took:.1f} s", "names are looked up again after 10 s")
    assert new.tells()["calls"] >= 1


@contextmanager
def https_server(folder: Path) -> Iterator[int]:
    """A server whose certificate nobody has signed."""
    key, certificate, port = folder / "key.pem", folder / "cert.pem", free_port()
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    subprocess.run([*made, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    command = [
        "openssl",
        "s_server",
        "-accept",
        f"127.0.0.1:{port}",
        "-cert",
        str(certificate),
        "-key",
        str(key),
        "-www",
    ]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_listening(process, port)
        yield port
    finally:
        process.kill()
        process.communicate()


async def test_34_a_targets_certificate_is_refused(tmp_path: Path, report: Report) -> None:
    with https_server(tmp_path) as port:
        targets = [{"name": "tls", "backend": "openai", "url": f"https://127.0.0.1:{port}"}]
        with gateway_process(json.dumps({"routes": {"m": {"targets": targets, "timeouts": HASTY}}})) as gateway:
            secret = (await asyncio.to_thread(gateway.issue)).secret
            calls = await asked(gateway.port, secret, "m", 3, 1)
            logged = gateway.stderr().lower()
    told = "certificate" in logged
    report.fault(34, "certificate", 3, "502, told in the log", f"{statuses(calls)}", "logged" if told else "not logged")
    assert statuses(calls) == {502: 3} and told


def crowd(port: int) -> list[socket.socket]:
    """More connections than the gateway has descriptors for; what it cannot take waits in the kernel."""
    opened = [socket.socket() for _ in range(2 * FILES)]
    for each in opened:
        each.setblocking(False)
        with suppress(BlockingIOError):
            each.connect(("127.0.0.1", port))
    return opened


async def test_35_no_file_descriptors_are_left(tmp_path: Path, report: Report) -> None:
    secret = await key_in(tmp_path)
    with fake() as target:
        table = {"routes": {"m": {"targets": [target.spec()], "timeouts": HASTY}}}
        with odd_gateway(table, tmp_path, NARROW) as port:
            await until(lambda: status(port, secret) == 200, "it serves", 120)
            idle = await asyncio.to_thread(crowd, port)
            during = await asyncio.to_thread(status, port, secret)
            for each in idle:
                each.close()
            began = time.monotonic()
            await until(lambda: status(port, secret) == 200, "it serves again", 120)
            took = time.monotonic() - began
    seen = "no answer" if during == 0 else str(during)
    report.fault(35, f"{2 * FILES} connections, {FILES} files", 1, "recovers", f"{took:.1f} s", f"meanwhile: {seen}")


async def test_35_the_disk_is_full(tmp_path: Path, report: Report) -> None:
    """From some line on nothing of log and records can be written."""
    secret, log = await key_in(tmp_path), tmp_path / "log"
    with fake() as target:
        table = {"routes": {"m": {"targets": [target.spec()], "timeouts": HASTY}}}
        with odd_gateway(table, tmp_path, SHORT) as port:
            await until(lambda: status(port, secret) == 200, "it serves", 120)
            calls = await asked(port, secret, "m", 400, 8)
            size = log.stat().st_size
    assert size >= 32 * 1024 - 512, "it was full"
    slowest = max(call.seconds for call in calls)
    report.fault(
        35, "log on a full disk", 400, "all answered", f"{statuses(calls)}", f"slowest {1000 * slowest:.0f} ms"
    )
    assert statuses(calls) == {200: 400}


async def test_36_three_layers_retry(report: Report) -> None:
    """OpenAI's SDK with two retries, a gateway, a second gateway, and a server that fails each call."""
    calls = 24
    with fake("vllm", "one") as one, fake("vllm", "two") as two:
        common = {"policy": "round-robin", "timeouts": HASTY}
        inner_table = {"routes": {"m": {"aliases": ["also"], "targets": [one.spec(), two.spec()], **common}}}
        with gateway_process(json.dumps(inner_table)) as inner:
            key = (await asyncio.to_thread(inner.issue)).secret
            through = {"backend": "openai", "url": inner.url, "api_key": "${INNER}"}
            targets = [{"name": name, "model": name, **through} for name in ("m", "also")]
            outer_table = {"routes": {"m": {"targets": targets, **common}}}
            with gateway_process(json.dumps(outer_table), env={"INNER": key}) as outer:
                secret = (await asyncio.to_thread(outer.issue)).secret
                for each in (one, two):
                    each.order("500")
                async with openai.AsyncOpenAI(api_key=secret, base_url=f"{outer.url}/v1", max_retries=2) as client:
                    turns = iter(range(calls))

                    async def caller() -> None:
                        for _ in turns:
                            with pytest.raises(openai.APIStatusError):
                                await client.chat.completions.create(
                                    model="m", messages=[{"role": "user", "content": "Hi"}]
                                )

                    await asyncio.gather(*(caller() for _ in range(8)))
        came = one.tells()["calls"] + two.tells()["calls"]
    report.fault(36, "SDK, gateway, gateway", calls, "<< 12 calls for one", f"{came / calls:.2f} calls for one")
    assert came / calls <= 6
