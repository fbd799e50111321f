"""What the objects under one model's prefix mean: its versions, which of them are complete, formats, files. Pure.

What stays out: listing and reading (tiers/store.py), remembering (catalogue.py), the manifest's grammar (manifest.py).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from predictor import checksums
from predictor import manifest as hearth_json
from predictor.errors import InvalidModel, TrustRequired
from predictor.manifest import Manifest, ManifestFile
from predictor.model import FileSpec, ModelFormat, ModelRef, ModelSpec
from predictor.tiers.s3_listing import Listing, ObjectInfo

MAX_NAME_LENGTH: Final = 253
MODEL_ONNX: Final = "model.onnx"

# As Triton reads its repository: folders whose names are no number, or begin with a zero, are no versions.
_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}")
_NAMED_IN_ERRORS: Final = 5
_SERVED: Final = "served are onnx (model.onnx) and pytorch (model.safetensors and model.py)"


class Source(NamedTuple):
    """Where models are, and who may bring what: a repository of many, or the place of a single declared one.

    origin       the server and bucket, as told by the store
    prefix       "" or ending in a slash: the models are the folders below it
    trusts_code  whether models may bring Python code
    scope        which declared credentials it is read with; "": the pool's own
    key          the one model's folder, with or without a version level, or its only file; None: a repository
    number       the one model's version, where neither its folder nor a level below tells one
    format       as its declaration says; "": it does not
    tenant       the same, before what hearth.json says
    priority     the same
    """

    namespace: str
    origin: str
    bucket: str
    prefix: str
    trusts_code: bool
    scope: str = ""
    key: str | None = None
    number: int = 1
    format: str = ""
    tenant: str = ""
    priority: str = ""

    @property
    def where(self) -> str:
        """For messages."""
        return f"s3://{self.bucket}/{self.prefix if self.key is None else self.key}"


@dataclass(frozen=True, slots=True)
class Version:
    """One version of one model, as one listing saw it.

    folder   the prefix of its keys, ending in a slash
    objects  path inside the folder → object; folder markers left out
    """

    name: str
    number: int
    folder: str
    objects: Mapping[str, ObjectInfo]

    @property
    def manifest(self) -> ObjectInfo | None:
        """Its hearth.json; None: it has none."""
        return self.objects.get(hearth_json.NAME)

    @property
    def digest(self) -> str:
        """Changes whenever anything in the folder does."""
        return _digest([self.folder], self.objects.values())


class Resolved(NamedTuple):
    """What a version comes to.

    spec        what to serve; None: the folder is incomplete
    lacking     what it lacks then, as a sentence
    eligible_s  the moment of S3's clock from which it counts as completely uploaded
    """

    spec: ModelSpec | None
    lacking: str
    eligible_s: float


class _Incomplete(Exception):
    """The folder does not hold what it should: while it is young, because somebody still uploads."""


def is_name(name: str) -> bool:
    """Whether a model can be called so: one level of the prefix, printable, 1 to 253 characters."""
    return 0 < len(name) <= MAX_NAME_LENGTH and name.isprintable() and name not in {".", ".."} and not set(name) & {"/", "\\"}


def versions(name: str, folder: str, listing: Listing, number: int | None = None) -> dict[int, Version]:
    """The versions that ``folder`` ("" or ending in a slash) holds. Empty: no model.

    number  of a declared model: its version where there is no version level and the folder is not called like one itself;
            None: a repository's models without a version level are version 1

    Keys that are no plain relative paths make their version invalid, not its neighbours: see ``resolve``.
    """
    numbered: dict[int, dict[str, ObjectInfo]] = {}
    direct: dict[str, ObjectInfo] = {}
    for entry in listing.objects:
        if entry.key.endswith("/") or not entry.key.startswith(folder):
            continue  # what consoles write to show an empty folder
        path = entry.key.removeprefix(folder)
        direct[path] = entry
        level, slash, rest = path.partition("/")
        if slash and _VERSION.fullmatch(level):
            numbered.setdefault(int(level), {})[rest] = entry
    if numbered:
        return {number: Version(name, number, f"{folder}{number}/", objects) for number, objects in numbered.items()}
    if not direct:
        return {}
    last = folder.removesuffix("/").rpartition("/")[2]
    told = 1 if number is None else int(last) if _VERSION.fullmatch(last) else number
    return {told: Version(name, told, folder, direct)}


def single(name: str, key: str, listing: Listing, number: int) -> dict[int, Version]:
    """A model that is the one object ``key``, an ONNX file of any name. Empty: there is no such object."""
    entry = next((entry for entry in listing.objects if entry.key == key), None)
    return {number: Version(name, number, key.rpartition("/")[0] + "/", {MODEL_ONNX: entry})} if entry is not None else {}


def resolve(version: Version, manifest: Manifest | None, source: Source, settle_s: float) -> Resolved:
    """What to serve as this version, and from when.

    manifest  what its hearth.json says; None: it has none

    Raises InvalidModel and TrustRequired.
    """
    _check_paths(version, source.bucket)
    said = manifest or Manifest()
    where = f"s3://{source.bucket}/{version.folder}"
    if said.format and source.format and said.format != source.format:
        raise InvalidModel(
            f"{where}{hearth_json.NAME} says format {said.format[:64]!a}, the InferenceService says {source.format!a}: "
            "say the same, or leave one out"
        )
    version = _with_model_onnx(version)
    try:
        format_ = _format(version, said.format or source.format, said, where)
        chosen = _chosen(version, said, format_, where)
    except _Incomplete as lack:
        return Resolved(None, str(lack), _eligible_s(version.objects.values(), settle_s))
    if format_ is ModelFormat.PYTORCH and not source.trusts_code:
        raise TrustRequired(
            f"model {version.name}:{version.number} brings code of its own (model.py): set HEARTH_TRUST=code to run it, "
            "or publish it as ONNX"
        )
    entries = [version.objects[file.path] for file in chosen]
    written = version.manifest
    identity = [*entries, written] if written is not None else entries
    # Read with other credentials it is another model to every tier: nobody is served what theirs could not read.
    places = [source.origin, source.bucket, *([source.scope] if source.scope else ())]
    spec = ModelSpec(
        ref=ModelRef(source.namespace, version.name, version.number, _digest(places, identity)[:16]),
        format=format_,
        bucket=source.bucket,
        files=chosen,
        inputs=said.inputs,
        outputs=said.outputs,
        parameters_json=said.parameters_json,
        max_batch_size=said.max_batch_size,
        max_delay_s=said.max_delay_s,
        weight=said.weight,
        priority=source.priority or said.priority,
        max_concurrency=said.max_concurrency,
        max_queued=said.max_queued,
        idempotent=said.idempotent,
        tenant=source.tenant or said.tenant,
        scope=source.scope,
        origin=source.origin,
    )
    if written is None:
        return Resolved(spec, "", _eligible_s(version.objects.values(), settle_s))
    # It is written last. Files newer than it are the sign of a version that is just being published anew.
    return Resolved(spec, "", _eligible_s([entry for entry in entries if entry.modified_s > written.modified_s], settle_s))


def _eligible_s(entries: Iterable[ObjectInfo], settle_s: float) -> float:
    if not settle_s:  # S3 tells the time in whole seconds: an object can be dated after the answer that lists it
        return -math.inf
    return max((entry.modified_s for entry in entries), default=-math.inf) + settle_s


def _check_paths(version: Version, bucket: str) -> None:
    for path, entry in version.objects.items():
        if not _is_plain(path):
            raise InvalidModel(
                f"s3://{bucket}/{entry.key!a}: keys with '..', empty parts, backslashes or control characters are not read; "
                "delete that object"
            )


def _is_plain(path: str) -> bool:
    parts = path.split("/")
    return not {"", ".", ".."} & set(parts) and "\\" not in path and "\x7f" not in path and min(path, default="") >= " "


def _with_model_onnx(version: Version) -> Version:
    """An exporter's own name for the only .onnx file of a folder does as well as ``model.onnx``."""
    if MODEL_ONNX in version.objects or version.manifest is not None:
        return version
    found = [path for path in version.objects if path.endswith(".onnx") and "/" not in path]
    if len(found) != 1:
        return version
    objects = {MODEL_ONNX if path == found[0] else path: entry for path, entry in version.objects.items()}
    return replace(version, objects=objects)


