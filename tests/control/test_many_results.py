"""Results of many single calls that go out at once are one frame, for a client that knows it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from nomadfn_agent import wire

from nomadfn.control.connections import Connection
from nomadfn.control.tokens import Identity


class Transport:
    """Takes what a connection writes, and reads the websocket's frames in it."""

    def __init__(self) -> None:
        self.frames: list[Any] = []
        self.underlying_transport = self

    def send(self, kind: Any, data: bytes) -> None:
        self.frames.append(wire.decode_to_client(data))

    def write(self, data: bytes) -> None:
        while data:
            size, at = data[1], 2
            if size == 126:
                size, at = int.from_bytes(data[2:4], "big"), 4
            elif size == 127:
                size, at = int.from_bytes(data[2:10], "big"), 10
            self.frames.append(wire.decode_to_client(data[at : at + size]))
            data = data[at + size :]

    def writelines(self, parts: list[bytes]) -> None:
        self.write(b"".join(parts))

    def get_write_buffer_size(self) -> int:
        return 0


def connected(takes_many: bool) -> tuple[Connection, Transport, Any]:
    service: Any = SimpleNamespace(collecting=[])
    connection, transport = Connection(service, Identity("someone", "everything")), Transport()
    connection.takes_many = takes_many
    connection._transport = transport  # type: ignore[assignment]
    return connection, transport, service


def result(number: int, data: bytes = b"r") -> wire.Results:
    return wire.Results(number, f"fc-{number}", [0], [wire.OK], [data], wire.PICKLE)


def write(connection: Connection, service: Any) -> None:
    assert service.collecting == [connection], "it is written once"
    service.collecting = None
    connection.send_collected()


def test_single_results_share_a_frame_and_stay_in_order() -> None:
    connection, transport, service = connected(takes_many=True)
    connection.send_results(result(1))
    connection.send_results(result(2))
    connection.send(wire.Accepted("fc-x", 0, 1))
    connection.send_results(result(3))
    connection.send_results(wire.Results(5, "fc-map", [7, 8], [0, 0], [b"a", b"b"]))
    connection.send_results(result(6))
    write(connection, service)
    assert [type(one).__name__ for one in transport.frames] == [
        "ManyResults",
        "Accepted",
        "ManyResults",
        "Results",
        "ManyResults",
    ]
    assert [one.number for one in transport.frames if not isinstance(one, wire.Accepted)] == [2, 3, 5, 6]
    assert [one.call for one in transport.frames[0].each()] == ["fc-1", "fc-2"]


def test_each_call_gets_its_own_out_of_the_frame() -> None:
    many = wire.ManyResults(
        9, ["fc-1", "fc-2"], [0, 4], [wire.OK, wire.FAILURE], [b"a", b"b"], [wire.PICKLE, wire.JSON]
    )
    again = wire.decode_to_client(wire.encode(many))
    assert isinstance(again, wire.ManyResults)
    assert list(again.each()) == [
        wire.Results(9, "fc-1", [0], [wire.OK], [b"a"], wire.PICKLE),
        wire.Results(9, "fc-2", [4], [wire.FAILURE], [b"b"], wire.JSON),
    ]


def test_a_frame_does_not_grow_beyond_its_size() -> None:
    connection, transport, service = connected(takes_many=True)
    data = b"x" * (wire.MAX_FRAME_BYTES // 4)
    for number in range(1, 11):
        connection.send_results(result(number, data))
    write(connection, service)
    assert [len(one.calls) for one in transport.frames] == [4, 4, 2]


@pytest.mark.parametrize("takes_many", [True, False])
def test_a_client_that_does_not_know_it_and_a_result_by_itself_are_as_ever(takes_many: bool) -> None:
    connection, transport, service = connected(takes_many)
    if takes_many:
        service.collecting = None
        connection.send_results(result(1))
        connection.send_results(result(2))
    else:
        connection.send_results(result(1))
        connection.send_results(result(2))
        write(connection, service)
    assert transport.frames == [result(1), result(2)]


def test_what_is_gathered_goes_out_before_a_connection_is_closed() -> None:
    connection, transport, _service = connected(takes_many=True)
    closed: list[str] = []
    transport.disconnect = lambda: closed.append("closed")  # type: ignore[attr-defined]
    connection.send_results(result(1))
    connection.close()
    assert [type(one).__name__ for one in transport.frames] == ["ManyResults"]
    assert closed == ["closed"]
