"""Where the page can be served."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from ports import free_port

from afmi.app.serving import check_address
from afmi.errors import UsageError

ROOT = Path(__file__).parents[2]


def test_a_port_in_use_is_named_before_anything_is_done() -> None:
    with socket.socket() as used:
        used.bind(("127.0.0.1", 0))
        used.listen()
        port = used.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}, which is in use"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)
    with pytest.raises(UsageError, match="no address of this machine"):
        check_address("not a host", port)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize(("asked", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_command_serves_until_it_is_asked_to_end(
    asked: signal.Signals, status: int, tmp_path: Path
) -> None:
    port = free_port()
    command = [sys.executable, *("-m", "afmi", "app", "--model", "photos", "--port", str(port))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert f"open http://127.0.0.1:{port}/" in server.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as answer:
            assert b"gradio" in answer.read()
        server.send_signal(asked)
    assert server.returncode == status
    assert list(tmp_path.glob("afmi-app-*")) == []