def _format(version: Version, told: str, said: Manifest, where: str) -> ModelFormat:
    """``told``: what the manifest or the declaration says."""
    if told:
        try:
            return ModelFormat(told)
        except ValueError:
            raise InvalidModel(f"{where}{hearth_json.NAME}: format {told[:64]!a} is not served; {_SERVED}") from None
    present = version.objects.keys() | {file.path for file in said.files}
    is_pytorch, is_onnx = {"model.safetensors", "model.py"} <= present, MODEL_ONNX in present
    if is_pytorch and is_onnx:
        raise InvalidModel(f"{where} holds a PyTorch and an ONNX model: name one as `format` in {hearth_json.NAME}")
    if is_pytorch:
        return ModelFormat.PYTORCH
    if is_onnx:
        return ModelFormat.ONNX
    unserved = _unserved(present)
    if unserved:
        raise _Incomplete(f"{where} is a model in the format {unserved}, which this version does not serve; {_SERVED}")
    for one, other in (("model.safetensors", "model.py"), ("model.py", "model.safetensors")):
        if one in present:
            raise _Incomplete(f"{where} lacks {other}; {_SERVED}")
    found = sorted(present - {hearth_json.NAME})
    more = f" and {len(found) - _NAMED_IN_ERRORS} more" if len(found) > _NAMED_IN_ERRORS else ""
    raise _Incomplete(f"{where} holds no model: {', '.join(found[:_NAMED_IN_ERRORS]) or 'nothing'}{more}; {_SERVED}")


