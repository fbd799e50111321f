"""The demo's models: they learn, and their files say the same as the modules they were made from."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from predictor.demo import model as builder
from predictor.demo import models

FAMILIES: dict[str, dict[str, Any]] = {
    "cosines": {"kind": "cosines", "width": 64},
    "mlp": {"kind": "mlp", "widths": [48, 32]},
    "conv": {"kind": "conv", "channels": [4, 8], "hidden": 32},
}


@pytest.fixture(scope="module")
def digits() -> models.Digits:
    return models.load(1)


def test_the_same_seed_cuts_the_same_test_images(digits: models.Digits) -> None:
    again = models.load(1)
    assert np.array_equal(digits.test_images, again.test_images)
    assert digits.test_images.shape == (360, 64)
    assert digits.train_images.shape == (1437, 64)
    assert float(digits.test_images.max()) == 16.0


def test_a_small_model_learns_to_read_digits(digits: models.Digits) -> None:
    module = models.train({"kind": "mlp", "widths": [128]}, digits, 1)
    with torch.inference_mode():
        answers = module(torch.from_numpy(digits.test_images)).argmax(dim=1).numpy()
    assert (answers == digits.test_labels).mean() > 0.9


@pytest.mark.parametrize("family", FAMILIES)
def test_the_onnx_file_computes_what_the_module_computes(family: str, digits: models.Digits) -> None:
    torch.manual_seed(1)
    module = builder.build(FAMILIES[family])
    assert isinstance(module, nn.Sequential)
    with torch.inference_mode():
        logits = module(torch.from_numpy(digits.test_images)).numpy()
    np.testing.assert_allclose(models.onnx_logits(models.onnx_graph(module), digits.test_images), logits, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_safetensors_file_holds_the_modules_state(family: str) -> None:
    module = builder.build(FAMILIES[family])
    content = models.safetensors(module)
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    assert set(header) == set(module.state_dict())
    for name, tensor in module.state_dict().items():
        begin, end = header[name]["data_offsets"]
        read = np.frombuffer(content[8 + length + begin : 8 + length + end], np.float32).reshape(header[name]["shape"])
        assert np.array_equal(read, tensor.numpy())


def test_the_catalogue_is_two_dozen_models_of_a_third_of_a_megabyte_to_eight() -> None:
    assert models.MODEL_COUNT == 24
    sizes = [4 * sum(p.numel() for p in builder.build(config).parameters()) for config in models.DESIGNS.values()]
    assert min(sizes) > 0.3e6
    assert max(sizes) < 8.5e6


def test_a_trained_model_is_packed_with_its_manifest_last(digits: models.Digits) -> None:
    stream = models.trained(digits, seed=1)
    model = next(stream)
    stream.close()
    assert list(model.files) == ["model.safetensors", "model.py", "hearth.json"]
    assert model.accuracy > 0.9
    assert len(model.expected) == len(digits.test_labels)
    manifest = json.loads(model.files["hearth.json"])
    assert manifest["format"] == "pytorch"
    assert [file["path"] for file in manifest["files"]] == ["model.safetensors", "model.py"]
