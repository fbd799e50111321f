"""``python -m loadtest.standin``: a server that costs next to nothing and can stall, for measuring the generator itself.

It answers every inference with the same tensor, as Hearth would head it. Not a model server: nothing is computed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import httptools

ANSWER = json.dumps(
    {
        "model_name": "standin",
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [2.0, 3.0, 4.0, 5.0]}],
    }
).encode()
QUESTION = {
    "model": "standin",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}],
    "outputs": [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [2.0, 3.0, 4.0, 5.0]}],
}
"""One line of a deck that it answers rightly."""
_HEAD = (
    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nHearth-Start: hot\r\nHearth-Version: 1\r\n"
    f"Hearth-Pod: standin;up=86400.000\r\nServer-Timing: compute;dur=0.01\r\nContent-Length: {len(ANSWER)}\r\n\r\n"
).encode()


@dataclass(frozen=True)
class Stall:
    """Answers nothing for ``for_s`` seconds, ``after_s`` seconds after the first request. 0: never."""

    after_s: float = 0.0
    for_s: float = 0.0


class Standin(asyncio.Protocol):
    """One connection."""

    first_s: float | None = None

    def __init__(self, stall: Stall) -> None:
        self._stall = stall
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Of asyncio."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own inherits from neither

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Of httptools: a request is whole."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        if Standin.first_s is None:
            Standin.first_s = now_s
            if self._stall.for_s:
                begin_s = time.time() + self._stall.after_s
                print(begin_s, begin_s + self._stall.for_s, flush=True)
        since_s = now_s - Standin.first_s
        left_s = self._stall.after_s + self._stall.for_s - since_s
        if self._stall.for_s and since_s >= self._stall.after_s and left_s > 0:
            loop.call_later(left_s, self._answer)
        else:
            self._answer()

    def _answer(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(_HEAD + ANSWER)


async def serve(port: int, stall: Stall, tls: ssl.SSLContext | None = None) -> None:
    """Serve on 127.0.0.1 until cancelled; prints the port, which is free where ``port`` is 0.

    Then, at the first request, when the stall will begin and end: seconds since the epoch.
    """
    server = await asyncio.get_running_loop().create_server(lambda: Standin(stall), "127.0.0.1", port, ssl=tls)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="python -m loadtest.standin", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--stall-after-s", type=float, default=0.0)
    parser.add_argument("--stall-s", type=float, default=0.0)
    parser.add_argument("--certificate", type=Path, help="with its --key: speak TLS")
    parser.add_argument("--key", type=Path)
    asked = parser.parse_args()
    tls = None
    if asked.certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(asked.certificate, asked.key)
    import uvloop  # noqa: PLC0415 (only where it is the server)

    try:
        uvloop.run(serve(asked.port, Stall(asked.stall_after_s, asked.stall_s), tls))
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
