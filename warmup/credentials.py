"""Where a wish leads and with which credentials, by KServe's rules: ServiceAccounts, Secrets, annotations, storage-config.

Pure: the caller reads what ``needed`` names and hands it to ``resolve``. No message and no repr holds a Secret's contents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from warmup.view import SECRET_ANNOTATION, Invalid, Object, Wish

STORAGE_SECRET: Final = "storage-config"


@dataclass(frozen=True, slots=True)
class Config:
    """The part ``credentials`` of KServe's ConfigMap inferenceservice-config; without it, as KServe ships it.

    access_key_id, secret_access_key  keys in a Secret; "": AWS_ACCESS_KEY_ID or awsAccessKeyID, ...
    s3                                the other fields of ``s3``, by their names there: s3Endpoint, s3Region, ...
    """

    storage_secret: str = STORAGE_SECRET
    annotation: str = SECRET_ANNOTATION
    access_key_id: str = ""
    secret_access_key: str = ""
    s3: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> Config:
        """Read it. ValueError says what is wrong."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Needed:
    """Names of what has to be read before ``resolve`` can answer."""

    secrets: tuple[str, ...] = ()
    config_maps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolved:
    """Where a model lies and who may read it.

    scope      names the credentials: "" (the pool's own), ``secret/NAME``, ``secret/NAME/KEY``, with ``+DIGEST`` of parameters
    variables  as declared.CredentialShard has them; empty for the scope ""
    """

    uri: str
    scope: str
    variables: Mapping[str, str] = field(default_factory=dict, repr=False)


def service_account(wish: Wish) -> str:
    """The ServiceAccount to read first; "": none is asked for anything."""
    raise NotImplementedError


def needed(
    wish: Wish, config: Config, service_account: Object | None, secrets: Mapping[str, Object | None] | None = None
) -> Needed:
    """What ``resolve`` will ask for. Secrets name ConfigMaps: ask again with them, the second answer is complete.

    service_account  the one that ``service_account(wish)`` names; None: there is no such, or none is needed
    secrets          name → what was read; None: there is no such
    """
    raise NotImplementedError


def resolve(
    wish: Wish,
    config: Config,
    service_account: Object | None,
    secrets: Mapping[str, Object | None],
    config_maps: Mapping[str, Object | None],
    *,
    pool_account: str = "",
) -> Resolved | Invalid:
    """Where the model lies, and with which credentials.

    secrets, config_maps  name → what was read; None, or not there: there is no such
    pool_account          the ServiceAccount of the pool's pods: its role is theirs, and so a model's that names it
    """
    raise NotImplementedError
