"""The worker's loop: messages in, answers out.

Two threads. The main thread reads the socket, computes, and forgets models; a second one builds, so that a load does not
stop the models that are ready. What stays out: what a device is (device.py), what a format is (pytorch.py, onnx.py).
"""

from __future__ import annotations

import ctypes
import gc
import logging
import mmap
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Sequence
from typing import Final

import torch

from predictor.engine.device import CpuDevice, Device
from predictor.engine.formats import Built, Output, build
from predictor.errors import HearthError, LoadFailed, ModelFailed
from predictor.wire import (
    Failed,
    Frames,
    FromWorker,
    Hello,
    Load,
    Loaded,
    Ran,
    Run,
    Tensor,
    Unload,
    Unloaded,
    encode_head,
    receive_arena,
    to_worker_decoder,
)

log = logging.getLogger(__name__)

READ_BYTES: Final = 1 << 20
MESSAGE_CHARACTERS: Final = 2000
"""A model's own exception can be as long as it likes; what a client gets of it cannot."""


def serve(kind: str, threads: int, *, stream: socket.socket, control: socket.socket, page: mmap.mmap) -> None:
    """Say Hello and answer until the front closes ``stream``."""
    imported_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert kind == "cpu", f"no such device kind: {kind}"
    torch.set_num_threads(threads)
    device = CpuDevice()
    device.check()
    # Everything imported so far lives as long as the process: a collection after an unload need not look at it.
    gc.freeze()
    gc.enable()
    server = Server(stream, control, page, device=device, threads=threads)
    server.send(Hello(pid=os.getpid(), imported_s=imported_s, runtimes={"torch": str(torch.__version__)}))
    threading.Thread(target=server.build_for_ever, name="build", daemon=True).start()
    server.read_for_ever()


class Server:
    """One worker's models and its two threads."""

    def __init__(self, stream: socket.socket, control: socket.socket, page: mmap.mmap, *, device: Device, threads: int) -> None:
        self._stream = stream
        self._control = control
        self._page = page
        self._device = device
        self._threads = threads
        self._models: dict[str, Built] = {}
        self._loads: queue.SimpleQueue[Load] = queue.SimpleQueue()  # bounded by the ledger: one transfer per copy
        self._writing = threading.Lock()

    def send(self, message: FromWorker, body: Sequence[memoryview] = ()) -> None:
        """Write one frame; both threads do."""
        head = encode_head(message, sum(part.nbytes for part in body))
        with self._writing:
            if sum(part.nbytes for part in body) < READ_BYTES:
                self._stream.sendall(b"".join((head, *body)))
            else:
                self._stream.sendall(head)
                for part in body:
                    self._stream.sendall(part)

    def read_for_ever(self) -> None:
        """The main thread: until the front is gone."""
        frames = Frames()
        while True:
            try:
                data = self._stream.recv(READ_BYTES)
            except ConnectionError:
                return
            if not data:
                return
            for header, body in frames.feed(data):
                message = to_worker_decoder.decode(header)
                try:
                    if isinstance(message, Run):
                        self._run(message, body)
                    elif isinstance(message, Load):
                        self._loads.put(message)
                    else:
                        self._unload(message)
                except ConnectionError:
                    return

    def build_for_ever(self) -> None:
        """The second thread: builds models in the order asked for."""
        while True:
            message = self._loads.get()
            try:
                self._load(message)
            except (ConnectionError, EOFError):
                return

    # ---- one message each ------------------------------------------------------------------------------------

    def _load(self, message: Load) -> None:
        model, descriptor = receive_arena(self._control)
        assert model == message.model, f"the arena of {model} came with the load of {message.model}"
        begin_s = time.monotonic()
        try:
            files = self._device.place(message, descriptor)
            placed_s = time.monotonic()
            built = build(message, files, threads=self._threads)
        except HearthError as error:
            self._fail(message.id, error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (the root of a model's own code)
            self._fail(message.id, LoadFailed(f"model {_name(message.model)} could not be built: {_told(error)}"))
        else:
            self._models[message.model] = built
            end_s = time.monotonic()
            self.send(Loaded(message.id, built.inputs, built.outputs, placed_s - begin_s, end_s - placed_s))

    def _unload(self, message: Unload) -> None:
        if self._models.pop(message.model, None) is not None:
            gc.collect()  # modules hold themselves in cycles
            _give_memory_back()
        self.send(Unloaded(message.id))

    def _run(self, message: Run, body: memoryview) -> None:
        self._page[:8] = message.id.to_bytes(8, "little")
        begin_s = time.monotonic()
        try:
            outputs = self._compute(message, body)
        except HearthError as error:
            self._fail(message.id, error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (the root of a model's own code)
            self._fail(message.id, ModelFailed(f"model {_name(message.model)} failed: {_told(error)}"))
        else:
            compute_s = time.monotonic() - begin_s
            self.send(Ran(message.id, tuple(tensor for tensor, _ in outputs), compute_s), [data for _, data in outputs])
        finally:
            self._page[:8] = bytes(8)

    def _compute(self, message: Run, body: memoryview) -> list[Output]:
        model = self._models.get(message.model)
        assert model is not None, f"{message.model} runs without being loaded"
        inputs: list[tuple[Tensor, memoryview]] = []
        begin = 0
        for tensor in message.inputs:
            inputs.append((tensor, body[begin : begin + tensor.size_bytes]))
            begin += tensor.size_bytes
        return model.run(inputs, message.outputs)

    def _fail(self, number: int, error: HearthError) -> None:
        self.send(Failed(number, type(error).__name__, error.message[:MESSAGE_CHARACTERS]))


def _name(key: str) -> str:
    """``name:version`` out of ModelRef.key."""
    _namespace, name, version = key.partition("@")[0].split("/")
    return f"{name}:{version}"


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _give_memory_back() -> None:
    """Glibc keeps freed pages for itself until told otherwise."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)
