"""Compressed request bodies: decompressed within limits, in a thread of their own, before the handler sees them."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from predictor.api.message import Answering, Buffer, Request
from predictor.api.reader import Limits, Load
from predictor.errors import BodyTooLarge, MalformedRequest, TooManyRequests, UnsupportedEncoding

STEP_BYTES: Final = 1 << 20
"""Decompressed at once; so much more than allowed can exist for a moment."""
FEED_BYTES: Final = 64 << 10
"""Handed to zlib at once: it copies what it leaves, so whole bodies would be copied again with every step."""
_GZIP_BITS: Final = 16 + zlib.MAX_WBITS


class Inflating:
    """A handler in front of a handler. Requests without Content-Encoding pass untouched.

    The thread is one, so that decompressing never takes more than one core from the others, and its queue is bounded
    by what ``max_body_bytes_in_flight`` lets in.
    """

    def __init__(self, handler: Callable[[Request], Answering], limits: Limits, load: Load) -> None:
        self._handler = handler
        self._limits = limits
        self._load = load
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="inflate")

    def __call__(self, request: Request) -> Answering:
        """Answer ``request``."""
        if b"content-encoding" in request.headers:
            coding = request.headers[b"content-encoding"].strip().lower()
            if coding not in {b"", b"identity"}:
                return self._inflated(request, coding)
        return self._handler(request)

    def close(self) -> None:
        """Let the thread end."""
        self._threads.shutdown(wait=False)

    async def _inflated(self, request: Request, coding: bytes) -> Answering:
        loop = asyncio.get_running_loop()
        body = await loop.run_in_executor(self._threads, inflate, coding, request.body, self._limits.max_body_bytes)
        growth_bytes = len(body) - request.body_bytes
        if self._load.body_bytes + growth_bytes > self._limits.max_body_bytes_in_flight:
            raise TooManyRequests(
                f"request bodies inside this pod reach {self._limits.max_body_bytes_in_flight} bytes "
                "(HEARTH_MAX_BODY_BYTES_IN_FLIGHT): try again later",
                retry_after_s=1.0,
            )
        request.body = body
        request.body_bytes += growth_bytes
        self._load.body_bytes += growth_bytes
        return self._handler(request)


def inflate(coding: bytes, body: Buffer, limit_bytes: int) -> bytes | bytearray:
    """Undo ``coding`` (gzip or deflate). Never holds more than ``limit_bytes`` and one step.

    Raises UnsupportedEncoding, MalformedRequest (damaged or cut short), BodyTooLarge.
    """
    if coding in {b"gzip", b"x-gzip"}:
        bits = _GZIP_BITS
    elif coding == b"deflate":
        # The standard says zlib's format; some clients send the bare one. zlib's two-byte header is a multiple of 31.
        zlib_header = len(body) > 1 and body[0] & 0x0F == zlib.DEFLATED and (body[0] << 8 | body[1]) % 31 == 0
        bits = zlib.MAX_WBITS if zlib_header else -zlib.MAX_WBITS
    else:
        raise UnsupportedEncoding(
            f"Content-Encoding {coding.decode('latin-1')!r} is not understood: send gzip, deflate or nothing"
        )
    stream = zlib.decompressobj(bits)
    whole = bytearray()
    try:
        for begin in range(0, len(body), FEED_BYTES):
            rest: Buffer = memoryview(body)[begin : begin + FEED_BYTES]
            while True:
                piece = stream.decompress(rest, STEP_BYTES)
                rest = stream.unconsumed_tail
                whole += piece
                if len(whole) > limit_bytes:
                    raise BodyTooLarge(
                        f"the request's body is more than {limit_bytes} bytes decompressed (HEARTH_MAX_BODY_BYTES)"
                    )
                if not rest and len(piece) < STEP_BYTES:
                    break
            if stream.unused_data:
                raise MalformedRequest("the compressed body goes on after its end")
    except zlib.error as error:
        raise MalformedRequest(f"the body is not {coding.decode('ascii')}: {error}") from None
    if not stream.eof:
        raise MalformedRequest(f"the {coding.decode('ascii')} body is cut short after {len(body)} bytes")
    return whole
