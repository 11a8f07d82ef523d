"""Two processes of four devices each do what one of eight does, and do not outlive one another."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("worker.py")
# Far above what it takes; only a process that never ends fails.
BOUND_SECONDS = 240


def start(number: int, count: int, port: int, *more: str) -> subprocess.Popen[str]:
    devices = f"--xla_force_host_platform_device_count={8 // count}"
    environment = os.environ | {"XLA_FLAGS": devices, "JAX_PLATFORMS": "cpu"}
    root = str(WORKER.parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(number), str(count), str(port), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def result(process: subprocess.Popen[str]) -> list[list[int]]:
    out, err = process.communicate(timeout=BOUND_SECONDS)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1])


def test_two_processes_generate_what_one_does() -> None:
    port = free_port()
    alone = start(0, 1, port)
    pair = [start(number, 2, port) for number in range(2)]
    wanted = result(alone)
    assert [result(process) for process in pair] == [wanted, wanted]
    assert len({tuple(row) for row in wanted}) > 1


def test_when_one_is_killed_the_other_ends() -> None:
    port = free_port()
    pair = [start(number, 2, port, "wait") for number in range(2)]
    try:
        # Both have generated once, and go on.
        for process in pair:
            assert process.stdout is not None
            assert any(line.startswith("[[") for line in iter(process.stdout.readline, ""))
        pair[1].kill()
        killed = time.monotonic()
        _, err = pair[0].communicate(timeout=BOUND_SECONDS)
        assert pair[0].returncode != 0
        assert err.strip(), f"it ended after {time.monotonic() - killed:.0f} s without a word"
    finally:
        for process in pair:
            process.kill()
            process.communicate()
