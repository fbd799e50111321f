"""What lies under one model's prefix, as one listing shows it: versions, formats, files, completeness, identity. Pure."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor import manifest as hearth_json
from predictor.errors import InvalidModel, TrustRequired
from predictor.model import ModelFormat, ModelSpec, PartChecksums
from predictor.repository import Resolved, Source, Version, is_name, resolve, versions
from predictor.tiers.s3_listing import Listing, ObjectInfo

SOURCE = Source("default", "http://s3/bucket", "bucket", "models/", trusts_code=True)
SETTLE_S = 10.0
PYTORCH = {"model.safetensors": 100, "model.py": 10}
ONNX = {"model.onnx": 100}
SUMS = {"algorithm": "xxh3_64", "part_bytes": 65536, "parts": ["ABCDEF0123456789"]}


def listing(*keys: str, modified_s: float = 0.0) -> Listing:
    return Listing(tuple(ObjectInfo(key, f"etag of {key}", 1, modified_s) for key in keys), (), 100.0)


def version(files: dict[str, int], *, modified_s: dict[str, float] | None = None) -> Version:
    times = modified_s or {}
    objects = {
        path: ObjectInfo(f"models/m/3/{path}", f"etag of {path}", size_bytes, times.get(path, 0.0))
        for path, size_bytes in files.items()
    }
    return Version("m", 3, "models/m/3/", objects)


def resolved(
    files: dict[str, int],
    document: dict[str, Any] | None = None,
    *,
    source: Source = SOURCE,
    modified_s: dict[str, float] | None = None,
) -> Resolved:
    """What these files come to, beside a hearth.json with this document."""
    if document is None:
        return resolve(version(files, modified_s=modified_s), None, source, SETTLE_S)
    manifest = hearth_json.parse(json.dumps(document).encode(), "hearth.json")
    return resolve(version({**files, "hearth.json": 2}, modified_s=modified_s), manifest, source, SETTLE_S)


def served(files: dict[str, int], document: dict[str, Any] | None = None, *, source: Source = SOURCE) -> ModelSpec:
    spec = resolved(files, document, source=source).spec
    assert spec is not None
    return spec


def paths(spec: ModelSpec) -> list[str]:
    return [file.path for file in spec.files]


# ---- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ((), {}),
        (("models/m/1/model.onnx",), {1: ["model.onnx"]}),
        (("models/m/2/a", "models/m/10/a", "models/m/10/b/c"), {2: ["a"], 10: ["a", "b/c"]}),
        (("models/m/model.onnx", "models/m/weights/x.data"), {1: ["model.onnx", "weights/x.data"]}),
        (("models/m/README.md", "models/m/2/a"), {2: ["a"]}),
        (("models/m/0/a", "models/m/01/a", "models/m/v2/a", "models/m/3/a"), {3: ["a"]}),
        (("models/m/", "models/m/1/"), {}),
        (("models/m/1/", "models/m/1/a"), {1: ["a"]}),
        (("models/m/7",), {1: ["7"]}),
    ],
)
def test_versions_are_the_folders_named_by_a_number_or_the_files_themselves(
    keys: tuple[str, ...], expected: dict[int, list[str]]
) -> None:
    found = versions("m", "models/m/", listing(*keys))
    assert {number: list(version.objects) for number, version in found.items()} == expected


@pytest.mark.parametrize("name", ["resnet", "a b", "模型", "x" * 253, "..."])
def test_a_name_may_be_anything_printable(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a\nb", "a\0", "\x7f", "\ud800", "x" * 254])
def test_a_name_is_one_level_and_can_be_printed(name: str) -> None:
    assert not is_name(name)


# ---- formats and files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "format_", "expected"),
    [
        (["model.safetensors", "model.py", "README.md"], ModelFormat.PYTORCH, ["model.py", "model.safetensors"]),
        (
            ["model.safetensors", "model.py", "config.json"],
            ModelFormat.PYTORCH,
            ["config.json", "model.py", "model.safetensors"],
        ),
        (["model.onnx", "labels.txt"], ModelFormat.ONNX, ["model.onnx"]),
        (
            ["model.onnx", "model.onnx.data", "a.onnx_data", "b/c.data", "d.bin"],
            ModelFormat.ONNX,
            ["a.onnx_data", "b/c.data", "model.onnx", "model.onnx.data"],
        ),
    ],
)
def test_the_format_is_recognised_and_only_what_it_needs_is_fetched(
    files: list[str], format_: ModelFormat, expected: list[str]
) -> None:
    spec = served(dict.fromkeys(files, 1))
    assert (spec.format, paths(spec)) == (format_, expected)


def test_what_the_manifest_says_is_taken_over_what_could_be_recognised() -> None:
    document = {
        "format": "onnx",
        "files": [{"path": "model.onnx", "size": 100, "sha256": "AB" * 32, "checksums": SUMS}, {"path": "extra.bin"}],
        "tenant": "team-a",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1]}],
        "parameters": {"a": 1},
        "max_batch_size": 4,
        "batching": {"max_delay_ms": 5},
        "weight": 0.5,
        "priority": "high",
        "limits": {"concurrency": 2, "queue": 1},
    }
    spec = served({**ONNX, **PYTORCH, "extra.bin": 7}, document)
    assert spec.format is ModelFormat.ONNX
    assert [(file.path, file.key, file.size_bytes, file.sha256) for file in spec.files] == [
        ("model.onnx", "models/m/3/model.onnx", 100, "ab" * 32),
        ("extra.bin", "models/m/3/extra.bin", 7, ""),
    ]
    assert [file.checksums for file in spec.files] == [PartChecksums("xxh3_64", 65536, ("abcdef0123456789",)), None]
    assert spec.tenant == "team-a"
    assert hash(spec)
    assert (spec.max_delay_s, spec.weight, spec.priority) == (0.005, 0.5, "high")
    assert (spec.max_concurrency, spec.max_queued) == (2, 1)
    assert (spec.inputs[0].name, json.loads(spec.parameters_json), spec.max_batch_size) == ("x", {"a": 1}, 4)


def test_config_json_is_read_only_where_the_manifest_has_no_parameters() -> None:
    files = {**PYTORCH, "config.json": 5}
    assert "config.json" in paths(served(files, {}))
    assert "config.json" not in paths(served(files, {"parameters": {}}))


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"model.pt": 1}, "TorchScript, which this version does not serve; served are onnx"),
        ({"model.pt2": 1}, "torch.export"),
        ({"config.json": 1, "model-00001-of-00002.safetensors": 1}, "Hugging Face transformers"),
        ({"model.safetensors": 1}, r"lacks model\.py"),
        ({"model.py": 1}, r"lacks model\.safetensors"),
        ({"saved_model.pb": 1}, r"holds no model: saved_model\.pb; served are"),
        ({f"{number}.bin": 1 for number in range(9)}, r"0\.bin, 1\.bin, 2\.bin, 3\.bin, 4\.bin and 4 more"),
    ],
)
def test_a_folder_that_holds_no_model_we_serve_says_what_it_holds(files: dict[str, int], told: str) -> None:
    found = resolved(files)
    assert found.spec is None
    assert re.search(told, found.lacking), found.lacking
    assert found.lacking.startswith("s3://bucket/models/m/3/")


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"files": [{"path": "model.onnx"}, {"path": "gone.data"}]}, r"m/3/gone\.data is named in hearth\.json but not there"),
        ({"files": [{"path": "model.onnx", "size": 99}]}, r"m/3/model\.onnx has 100 bytes, hearth\.json says 99"),
        (
            {"files": [{"path": "model.onnx", "checksums": {**SUMS, "parts": ["0" * 16] * 2}}]},
            r"model\.onnx has 100 bytes, hearth\.json has checksums of 2 parts of 65536",
        ),
        ({"format": "pytorch"}, r"lacks model\.safetensors, model\.py"),
    ],
)
def test_what_the_manifest_says_and_the_folder_lacks_is_incomplete(document: dict[str, Any], told: str) -> None:
    found = resolved(ONNX, document)
    assert found.spec is None
    assert re.search(told, found.lacking), found.lacking


@pytest.mark.parametrize(
    ("files", "document", "told"),
    [
        ({**ONNX, **PYTORCH}, None, "a PyTorch and an ONNX model: name one as `format`"),
        (ONNX, {"format": "tensorflow"}, r"m/3/hearth\.json: format 'tensorflow' is not served; served are"),
        (PYTORCH, {"files": [{"path": "model.safetensors"}]}, r"format pytorch needs model\.py - at `\$\.files`"),
        (
            ONNX,
            {"files": [{"path": "model.onnx"}, {"path": "../../other/x"}]},
            r"'\.\./\.\./other/x' is no plain path - at `\$\.files\[1\]",
        ),
    ],
)
def test_what_no_upload_can_put_right_is_invalid(files: dict[str, int], document: dict[str, Any] | None, told: str) -> None:
    with pytest.raises(InvalidModel, match=told):
        resolved(files, document)


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a//b", "./a", "a\\b", "a\0b", "a\nb", "a\x7f"])
def test_keys_that_are_no_plain_paths_are_refused(path: str) -> None:
    with pytest.raises(InvalidModel, match="are not read") as raised:
        resolved({**ONNX, path: 1})
    assert str(raised.value).isprintable()


@given(st.lists(st.text(st.sampled_from("a./\\\0 é"), min_size=1, max_size=8), max_size=5, unique=True))
def test_whatever_the_keys_are_every_file_served_stays_inside_the_folder(found: list[str]) -> None:
    keys = [f"models/m/{path}" for path in [*found, "model.onnx"]]
    for version in versions("m", "models/m/", listing(*keys)).values():
        try:
            spec = resolve(version, None, SOURCE, SETTLE_S).spec
        except InvalidModel:
            continue
        for file in spec.files if spec else ():
            assert file.key == version.folder + file.path
            assert not {"", ".", ".."} & set(file.path.split("/"))


def test_code_needs_the_operators_consent_and_data_does_not() -> None:
    careful = SOURCE._replace(trusts_code=False)
    with pytest.raises(TrustRequired, match=r"m:3 .*model\.py.*HEARTH_TRUST=code"):
        resolved(PYTORCH, source=careful)
    assert served({**ONNX, "model.py": 1}, source=careful).format is ModelFormat.ONNX


# ---- completeness ----------------------------------------------------------------------------------------------------


def test_without_a_manifest_a_version_is_complete_once_its_newest_object_has_settled() -> None:
    assert resolved(PYTORCH, modified_s={"model.py": 50.0}).eligible_s == 50.0 + SETTLE_S


def test_with_a_manifest_it_is_complete_at_once() -> None:
    times = {"model.py": 50.0, "hearth.json": 50.0}
    assert resolved({**PYTORCH, "README.md": 1}, {}, modified_s={**times, "README.md": 60.0}).eligible_s == -math.inf


def test_files_newer_than_the_manifest_have_to_settle_too() -> None:
    assert resolved(PYTORCH, {}, modified_s={"model.py": 51.0, "hearth.json": 50.0}).eligible_s == 51.0 + SETTLE_S


def test_an_incomplete_version_is_given_the_same_time() -> None:
    assert resolved({"model.py": 1}, modified_s={"model.py": 50.0}).eligible_s == 50.0 + SETTLE_S


def test_with_no_time_to_settle_nothing_waits_for_a_clock() -> None:
    assert resolve(version(ONNX, modified_s={"model.onnx": 1e12}), None, SOURCE, 0.0).eligible_s == -math.inf


# ---- identity --------------------------------------------------------------------------------------------------------


def test_the_revision_tells_one_stores_objects_from_anothers() -> None:
    sources = [SOURCE, SOURCE._replace(origin="http://other/bucket"), SOURCE._replace(bucket="other")]
    assert len({served(ONNX, source=source).ref.revision for source in sources}) == 3
    assert served(ONNX).ref == served(ONNX).ref
    assert len(served(ONNX).ref.revision) == 16


@pytest.mark.parametrize(
    ("path", "changes", "differs"),
    [
        ("model.py", {"etag": "new"}, True),
        ("model.py", {"size_bytes": 11}, True),
        ("hearth.json", {"etag": "new"}, True),
        ("README.md", {"etag": "new"}, False),
        ("model.py", {"modified_s": 9.0}, False),
    ],
)
def test_the_revision_follows_etags_and_sizes_of_what_is_used(path: str, changes: dict[str, Any], differs: bool) -> None:  # noqa: FBT001
    before = version({**PYTORCH, "README.md": 1, "hearth.json": 1})
    after = Version("m", 3, before.folder, {**before.objects, path: before.objects[path]._replace(**changes)})
    specs = [resolve(each, hearth_json.Manifest(), SOURCE, 0.0).spec for each in (before, after)]
    revisions = {spec.ref.revision for spec in specs if spec}
    assert len(revisions) == (2 if differs else 1)
