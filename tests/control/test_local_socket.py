"""The Unix socket of a service's own machine: where it is, for whom, and what picows may ask of its connections."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

from nomadfn.control.local_socket import listen_at


def test_it_takes_the_place_of_one_that_a_killed_service_has_left(tmp_path: Path) -> None:
    path = tmp_path / "data.sock"
    left = listen_at(path)
    assert left is not None
    left.close()
    assert path.exists()
    listener = listen_at(path)
    assert listener is not None
    with listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        connection, _ = listener.accept()
        with connection:
            client.sendall(b"hello")
            assert connection.recv(5) == b"hello"


def test_it_is_for_its_owner_alone(tmp_path: Path) -> None:
    listener = listen_at(tmp_path / "data.sock")
    assert listener is not None
    with listener:
        assert stat.S_IMODE((tmp_path / "data.sock").stat().st_mode) == 0o600


def test_options_of_tcp_are_nobodys_business(tmp_path: Path) -> None:
    path = tmp_path / "data.sock"
    listener = listen_at(path)
    assert listener is not None
    with listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        with listener.accept()[0] as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
            assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM


def test_where_none_can_be_there_is_none(tmp_path: Path) -> None:
    assert listen_at(tmp_path / ("x" * 200) / "data.sock") is None
    assert listen_at(tmp_path / "no such folder" / "data.sock") is None
