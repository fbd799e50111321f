"""The worker's loop: messages in, answers out.

Two threads. The main thread reads the socket, computes, and forgets models; a second one builds, so that a load does not
stop the models that are ready. What stays out: what a device is (device.py), what a format is (pytorch.py, onnx.py).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.metadata
import logging
import mmap
import os
import queue
import socket
import threading
import time
from collections.abc import Sequence
from typing import Final

import torch

from predictor.engine.cuda import CudaDevice
from predictor.engine.device import CpuDevice, Device, is_lost
from predictor.engine.formats import Built, Output, build, prepare
from predictor.engine.mapping import Weights
from predictor.engine.memory import NOT_MEASURED, is_out_of_memory
from predictor.engine.probe import measured_run, probe
from predictor.engine.shared import Shared
from predictor.engine.told import sendable, words
from predictor.errors import HearthError, LoadFailed, ModelFailed, OutOfMemory
from predictor.wire import (
    LOST_DEVICE_STATUS,
    Failed,
    Frames,
    Free,
    FromWorker,
    Hello,
    Load,
    Loaded,
    Peak,
    Ran,
    Run,
    Tensor,
    Unload,
    Unloaded,
    encode_head,
    to_worker_decoder,
)

log = logging.getLogger(__name__)

READ_BYTES: Final = 1 << 20


def serve(
    kind: str,
    threads: int,
    *,
    index: int = 0,
    stream: socket.socket,
    control: socket.socket,
    page: mmap.mmap,
) -> None:
    """Say Hello and answer until the front closes ``stream``.

    index  which of the devices of its ``kind``
    """
    imported_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert kind in {"cpu", "cuda"}, f"no such device kind: {kind}"
    torch.set_num_threads(threads)
    device: Device = CudaDevice(index) if kind == "cuda" else CpuDevice()
    device.check()
    # Everything imported so far lives as long as the process: a collection after an unload need not look at it.
    gc.freeze()
    gc.enable()
    server = Server(stream, control, page, device=device, threads=threads)
    hello = Hello(os.getpid(), imported_s, runtimes(), device_name=device.name, memory_bytes=device.memory_bytes)
    server.send(hello)
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
        self._shared = Shared(control)
        self._computing = threading.Lock()  # one computation at a time: two would share one peak
        self._builds_begun = 0
        self._builds_ended = 0

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
                    elif isinstance(message, Free):
                        self._shared.free(message.offsets)
                    else:
                        self._unload(message)
                except ConnectionError:
                    return

    def build_for_ever(self) -> None:
        """The second thread: builds models in the order asked for."""
        try:
            weights = Weights.receive(self._control)
            self._shared.begin(weights.passage, weights.passage_bytes)
            if weights.limit_bytes:
                self._device.cap(weights.limit_bytes)
            while True:
                message = self._loads.get()
                self._page[8:16] = message.id.to_bytes(8, "little")
                answer = self._load(message, weights)
                if isinstance(answer, Failed):
                    gc.collect()  # what was half built holds itself, and the weights, in cycles
                # Nothing of the load is left in this thread: the front may hand the arena to another model now.
                self._page[8:16] = bytes(8)
                self.send(answer)
        except (ConnectionError, EOFError):
            return

    # ---- one message each ------------------------------------------------------------------------------------

    def _load(self, message: Load, weights: Weights) -> Loaded | Failed:
        self._builds_begun += 1
        try:
            return self._built(message, weights)
        except BaseException as error:  # noqa: BLE001 (the root of a model's own code, which may raise KeyboardInterrupt)
            self._survive(error)
            if is_out_of_memory(error):
                failure: HearthError = _too_much(message.model, "building it", error)
            elif isinstance(error, HearthError):
                failure = type(error)(f"model {_name(message.model)}: {error.message}")
            else:
                failure = LoadFailed(f"model {_name(message.model)} could not be built: {_told(error)}")
        finally:
            self._builds_ended += 1
        # Out of the handler, whose traceback holds what was half built.
        if isinstance(failure, OutOfMemory):
            self._device.give_back()
        return _failed(message.id, failure)

    def _built(self, message: Load, weights: Weights) -> Loaded:
        if message.apart:  # first of all: what comes with the next load is not to be taken for this one's
            mapped = weights.map_apart(self._control, message.id, message.arena_bytes)
        else:
            mapped = weights.map(message.extents, message.arena_bytes)
        prepare(message.format)
        allocated_bytes = self._allocated_bytes()
        begin_s = time.monotonic()
        files = self._device.place(message, mapped)
        del mapped
        placed_s = time.monotonic()
        built = build(message, files, threads=self._threads)
        built_s = time.monotonic()
        if message.probe:
            gc.collect()  # what building left behind is not the model's
        # Other models' first computations meanwhile blur the difference; what is known exactly it never falls below.
        held_bytes = max(self._allocated_bytes() - allocated_bytes, built.own_bytes)
        peaks: tuple[Peak, ...] = ()
        if message.probe:
            with self._computing:
                peaks = probe(built, self._device, max_batch_size=message.max_batch_size, limit_bytes=message.probe_limit_bytes)
                self._device.give_back()
                # What first computations set up and keep, and packed weights, is the model's, too.
                held_bytes = max(held_bytes, self._device.allocated_bytes() - allocated_bytes)
        self._models[message.model] = built
        return Loaded(
            message.id,
            built.inputs,
            built.outputs,
            placed_s - begin_s,
            built_s - placed_s,
            held_bytes=held_bytes,
            peaks=peaks,
        )

    def _allocated_bytes(self) -> int:
        """What is allocated while nothing computes."""
        with self._computing:
            return self._device.allocated_bytes()

    def _unload(self, message: Unload) -> None:
        if self._models.pop(message.model, None) is not None:
            self._device.give_back()
        self.send(Unloaded(message.id))

    def _run(self, message: Run, body: memoryview) -> None:
        with self._computing:
            self._page[:8] = message.id.to_bytes(8, "little")
            answer, parts = self._answer(message, body)
            # Out of the handler there, whose traceback holds the tensors of the computation.
            if isinstance(answer, Failed) and answer.kind == OutOfMemory.__name__:
                self._device.give_back()
        # The page says so until the answer is out, and if that fails for ever: the front reads there who was inside when
        # this process died, as it does of a model that closed its sockets.
        if isinstance(answer, Ran):
            try:
                answer = self._shared.put(answer, parts)
            except ModelFailed as error:
                answer, parts = _failed(message.id, self._failure(message.model, error)), []
        self._shared.let_go()
        self.send(answer, parts)
        self._page[:8] = bytes(8)

    def _answer(self, message: Run, body: memoryview) -> tuple[Ran | Failed, list[memoryview]]:
        begin_s = time.monotonic()
        try:
            if message.measure:
                outputs, peak_bytes = self._measured(message, body)
            else:
                outputs, peak_bytes = self._compute(message, body), NOT_MEASURED
        except BaseException as error:  # noqa: BLE001 (the root of a model's own code, which may raise KeyboardInterrupt)
            self._survive(error)
            return _failed(message.id, self._failure(message.model, error)), []
        compute_s = time.monotonic() - begin_s
        ran = Ran(message.id, tuple(tensor for tensor, _ in outputs), compute_s, peak_bytes=peak_bytes)
        return ran, [data for _, data in outputs]

    def _survive(self, error: BaseException) -> None:
        """End this process if its device is lost: the next one gets a context of its own, and the page tells who was inside."""
        if is_lost(self._device, error):
            os._exit(LOST_DEVICE_STATUS)

    @staticmethod
    def _failure(model: str, error: BaseException) -> HearthError:
        if is_out_of_memory(error):
            return _too_much(model, "computing", error)
        if isinstance(error, HearthError):
            return type(error)(f"model {_name(model)}: {error.message}")
        return ModelFailed(f"model {_name(model)} failed: {_told(error)}")

    def _measured(self, message: Run, body: memoryview) -> tuple[list[Output], int]:
        begun, ended = self._builds_begun, self._builds_ended
        size_bytes = sum(tensor.size_bytes for tensor in message.inputs)
        outputs, peak_bytes = measured_run(self._device, lambda: self._compute(message, body), size_bytes)
        alone = begun == ended and begun == self._builds_begun
        return outputs, peak_bytes if alone else NOT_MEASURED

    def _compute(self, message: Run, body: memoryview) -> list[Output]:
        model = self._models.get(message.model)
        assert model is not None, f"{message.model} runs without being loaded"
        if message.pieces:
            body = self._shared.open(message.pieces)
        inputs: list[tuple[Tensor, memoryview]] = []
        begin = 0
        for tensor in message.inputs:
            inputs.append((tensor, body[begin : begin + tensor.size_bytes]))
            begin += tensor.size_bytes
        return model.run(inputs, message.outputs)


def _failed(number: int, error: HearthError) -> Failed:
    return Failed(number, type(error).__name__, sendable(error.message))


def _name(key: str) -> str:
    """``name:version`` out of ModelRef.key."""
    _namespace, name, version = key.partition("@")[0].split("/")
    return f"{name}:{version}"


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {words(error)}"


def _too_much(model: str, what: str, error: BaseException) -> OutOfMemory:
    return OutOfMemory(f"model {_name(model)}: {what} takes more memory than the device has left: {_told(error)}")


@functools.cache
def runtimes() -> dict[str, str]:
    """Asking for a version does not import the runtime: an ONNX-free worker shall not pay for that."""
    found = {"torch": str(torch.__version__)}
    for distribution in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found["onnxruntime"] = importlib.metadata.version(distribution)
    return found
