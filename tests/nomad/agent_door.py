"""Where the agents of a test join: the part of the control service that the cluster's `attach` stands behind."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from nomadfn_agent.wire import STREAM_HEADER, Start, Stop, decode_from_supervisor, encode_for_stream

from nomadfn.adapters.nomad_cluster import NomadCluster
from nomadfn.adapters.nomad_rooms import AgentHello
from nomadfn.exception import Error


class Door:
    """Agents come in over TCP: one line of JSON, then frames behind their length."""

    def __init__(self) -> None:
        self.cluster: NomadCluster | None = None
        self.hellos: list[dict[str, Any]] = []
        self.refused: list[Error] = []
        self.writers: dict[str, asyncio.StreamWriter] = {}
        """By allocation, of the agents that are there now."""

    async def open(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        self.server.close()
        for writer in list(self.writers.values()):
            writer.close()
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seat = None
        alloc = ""
        try:
            hello = json.loads(await reader.readline())
            self.hellos.append(hello)
            alloc = hello["alloc"]
            assert self.cluster is not None

            def send(frame: Start | Stop) -> None:
                if not writer.is_closing():
                    writer.write(encode_for_stream(frame))

            told = AgentHello(hello["job"], alloc, hello["lane"], hello["position"], tuple(hello["containers"]))
            self.writers[alloc] = writer
            seat = await self.cluster.attach(told, send)
            while True:
                (length,) = STREAM_HEADER.unpack(await reader.readexactly(STREAM_HEADER.size))
                seat.on_frame(decode_from_supervisor(await reader.readexactly(length)))
        except Error as error:
            self.refused.append(error)
        except (OSError, ValueError, asyncio.IncompleteReadError):
            pass
        finally:
            if self.writers.get(alloc) is writer:
                del self.writers[alloc]
            writer.close()
            if seat is not None:
                seat.closed()