def _unserved(present: Collection[str]) -> str:
    """Which of the formats to come this is; "": none."""
    if "model.pt" in present or "model.pth" in present:
        return "TorchScript"
    if "model.pt2" in present:
        return "torch.export"
    is_hugging_face = "config.json" in present and any(path.endswith(".safetensors") for path in present)
    return "Hugging Face transformers" if is_hugging_face else ""


def _chosen(version: Version, said: Manifest, format_: ModelFormat, where: str) -> tuple[FileSpec, ...]:
    """The files to fetch: the manifest's, else what the format needs of what is there."""
    needed = _NEEDED[format_]
    listed = tuple(file for file in said.files if file.path != hearth_json.NAME)
    if not listed:
        if lacking := [path for path in needed if path not in version.objects]:
            raise _Incomplete(f"{where} lacks {', '.join(lacking)}")
        wanted = [path for path in sorted(version.objects) if _WANTED[format_](path)]
        if said.parameters_json and "config.json" in wanted:
            wanted.remove("config.json")  # read only where the manifest has no parameters
        return tuple(_file(ManifestFile(path), version.objects[path]) for path in wanted)
    manifest = f"{where}{hearth_json.NAME}"
    if unnamed := [path for path in needed if path not in {file.path for file in listed}]:
        raise InvalidModel(f"{manifest}: format {format_.value} needs {', '.join(unnamed)} - at `$.files`")
    for file in listed:
        if not _is_plain(file.path):
            raise InvalidModel(f"{manifest}: {file.path!a} is no plain path - at `$.files[{said.files.index(file)}].path`")
        entry = version.objects.get(file.path)
        if entry is None:
            raise _Incomplete(f"{where}{file.path} is named in {hearth_json.NAME} but not there")
        if file.size is not None and file.size != entry.size_bytes:
            raise _Incomplete(f"{where}{file.path} has {entry.size_bytes} bytes, {hearth_json.NAME} says {file.size}")
        if (sums := file.checksums) and len(sums.parts) != checksums.part_count(entry.size_bytes, sums.part_bytes):
            raise _Incomplete(
                f"{where}{file.path} has {entry.size_bytes} bytes, {hearth_json.NAME} has checksums of {len(sums.parts)} parts "
                f"of {sums.part_bytes}"
            )
    return tuple(_file(file, version.objects[file.path]) for file in listed)


def _file(said: ManifestFile, entry: ObjectInfo) -> FileSpec:
    return FileSpec(said.path, entry.key, entry.etag, entry.size_bytes, said.sha256.lower(), said.part_checksums)


def _is_onnx_file(path: str) -> bool:
    """The model, and weights kept beside it under the names that exporters give them."""
    return path == MODEL_ONNX or path.endswith((".data", ".onnx_data"))


_NEEDED: Final[dict[ModelFormat, tuple[str, ...]]] = {
    ModelFormat.ONNX: (MODEL_ONNX,),
    ModelFormat.PYTORCH: ("model.safetensors", "model.py"),
}
_WANTED: Final[dict[ModelFormat, Callable[[str], bool]]] = {
    ModelFormat.ONNX: _is_onnx_file,
    ModelFormat.PYTORCH: frozenset({"model.safetensors", "model.py", "config.json"}).__contains__,
}


def _digest(places: Sequence[str], entries: Iterable[ObjectInfo]) -> str:
    digest = hashlib.sha256()
    for word in (*places, *(f"{entry.key}\0{entry.etag}\0{entry.size_bytes}" for entry in entries)):
        digest.update(f"{len(word)}:{word}".encode())
    return digest.hexdigest()
