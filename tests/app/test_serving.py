"""Where the page can be served."""

from __future__ import annotations

import socket

import pytest

from afmi.app.serving import check_address
from afmi.errors import UsageError


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
