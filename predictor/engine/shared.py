"""The worker's side of large tensors: requests in the front's passage, answers in one of its own.

A request is used where it lies, in a private mapping: what a model writes into its inputs stays here, as page copies, and
goes with the mapping. What stays out: what decides that bytes lie there (wire.py, workers/link.py).
"""

from __future__ import annotations

import logging
import socket
import weakref

import msgspec

from predictor.engine.confine import files_of_any_size
from predictor.errors import ModelFailed
from predictor.model import PAGE_BYTES
from predictor.passage import Extent, Passage, Window, window
from predictor.wire import INLINE_BYTES, Ran, send_passage

log = logging.getLogger(__name__)


class Shared:
    """Both passages. Used by the main thread; ``begin`` is called by the other one, before the first Load."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._requests = -1
        self._size_bytes = 0
        self._mapped: list[weakref.ref[Window]] = []
        self._answers: Passage | None = None
        self._sent: dict[int, memoryview] = {}

    def begin(self, descriptor: int, size_bytes: int) -> None:
        """Take over the front's passage. Answers may take as many bytes; without a passage they all go over the socket."""
        self._requests, self._size_bytes = descriptor, size_bytes

    def open(self, pieces: tuple[Extent, ...]) -> memoryview:
        """A request's body. One piece is used in place, several are joined. OSError: it cannot be mapped."""
        assert self._requests >= 0, f"{pieces} of a passage that never came"
        if len(pieces) == 1:
            mapping, view = window(self._requests, pieces[0], writable=True)
            self._mapped.append(weakref.ref(mapping))
            return view
        return memoryview(bytearray().join(window(self._requests, piece)[1] for piece in pieces))

    def let_go(self) -> None:
        """The front may reuse the request's memory from now on. What the model kept of it gets pages of its own."""
        for reference in self._mapped:
            mapping = reference()
            if mapping is not None:
                for at in range(0, len(mapping), PAGE_BYTES):
                    mapping[at] = mapping[at]
        self._mapped.clear()

    def put(self, answer: Ran, parts: list[memoryview]) -> Ran:
        """Put the outputs where the front reads them, if they are large and there is room: ``parts`` is empty then.

        Raises ModelFailed: they are more than the front takes, in whatever way.
        """
        size_bytes = sum(part.nbytes for part in parts)
        if size_bytes <= INLINE_BYTES or not self._size_bytes:
            return answer
        if size_bytes > self._size_bytes:
            raise ModelFailed(
                f"its outputs are {size_bytes} bytes, more than the {self._size_bytes} that an answer may have (twice "
                f"HEARTH_MAX_BODY_BYTES_IN_FLIGHT)"
            )
        if self._answers is None:
            with files_of_any_size():
                self._answers = Passage(self._size_bytes, "answers")
            send_passage(self._control, self._answers.reader)
        put = self._answers.put(parts)
        if put is None:
            return answer
        extent, self._sent[extent[0]] = put
        parts.clear()
        return msgspec.structs.replace(answer, place=extent)

    def free(self, offsets: tuple[int, ...]) -> None:
        """The front does not read these answers any more."""
        for offset in offsets:
            del self._sent[offset]
