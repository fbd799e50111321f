"""What every device promises, whatever it is made of. Real CUDA runs it where there is a GPU."""

from __future__ import annotations

import gc
import json
import struct
from collections.abc import Callable, Iterator

import pytest
import torch

from predictor.engine.cuda import ALIGNED_BYTES, CHUNK_BYTES, CudaDevice, pieces
from predictor.engine.device import CpuDevice, Device, is_lost
from predictor.engine.formats import Built, build
from predictor.engine.mapping import Mapped
from predictor.engine.memory import is_out_of_memory
from predictor.engine.safetensors import DTYPES
from predictor.errors import LoadFailed
from predictor.wire import File, Load, Tensor
from tests.fakes.cuda import FakeCuda
from tests.fakes.zoo import WIDTH, affine_pytorch, tensors_file

SLAB = 4096


class Bench:
    """A device and a pool in which arenas lie in pieces, backwards."""

    def __init__(self, make: Callable[[], Device], *, copy: bool, writable: bool) -> None:
        self.device = make()
        self.another = make
        self.copy = copy
        self.writable = writable
        self._pool = torch.zeros(1 << 20, dtype=torch.uint8)
        self._taken = 0

    def place(self, files: dict[str, bytes], *, device: Device | None = None) -> tuple[Load, Mapped]:
        listed, arena = [], b""
        for path, data in files.items():
            listed.append(File(path, len(arena), len(data)))
            arena += data + bytes(-len(data) % 64)
        slabs = -(-len(arena) // SLAB)
        offsets = [(self._taken + number) * SLAB for number in reversed(range(slabs))]
        self._taken += slabs
        for number, offset in enumerate(offsets):
            piece = arena[number * SLAB : (number + 1) * SLAB]
            if piece:
                self._pool[offset : offset + len(piece)] = torch.frombuffer(bytearray(piece), dtype=torch.uint8)
        contiguous = torch.frombuffer(bytearray(arena), dtype=torch.uint8)
        mapped = Mapped(contiguous, tuple((offset, SLAB) for offset in offsets), lambda: self._pool)
        parameters = json.dumps({"width": WIDTH, "sleep_s": 0})
        return Load(1, "n/m/1@r", "pytorch", tuple(listed), len(arena), self.copy, (), (), parameters), mapped

    def build(self, files: dict[str, bytes], device: Device | None = None) -> Built:
        load, mapped = self.place(files)
        return build(load, (device or self.device).place(load, mapped), threads=1)

    def tensors(self, data: bytes) -> dict[str, torch.Tensor]:
        load, mapped = self.place({"model.safetensors": data})
        return self.device.place(load, mapped).tensors("model.safetensors")


def real_cuda() -> Device:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return CudaDevice(0)


def fake_cuda() -> Device:
    return CudaDevice(0, FakeCuda())


def pinned_cuda() -> Device:
    device = CudaDevice(0, FakeCuda())
    bench = Bench(lambda: device, copy=True, writable=True)
    bench.tensors(tensors_file({}))
    assert device.wait_until_pinned()
    return device


KINDS: dict[str, Callable[[], Bench]] = {
    "cpu": lambda: Bench(CpuDevice, copy=False, writable=False),
    "cpu-copy": lambda: Bench(CpuDevice, copy=True, writable=True),
    "fake-cuda": lambda: Bench(fake_cuda, copy=True, writable=True),
    "fake-cuda-pinned": lambda: Bench(pinned_cuda, copy=True, writable=True),
    "cuda": lambda: Bench(real_cuda, copy=True, writable=True),
}


@pytest.fixture(params=KINDS)
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    yield KINDS[request.param]()
    gc.collect()


def ask(model: Built, *values: float) -> list[float]:
    data = struct.pack(f"<{len(values)}f", *values)
    ((_, answer),) = model.run([(Tensor("x", "FP32", (len(values),), len(data)), memoryview(data))], ())
    return list(struct.unpack(f"<{len(answer) // 4}f", answer))


def affine(scale: float) -> dict[str, bytes]:
    return affine_pytorch(scale=scale)


def test_it_computes_and_says_what_it_is(bench: Bench) -> None:
    bench.device.check()
    assert bench.device.name
    assert bench.device.memory_bytes >= 0


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_placed_bit_for_bit(bench: Bench, name: str) -> None:
    size = 6 * DTYPES[name].itemsize
    data = bytes(number % 251 for number in range(size)) if name != "BOOL" else b"\x00\x01\x01\x00\x01\x00"
    placed = bench.tensors(tensors_file({"t": (name, [2, 3], data)}))["t"]
    assert (placed.dtype, placed.shape) == (DTYPES[name], (2, 3))
    assert bytes(placed.cpu().reshape(-1).view(torch.uint8).tolist()) == data


def test_scalars_empty_tensors_and_unaligned_ones_are_placed(bench: Bench) -> None:
    odd = struct.pack("<3d", 1.0, 2.0, 3.0)
    placed = bench.tensors(
        tensors_file(
            {
                "byte": ("U8", [1], b"\x07"),
                "odd": ("F64", [3], odd),
                "scalar": ("I64", [], struct.pack("<q", -7)),
                "empty": ("F32", [0, 3], b""),
            }
        )
    )
    assert placed["byte"].tolist() == [7]
    assert placed["odd"].tolist() == [1.0, 2.0, 3.0]
    assert (placed["scalar"].shape, placed["scalar"].item()) == ((), -7)
    assert placed["empty"].shape == (0, 3)


def test_tensors_longer_than_a_slab_are_put_together_in_order(bench: Bench) -> None:
    values = torch.arange(5 * SLAB // 4, dtype=torch.float32)
    data = bytes(values.view(torch.uint8).tolist())
    placed = bench.tensors(tensors_file({"a": ("U8", [3], b"abc"), "long": ("F32", [len(values)], data)}))
    assert torch.equal(placed["long"].cpu(), values)


def test_a_file_without_tensors_is_placed(bench: Bench) -> None:
    assert bench.tensors(tensors_file({})) == {}


def test_a_broken_file_is_refused(bench: Bench) -> None:
    with pytest.raises(LoadFailed, match="says its header has"):
        bench.tensors(b"\xff" * 16)


def test_tied_weights_stay_tied(bench: Bench) -> None:
    source = """
import torch
class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = torch.nn.Linear(2, 2, bias=False)
        self.decode = torch.nn.Linear(2, 2, bias=False)
        self.decode.weight = self.encode.weight
        self.register_buffer("offset", torch.ones(2), persistent=False)
        self.table = torch.ones(2)
    def forward(self, x):
        assert self.encode.weight.data_ptr() == self.decode.weight.data_ptr()
        return self.decode(self.encode(x)) + self.offset + self.table
def build(config): return Tied()
"""
    weights = tensors_file({"encode.weight": ("F32", [2, 2], struct.pack("<4f", 2, 0, 0, 3))})
    model = bench.build({"model.py": source.encode(), "model.safetensors": weights})
    assert ask(model, 1, 1) == [6.0, 11.0]


WRITING = """
import torch
class Count(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.step = torch.nn.Parameter(torch.zeros(1))
    def forward(self, x):
        self.seen += self.step
        STEP
        return self.seen.clone()
def build(config): return Count()
"""


def test_what_a_forward_writes_does_not_reach_the_master_copy(bench: Bench) -> None:
    step = "self.step.add_(1)" if bench.writable else ""
    tensors = {"seen": ("F32", [1], struct.pack("<f", 5)), "step": ("F32", [1], struct.pack("<f", 1))}
    files = {"model.py": WRITING.replace("STEP", step).encode(), "model.safetensors": tensors_file(tensors)}
    load, mapped = bench.place(files)
    master = mapped.contiguous.clone()
    model = build(load, bench.device.place(load, mapped), threads=1)
    assert [ask(model, 1.0) for _ in range(2)] == ([[6.0], [8.0]] if step else [[6.0], [7.0]])
    assert torch.equal(mapped.contiguous, master)
    assert ask(build(load, bench.device.place(load, mapped), threads=1), 1.0) == [6.0]


def test_a_copy_does_not_see_what_the_arena_holds_afterwards(bench: Bench) -> None:
    load, mapped = bench.place(affine(2.0))
    model = build(load, bench.device.place(load, mapped), threads=1)
    if bench.copy:
        assert mapped.pool is not None
        mapped.contiguous.fill_(0xFF)
        mapped.pool().fill_(0xFF)
    assert ask(model, 1, 2, 3, 4) == [3.0, 5.0, 7.0, 9.0]


def test_dropping_a_model_frees_what_it_took(bench: Bench) -> None:
    big = {"model.safetensors": tensors_file({"scale": ("F32", [1 << 16], bytes(4 << 16))}), "model.py": MANY.encode()}
    for _ in range(2):  # what is set up once is not the model's
        bench.build(big)
        bench.device.give_back()
    before = bench.device.allocated_bytes()
    model = bench.build(big)
    held = bench.device.allocated_bytes() - before
    if bench.copy:
        assert model.own_bytes >= 4 << 16
        assert held >= 4 << 16
    else:
        assert model.own_bytes == 0
    del model
    bench.device.give_back()
    assert bench.device.allocated_bytes() - before < 1 << 16


MANY = """
import torch
class M(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.randn(1 << 16))
    def forward(self, x):
        return x
def build(config): return M()
"""


def test_devices_side_by_side_answer_alike(bench: Bench) -> None:
    models = [bench.build(affine(scale), bench.another()) for scale in (2.0, 3.0)]
    assert [ask(model, 1, 1, 1, 1) for model in models] == [[3.0] * 4, [4.0] * 4]


def test_a_peak_covers_what_is_allocated_meanwhile(bench: Bench) -> None:
    if isinstance(bench.device, CudaDevice) and not torch.cuda.is_available():
        fake = bench.device._runtime
        result, peak_bytes = bench.device.measured(lambda: len(fake.empty(8 << 20)))
    else:
        target = "cuda" if isinstance(bench.device, CudaDevice) else "cpu"
        result, peak_bytes = bench.device.measured(lambda: len(torch.ones(8 << 20, dtype=torch.uint8, device=target)))
    assert result == 8 << 20
    assert (8 << 20) - (1 << 20) <= peak_bytes <= (8 << 20) + (8 << 20)


# ---- what only a GPU's arena has


def test_every_tensor_begins_aligned_in_one_arena() -> None:
    bench = KINDS["fake-cuda"]()
    sizes = [1, 511, 512, 513, 5000]
    placed = bench.tensors(tensors_file({f"t{size}": ("U8", [size], b"x" * size) for size in sizes}))
    assert len({tensor.untyped_storage().data_ptr() for tensor in placed.values()}) == 1
    assert [placed[f"t{size}"].data_ptr() % ALIGNED_BYTES for size in sizes] == [0] * len(sizes)


def test_a_pinned_pool_is_the_only_source_of_copies() -> None:
    fake = FakeCuda()
    device = CudaDevice(0, fake)
    bench = Bench(lambda: device, copy=True, writable=True)
    bench.tensors(tensors_file({}))
    assert device.wait_until_pinned()
    data = bytes(number % 251 for number in range(3 * SLAB))
    placed = bench.tensors(tensors_file({"t": ("U8", [len(data)], data)}))
    assert bytes(placed["t"].tolist()) == data
    assert fake.chunks
    assert fake.unpinned == 0
    assert len(fake.registered) == 1


def test_a_pool_that_cannot_be_pinned_costs_a_warning_and_is_copied_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeCuda(refusal="no such flag")
    device = CudaDevice(0, fake)
    bench = Bench(lambda: device, copy=True, writable=True)
    for _ in range(2):
        assert bench.tensors(tensors_file({"t": ("U8", [3], b"abc")}))["t"].tolist() == [97, 98, 99]
        assert not device.wait_until_pinned()
    assert [record.message for record in caplog.records] == [
        "1048576 bytes of weights could not be pinned, so loading copies more slowly: no such flag"
    ]


def test_a_model_that_does_not_fit_is_out_of_memory_and_leaves_nothing() -> None:
    fake = FakeCuda(1 << 16)
    bench = Bench(lambda: CudaDevice(0, fake), copy=True, writable=True)
    with pytest.raises(torch.OutOfMemoryError) as told:
        bench.tensors(tensors_file({"t": ("U8", [1 << 17], bytes(1 << 17))}))
    assert is_out_of_memory(told.value)
    del told
    gc.collect()
    assert fake.allocated_bytes == 0
    bench.device.cap(1 << 10)
    with pytest.raises(torch.OutOfMemoryError):
        bench.tensors(tensors_file({"t": ("U8", [1 << 11], bytes(1 << 11))}))


def test_long_copies_are_cut_so_that_others_get_their_turn() -> None:
    fake = FakeCuda(1 << 30, refusal="not here")
    size = CHUNK_BYTES + 5
    data = tensors_file({"t": ("U8", [size], bytes(size))})
    contiguous = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    mapped = Mapped(contiguous, ((0, len(data)),), lambda: torch.zeros(0, dtype=torch.uint8))
    load = Load(1, "n/m/1@r", "pytorch", (File("model.safetensors", 0, len(data)),), len(data), True, (), (), "")  # noqa: FBT003 (Load.copy)
    CudaDevice(0, fake).place(load, mapped)
    assert fake.chunks == [CHUNK_BYTES, 5]


def test_pieces_of_an_arena_are_found_in_the_pool() -> None:
    extents = ((100, 10), (50, 10), (0, 10))
    assert list(pieces(extents, 0, 30)) == [(100, 110), (50, 60), (0, 10)]
    assert list(pieces(extents, 5, 12)) == [(105, 110), (50, 52)]
    assert list(pieces(extents, 10, 20)) == [(50, 60)]
    assert list(pieces(extents, 7, 7)) == []


class LosingCuda(FakeCuda):
    """Every call fails once an illegal address was used, as CUDA's do."""

    lost = False

    def __init__(self) -> None:
        self._device = torch.device("cpu")
        super().__init__()

    @property
    def device(self) -> torch.device:
        if self.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return self._device

    @device.setter
    def device(self, device: torch.device) -> None:
        self._device = device


def test_a_device_that_computes_nothing_after_an_error_is_lost_and_one_that_does_is_not() -> None:
    runtime = LosingCuda()
    device = CudaDevice(0, runtime)
    illegal = RuntimeError("CUDA error: an illegal memory access was encountered")
    assert not is_lost(device, illegal)
    runtime.lost = True
    assert is_lost(device, illegal)
    assert not is_lost(device, ValueError("the model's own"))  # nobody asks the device for that
