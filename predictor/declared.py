"""What a controller declares to a pool: its models by name, where each lies, and with which credentials it is read.

Both sides read and write these documents: the controller puts them into a fixed number of ConfigMaps (models) and Secrets
(credentials), which a pool's pods mount, and sends the models' also to running pods. Pure: nothing here reads or waits.

A document says its ``format``. Fields that are not known are skipped, so that controller and pods may be one release
apart; a change that an older reader must not miss raises the format.
"""

from __future__ import annotations

import zlib
from typing import Annotated, Final, TypeVar

import msgspec

FORMAT: Final = 1

MODEL_SHARDS: Final = 64
CREDENTIAL_SHARDS: Final = 8
"""A pod template names them all: a different number would be a new Revision of every pool. Absent ones cost a pod that
starts nothing measurable (64 of either kind, present or not, against none: 0.91 to 0.96 s to a running container each)."""

MAX_SHARD_BYTES: Final = 900_000
"""Of one document. Kubernetes allows an object 1 MiB; the rest is for its metadata."""

_Serial = Annotated[int, msgspec.Meta(ge=0)]
_Number = Annotated[int, msgspec.Meta(ge=1, le=(1 << 53) - 1)]
_Highest = Annotated[int, msgspec.Meta(ge=0, le=(1 << 53) - 1)]
_Percent = Annotated[int, msgspec.Meta(ge=0, le=100)]


class Location(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where one version of a model lies.

    uri     ``s3://bucket/key``: a folder with or without the version level, or one .onnx file
    number  1, 2, ...: counts the locations that this model has had. Tells them apart, and is the version where neither
            the folder nor its name tells one
    scope   which of the declared credentials; "": the pool's own
    format  as the InferenceService says; "": recognised from the files
    """

    uri: str
    number: _Number = 1
    scope: str = ""
    format: str = ""


class Declared(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model.

    target    what its InferenceService asks for
    stable    what was served before, and is served while ``target`` is not loaded or fails; None: there is nothing else
    percent   of requests that ``target`` gets once it is loaded; below 100 it is a canary, and ``stable`` gets the rest
    tenant    whose it is; "": as hearth.json says
    priority  of requests that do not tell theirs: high, normal, batch; "": as hearth.json says
    highest   number that the model was given so far, where neither location has it any more; 0: one of them has it. For the
              controller alone: no number is given twice
    """

    target: Location
    stable: Location | None = None
    percent: _Percent = 100
    tenant: str = ""
    priority: str = ""
    highest: _Highest = 0


class ModelShard(msgspec.Struct, frozen=True):
    """The models of one ConfigMap. ``serial`` grows with every change: of two documents the higher one is newer."""

    serial: _Serial
    models: dict[str, Declared] = {}
    format: int = FORMAT


class CredentialShard(msgspec.Struct, frozen=True):
    """The credentials of one Secret.

    scopes  scope → variables, named as the AWS tools and KServe's storage initializer read them (AWS_ACCESS_KEY_ID,
            AWS_ENDPOINT_URL, awsAnonymousCredential, S3_VERIFY_SSL, ...), and AWS_CA_BUNDLE_PEM: certificates themselves.
            Without keys, and not anonymous, they are laid over the pool's own variables
    """

    serial: _Serial
    scopes: dict[str, dict[str, str]] = {}
    format: int = FORMAT


Shard = TypeVar("Shard", ModelShard, CredentialShard)


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Of ``s3://bucket/key``; the key without slashes at its ends, "" for the whole bucket. ValueError: it is no such URI."""
    scheme, separator, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme.lower() != "s3" or not separator or not bucket:
        raise ValueError(f"{uri[:200]!a} is not s3://BUCKET/KEY")
    return bucket, key.strip("/")


def model_shard(name: str) -> int:
    """Which of the ``MODEL_SHARDS`` a model belongs to, for ever."""
    return zlib.crc32(name.encode()) % MODEL_SHARDS


def credential_shard(scope: str) -> int:
    """Which of the ``CREDENTIAL_SHARDS`` a scope belongs to, for ever."""
    return zlib.crc32(scope.encode()) % CREDENTIAL_SHARDS


def model_file(shard: int) -> str:
    """The key in its ConfigMap, and the file's name where that is mounted."""
    return f"models-{shard:02}.json"


def credential_file(shard: int) -> str:
    """The key in its Secret, and the file's name where that is mounted."""
    return f"credentials-{shard}.json"


def model_config_map(pool: str, shard: int) -> str:
    """The ConfigMap's name. A pod template names it: see manifests/base/pool.yaml."""
    return f"hearth-{pool}-models-{shard:02}"


def credential_secret(pool: str, shard: int) -> str:
    """The Secret's name."""
    return f"hearth-{pool}-credentials-{shard}"


def encode(shard: ModelShard | CredentialShard) -> bytes:
    """The same document for the same contents, whatever order they came in."""
    return msgspec.json.encode(shard, order="deterministic")


def decode(document: bytes, kind: type[Shard]) -> Shard:
    """Read one. ValueError says what is wrong and where inside; never what a credential is."""
    shard = msgspec.json.decode(document, type=kind)
    if shard.format != FORMAT:
        raise ValueError(f"format {shard.format}; this release reads {FORMAT}: upgrade the older side")
    return shard
