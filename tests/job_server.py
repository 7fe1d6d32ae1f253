"""The head of a Ray cluster of its own with a job server, which asks for a token."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ports import free_port

TOKEN = "0123456789abcdef" * 4


@contextmanager
def started_job_server() -> Iterator[str]:
    """The address of a head's job server; its workers find `w2v-ray` beside the Python of the tests."""
    for name in ("aiohttp_cors", "opencensus", "prometheus_client", "smart_open", "virtualenv"):
        pytest.importorskip(name, reason="needs ray[default]")
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets need a short name
    port, dashboard = free_port(), free_port()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_TMPDIR": folder,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=2"]
    command += ["--num-gpus=0"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", "--object-store-memory=200000000"]
    # Those of the default are for one Ray on a computer.
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={free_port()}"]
    head = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=5).close()
            break
        except urllib.error.HTTPError:  # it answers, and asks for a token
            break
        except OSError:
            assert head.poll() is None, "the head ended"
            assert time.monotonic() < deadline, "no job server in two minutes"
            time.sleep(0.5)
    yield address
    head.send_signal(signal.SIGTERM)
    try:
        head.wait(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
    shutil.rmtree(folder, ignore_errors=True)
