"""NVIDIA's own V2 client against our server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from predictor.model import TensorSpec
from tests.fakes.pod import ServedPod, double, model


@pytest.fixture(scope="module")
def served() -> Iterator[ServedPod]:
    spec = model("double", inputs=(TensorSpec("x", "FP32", (-1, 4)),), outputs=(TensorSpec("y", "FP32", (-1, 4)),))
    with ServedPod("uvloop", spec, model("echo")) as served:
        served.device.computes["double"] = double
        yield served


@pytest.fixture
def client(served: ServedPod) -> Iterator[Any]:
    client = triton.InferenceServerClient(f"127.0.0.1:{served.port}")
    yield client
    client.close()


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_it_infers(client: Any, *, binary_in: bool, binary_out: bool) -> None:
    values = np.arange(8, dtype=np.float32).reshape(2, 4)
    x = triton.InferInput("x", [2, 4], "FP32")
    x.set_data_from_numpy(values, binary_data=binary_in)

    result = client.infer("double", [x], outputs=[triton.InferRequestedOutput("y", binary_data=binary_out)], request_id="r-7")

    assert np.array_equal(result.as_numpy("y"), values * 2)
    assert result.get_response()["id"] == "r-7"


@pytest.mark.parametrize(
    ("array", "datatype"),
    [
        (np.array([True, False]), "BOOL"),
        (np.array([-1, 127], dtype=np.int8), "INT8"),
        (np.array([0, 2**64 - 1], dtype=np.uint64), "UINT64"),
        (np.array([1.5, -2], dtype=np.float16), "FP16"),
        (np.array([1e300, 5e-324]), "FP64"),
        (np.array([b"one", "zwölf".encode()], dtype=np.object_), "BYTES"),
    ],
)
@pytest.mark.parametrize("binary", [False, True])
def test_datatypes_come_back_as_they_went(client: Any, array: Any, datatype: str, *, binary: bool) -> None:
    if datatype == "FP16" and not binary:
        return  # the client itself has no JSON form for it
    x = triton.InferInput("x", list(array.shape), datatype)
    x.set_data_from_numpy(array, binary_data=binary)

    found = client.infer("echo", [x], outputs=[triton.InferRequestedOutput("x", binary_data=binary)]).as_numpy("x")

    texts = [item if isinstance(item, bytes) else str(item).encode() for item in found.tolist()]
    assert texts == array.tolist() if datatype == "BYTES" else np.array_equal(found, array)


def test_without_naming_outputs_it_gets_all_of_them_in_binary(client: Any) -> None:
    x = triton.InferInput("x", [1, 4], "FP32")
    x.set_data_from_numpy(np.ones((1, 4), dtype=np.float32))

    assert client.infer("double", [x]).as_numpy("y").tolist() == [[2.0] * 4]


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_it_may_compress_its_requests(client: Any, algorithm: str) -> None:
    x = triton.InferInput("x", [1, 4], "FP32")
    x.set_data_from_numpy(np.ones((1, 4), dtype=np.float32))

    result = client.infer("double", [x], request_compression_algorithm=algorithm, response_compression_algorithm=algorithm)

    assert result.as_numpy("y").tolist() == [[2.0] * 4]


def test_it_finds_the_server_and_its_models(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("double")
    assert client.is_model_ready("double", "1")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "hearth"
    assert client.get_model_metadata("double")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
    assert {entry["name"] for entry in client.get_model_repository_index()} == {"double", "echo"}


def test_it_is_told_what_was_wrong(client: Any) -> None:
    x = triton.InferInput("x", [1, 3], "FP32")
    x.set_data_from_numpy(np.ones((1, 3), dtype=np.float32))

    with pytest.raises(InferenceServerException, match=r"the request has \[1, 3\]"):
        client.infer("double", [x])
    with pytest.raises(InferenceServerException, match="no model 'nobody'"):
        client.infer("nobody", [x])
