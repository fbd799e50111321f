"""hearth.json: every field optional, faults told with the object and the path, and nothing that makes the reader stumble."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from predictor.errors import InvalidModel
from predictor.manifest import MAX_BYTES, Manifest, ManifestFile, parse
from predictor.model import DATATYPES, PartChecksums, TensorSpec

WHERE = "s3://bucket/models/m/1/hearth.json"
FULL = {
    "format": "pytorch",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 64]}],
    "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}, {"name": "label", "datatype": "BYTES", "shape": []}],
    "parameters": {"hidden": 256, "ratio": 0.1, "big": 123456789012345678901234567890, "nested": {"é": [None, True]}},
    "max_batch_size": 32,
    "files": [{"path": "model.safetensors", "size": 123456, "sha256": "aB" * 32}, {"path": "model.py"}],
    "tenant": "team-a",
    "batching": {"max_delay_ms": 2.5},
    "weight": 2,
    "priority": "batch",
    "limits": {"concurrency": 8, "queue": 4},
}


def summed(**other: Any) -> dict[str, Any]:
    """A manifest of one file with part checksums, some of it replaced."""
    sums = {"algorithm": "xxh3_64", "part_bytes": 65536, "parts": ["0123456789ABCDEF"] * 2} | other
    return {"files": [{"path": "a", "size": 65537, "checksums": sums}]}


def read(document: Any) -> Manifest:
    return parse(json.dumps(document).encode(), WHERE)


def test_everything_it_can_say_is_read() -> None:
    manifest = read(FULL)
    assert manifest.format == "pytorch"
    assert manifest.inputs == (TensorSpec("x", "FP32", (-1, 64)),)
    assert manifest.outputs[1] == TensorSpec("label", "BYTES", ())
    assert json.loads(manifest.parameters_json) == FULL["parameters"]
    assert manifest.max_batch_size == 32
    assert manifest.files == (ManifestFile("model.safetensors", 123456, "aB" * 32), ManifestFile("model.py"))
    assert manifest.tenant == "team-a"
    assert (manifest.max_delay_s, manifest.weight, manifest.priority) == (0.0025, 2.0, "batch")
    assert (manifest.max_concurrency, manifest.max_queued) == (8, 4)


def test_checksums_of_parts_are_read_in_lower_case() -> None:
    (file,) = read(summed()).files
    assert file.part_checksums == PartChecksums("xxh3_64", 65536, ("0123456789abcdef",) * 2)
    assert hash(file.part_checksums)
    assert read({"files": [{"path": "a", "checksums": None}]}).files[0].part_checksums is None


def test_it_may_say_nothing() -> None:
    assert read({}) == Manifest()
    assert read({"parameters": None, "batching": None, "files": []}) == Manifest()


def test_fields_of_later_versions_are_skipped() -> None:
    assert read(
        {"licence": "a", "checksums": [1], "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "unit": "m"}]}
    ).inputs


@pytest.mark.parametrize(
    ("document", "size"),
    [
        ({"max_batch_size": 8}, 8),
        ({"batching": {"max_batch_size": 8}}, 8),
        ({"batching": {"max_batch_size": 8}, "max_batch_size": 8}, 8),
        ({"batching": {}}, 0),
    ],
)
def test_the_batch_size_may_stand_in_either_place(document: dict[str, Any], size: int) -> None:
    assert read(document).max_batch_size == size


def test_a_byte_order_mark_is_forgiven() -> None:
    assert parse(b"\xef\xbb\xbf" + json.dumps({"format": "onnx"}).encode(), WHERE).format == "onnx"


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ([], r"Expected `object`, got `array`"),
        ({"format": 1}, r"Expected `str`, got `int` - at `\$\.format`"),
        ({"inputs": {}}, r"at `\$\.inputs`"),
        ({"priority": "asap"}, r"at `\$\.priority`"),
        ({"weight": 0}, r"at `\$\.weight`"),
        ({"batching": {"max_delay_ms": -1}}, r"at `\$\.batching\.max_delay_ms`"),
        ({"limits": {"queue": 0}}, r"at `\$\.limits\.queue`"),
        ({"inputs": [{"datatype": "FP32", "shape": [1]}]}, r"missing required field `name` - at `\$\.inputs\[0\]`"),
        ({"inputs": [{"name": "", "datatype": "FP32", "shape": [1]}]}, r"at `\$\.inputs\[0\]\.name`"),
        ({"outputs": [{"name": "x", "datatype": "FP32", "shape": [1, -2]}]}, r"at `\$\.outputs\[0\]\.shape\[1\]`"),
        ({"outputs": [{"name": "x", "datatype": "FP32", "shape": [1.5]}]}, r"at `\$\.outputs\[0\]\.shape\[0\]`"),
        ({"outputs": [{"name": "x", "datatype": "FP32", "shape": [1] * 33}]}, r"at `\$\.outputs\[0\]\.shape`"),
        (
            {"inputs": [{"name": "x", "datatype": "FP31", "shape": [1]}]},
            r"'FP31' is no V2 datatype, those are BF16, .* - at `\$\.inputs\[0\]\.datatype`",
        ),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1]}] * 2}, r"'x' stands there twice - at `\$\.inputs\[1\]`"),
        ({"files": [{"path": "a"}, {"path": "a"}]}, r"'a' stands there twice - at `\$\.files\[1\]`"),
        ({"files": [{"path": "a", "size": -1}]}, r"at `\$\.files\[0\]\.size`"),
        ({"files": [{"path": "a", "sha256": "short"}]}, r"at `\$\.files\[0\]\.sha256`"),
        ({"files": [{"path": "a", "sha256": "a" * 64 + "\n"}]}, r"at `\$\.files\[0\]\.sha256`"),
        (summed(algorithm="md5"), r"'md5' is no checksum .*only xxh3_64 is - at `\$\.files\[0\]\.checksums\.algorithm`"),
        (summed(part_bytes=65535), r"parts of 65535 bytes; a multiple of 4096 .* - at `\$\.files\[0\]\.checksums\.part_bytes`"),
        (summed(part_bytes=4096), r"between 65536 and 1073741824 is allowed - at"),
        (summed(part_bytes=(1 << 30) + 4096), r"between 65536 and 1073741824 is allowed - at"),
        (summed(part_bytes=65536 + 1024), r"a multiple of 4096"),
        (summed(part_bytes="65536"), r"Expected `int`, got `str` - at `\$\.files\[0\]\.checksums\.part_bytes`"),
        (summed(part_bytes=131072), r"2 checksums; 65537 bytes have 1 parts of 131072 - at `\$\.files\[0\]\.checksums\.parts`"),
        (summed(parts=[]), r"0 checksums; 65537 bytes have 2 parts"),
        (summed(parts=["0123456789abcdef", "short"]), r"at `\$\.files\[0\]\.checksums\.parts\[1\]`"),
        (summed(parts=["0123456789abcdef", 7]), r"at `\$\.files\[0\]\.checksums\.parts\[1\]`"),
        ({"files": [{"path": "a", "checksums": {}}]}, r"missing required field `algorithm` - at `\$\.files\[0\]\.checksums`"),
        ({"tenant": ""}, r"at `\$\.tenant`"),
        ({"tenant": "a" * 64}, r"at `\$\.tenant`"),
        ({"tenant": "a/b"}, r"at `\$\.tenant`"),
        ({"tenant": "a\n"}, r"at `\$\.tenant`"),
        ({"parameters": [1]}, r"Expected `object` - at `\$\.parameters`"),
        ({"max_batch_size": -1}, r"at `\$\.max_batch_size`"),
        ({"max_batch_size": 4, "batching": {"max_batch_size": 8}}, r"max_batch_size is 4, but 8 - at `\$\.batching"),
    ],
)
def test_a_fault_is_told_with_the_object_and_the_path_inside(document: Any, told: str) -> None:
    with pytest.raises(InvalidModel, match=told) as raised:
        read(document)
    assert WHERE in str(raised.value)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"{'single': 1}",
        b"\xff\xfe",
        b'{"parameters": {"a": NaN}}',
        b'{"format": "\xff"}',
        b'{"a":' * 5000,
        b'{"parameters": ' + b"[" * 5000,
    ],
    ids=["nothing", "cut off", "quotes", "UTF-16", "NaN", "bad UTF-8", "deep", "deep parameters"],
)
def test_what_is_no_json_is_refused(document: bytes) -> None:
    with pytest.raises(InvalidModel, match=WHERE):
        parse(document, WHERE)


def test_its_length_is_bounded() -> None:
    with pytest.raises(InvalidModel, match="1048577 bytes, 1048576 are allowed"):
        parse(b" " * (MAX_BYTES + 1), WHERE)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
tensors = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.text(min_size=1, max_size=10),
            "datatype": st.sampled_from(sorted(DATATYPES)),
            "shape": st.lists(st.integers(-1, 2**40), max_size=5),
        }
    ),
    max_size=4,
    unique_by=lambda tensor: tensor["name"],
)


@given(
    inputs=tensors,
    outputs=tensors,
    parameters=st.dictionaries(st.text(max_size=5), json_values, max_size=4),
    batch=st.integers(0, 65536),
)
def test_whatever_is_rightly_written_comes_back(
    inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], parameters: dict[str, Any], batch: int
) -> None:
    manifest = read({"inputs": inputs, "outputs": outputs, "parameters": parameters, "max_batch_size": batch})
    assert [vars_of(tensor) for tensor in manifest.inputs] == inputs
    assert [vars_of(tensor) for tensor in manifest.outputs] == outputs
    assert json.loads(manifest.parameters_json) == parameters
    assert manifest.max_batch_size == batch


def vars_of(tensor: TensorSpec) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}


@given(
    st.binary(max_size=200)
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(sorted(FULL)), json_values).map(lambda value: json.dumps(value).encode())
)
@example(b'{"parameters": "\\ud800"}')
def test_garbage_is_refused_and_never_crashes(document: bytes) -> None:
    with contextlib.suppress(InvalidModel):
        parse(document, WHERE)
