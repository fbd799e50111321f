"""Where a wish leads and with which credentials, by KServe's rules: ServiceAccounts, Secrets, annotations, storage-config.

Pure: the caller reads what ``needed`` names and hands it to ``resolve``. No message and no repr holds a Secret's contents.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from warmup.objects import Object, part, shown, text
from warmup.view import SECRET_ANNOTATION, Invalid, Wish, location

STORAGE_SECRET: Final = "storage-config"  # noqa: S105 - a Secret's name
AWS_ROLE: Final = "eks.amazonaws.com/role-arn"
ROLES: Final = (AWS_ROLE, "iam.gke.io/gcp-service-account", "azure.workload.identity/client-id")
CA_CONFIG_MAP: Final = "AWS_CA_BUNDLE_CONFIGMAP"
CA_KEY: Final = "cabundle.crt"
KEYS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

SETTINGS: Final = (
    ("s3-region", "AWS_DEFAULT_REGION", "s3Region"),
    ("s3-verifyssl", "S3_VERIFY_SSL", "s3VerifySSL"),
    ("s3-useanoncredential", "awsAnonymousCredential", "s3UseAnonymousCredential"),
    ("s3-usevirtualbucket", "S3_USER_VIRTUAL_BUCKET", "s3UseVirtualBucket"),
    ("s3-useaccelerate", "S3_USE_ACCELERATE", "s3UseAccelerate"),
    ("s3-cabundle", "AWS_CA_BUNDLE", "s3CABundle"),
    ("s3-cabundle-configmap", CA_CONFIG_MAP, "s3CABundleConfigMap"),
)
"""Annotation serving.kserve.io/..., the entry of a Secret and the variable, the field of KServe's configuration."""

FIELDS: Final = (
    ("access_key_id", KEYS[0]),
    ("secret_access_key", KEYS[1]),
    ("endpoint_url", "AWS_ENDPOINT_URL"),
    ("region", "AWS_DEFAULT_REGION"),
    ("verify_ssl", "S3_VERIFY_SSL"),
    ("anonymous", "awsAnonymousCredential"),
    ("ca_bundle", "AWS_CA_BUNDLE"),
    ("cabundle_configmap", CA_CONFIG_MAP),
    ("certificate", "AWS_CA_BUNDLE_PEM"),  # ModelMesh's
)
"""Field of an entry of storage-config, and of ``storage.parameters``; the variable."""

_REPLACED: Final = frozenset({"S3_USE_ACCELERATE", "AWS_CA_BUNDLE", CA_CONFIG_MAP, "AWS_CA_BUNDLE_PEM"})
_PEM: Final = "-----BEGIN"


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
        read = json.loads(text)
        s3 = read.get("s3") or {} if isinstance(read, dict) else None
        if not isinstance(s3, dict):
            message = 'no object with an object "s3" in it, as under "credentials" in the ConfigMap inferenceservice-config'
            raise ValueError(message)  # noqa: TRY004 - bad input, whatever is wrong with it
        settings = {str(name): str(value) for name, value in s3.items()}
        return cls(
            str(read.get("storageSpecSecretName") or STORAGE_SECRET),
            str(read.get("storageSecretNameAnnotation") or SECRET_ANNOTATION),
            settings.pop("s3AccessKeyIDName", ""),
            settings.pop("s3SecretAccessKeyName", ""),
            settings,
        )


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


@dataclass(frozen=True, slots=True)
class _Found:
    """What Secrets and annotations say, under the names of KServe's variables; certificates are not read yet."""

    uri: str
    scope: str
    said: Mapping[str, str] = field(default_factory=dict, repr=False)


def service_account(wish: Wish) -> str:
    """The ServiceAccount to read first; "": none is asked for anything."""
    return "" if wish.by_storage else wish.service_account or "default"


def needed(
    wish: Wish, config: Config, service_account: Object | None, secrets: Mapping[str, Object | None] | None = None
) -> Needed:
    """What ``resolve`` will ask for. Secrets name ConfigMaps: ask again with them, the second answer is complete.

    service_account  the one that ``service_account(wish)`` names; None: there is no such, or none is needed
    secrets          name → what was read; None: there is no such
    """
    names = (_storage_secret(wish, config),) if wish.by_storage else _secret_names(wish, service_account)
    found = _found(wish, config, service_account, secrets or {}, pool_account=wish.service_account or "default")
    config_map = "" if isinstance(found, Invalid) else found.said.get(CA_CONFIG_MAP, "")
    return Needed(names, (config_map,) if config_map else ())


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
    found = _found(wish, config, service_account, secrets, pool_account=pool_account)
    if isinstance(found, Invalid):
        return found
    variables = _variables(found.said, config_maps)
    return variables if isinstance(variables, Invalid) else Resolved(found.uri, found.scope, variables)


def _found(
    wish: Wish, config: Config, account: Object | None, secrets: Mapping[str, Object | None], *, pool_account: str
) -> _Found | Invalid:
    if wish.by_storage:
        return _by_storage(wish, _storage_secret(wish, config), secrets)
    return _by_account(wish, config, account, secrets, pool_account=pool_account)


# ---- storageUri: the Secret that an annotation names, else those of the ServiceAccount --------------------------


def _secret_names(wish: Wish, account: Object | None) -> tuple[str, ...]:
    if wish.secret:
        return (wish.secret,)
    listed = (account or {}).get("secrets") or []
    return tuple(dict.fromkeys(text(one, "name") for one in listed if text(one, "name")))


def _by_account(
    wish: Wish, config: Config, account: Object | None, secrets: Mapping[str, Object | None], *, pool_account: str
) -> _Found | Invalid:
    if wish.service_account and account is None:
        return _missing(f"there is no ServiceAccount {wish.service_account}: create it, or name another in serviceAccountName")
    annotations = part(account or {}, "metadata", "annotations")
    # As in KServe, an account's own s3-* annotations count where it has a role on AWS, and for less than any Secret's.
    of_account = _settings(annotations, {}, config) if AWS_ROLE in annotations else {}
    said, used = dict(of_account), []
    for name in _secret_names(wish, account):
        read = _from_secret(name, wish, config, secrets.get(name))
        if isinstance(read, Invalid):
            return read
        if read is not None:
            # Of several Secrets the first one's keys and the last one's settings count: so KServe merges them.
            said |= {variable: value for variable, value in read.items() if variable not in KEYS or variable not in said}
            used.append(name)
    if used:
        return _Found(wish.storage_uri, f"secret/{','.join(used)}{_digest(of_account)}", said)
    if wish.secret:
        return _missing(f"Secret {wish.secret} holds no S3 credentials: add AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    # The role is the pool's own there, and what the account says beside it (a region) is laid over the pool's variables.
    own = of_account if (wish.service_account or "default") == pool_account else {}
    return _refused_role(wish, annotations, pool_account) or _Found(wish.storage_uri, _digest(own), own)


def _from_secret(name: str, wish: Wish, config: Config, secret: Object | None) -> dict[str, str] | Invalid | None:
    """Keys and settings of one Secret; None: it is no S3 store's (a token), and KServe passes over it as well."""
    if secret is None:
        named_by = "the InferenceService's annotation" if wish.secret else f"ServiceAccount {wish.service_account or 'default'}"
        return _missing(f"there is no Secret {name}, which {named_by} names: create it")
    contents = _contents(secret)
    secret_key = _first(contents, config.secret_access_key, "AWS_SECRET_ACCESS_KEY", "awsSecretAccessKey")
    if secret_key is None:
        return None
    key_id = _first(contents, config.access_key_id, "AWS_ACCESS_KEY_ID", "awsAccessKeyID")
    if key_id is None:
        return _missing(f"Secret {name} holds a secret access key without its id: add {config.access_key_id or KEYS[0]}")
    settings = _settings(part(secret, "metadata", "annotations"), contents, config)
    return dict(zip(KEYS, (key_id, secret_key), strict=True)) | settings


def _refused_role(wish: Wish, annotations: Object, pool_account: str) -> Invalid | None:
    """A role that a pod of the pool cannot take on; None: there is none.

    Only one that was asked for: a model that names no ServiceAccount is read by the pool's, whatever ``default`` may do.
    """
    role = next((name for name in ROLES if name in annotations), "")
    if not role or not wish.service_account or wish.service_account == pool_account:
        return None
    return _invalid(
        f"ServiceAccount {wish.service_account} has a cloud role of its own ({role}), and a pod has one ServiceAccount for all "
        f"its models: give the role to the pool's ServiceAccount ({pool_account or 'default'}) and remove serviceAccountName "
        "here, or give this ServiceAccount a Secret with keys"
    )


def _settings(annotations: Object, contents: Mapping[str, str], config: Config) -> dict[str, str]:
    """Everything but keys: an annotation goes before the Secret's own entry, and that before KServe's configuration."""

    def told(annotation: str, variable: str, field_name: str) -> str:
        value = annotations.get(f"serving.kserve.io/{annotation}", contents.get(variable, config.s3.get(field_name, "")))
        return str(value).strip()

    said = {variable: told(annotation, variable, field_name) for annotation, variable, field_name in SETTINGS}
    endpoint = told("s3-endpoint", "S3_ENDPOINT", "s3Endpoint")
    if endpoint and not endpoint.lower().startswith(("http://", "https://")):
        plain = told("s3-usehttps", "S3_USE_HTTPS", "s3UseHttps") == "0"
        endpoint = f"{'http' if plain else 'https'}://{endpoint}"
    said["AWS_ENDPOINT_URL"] = endpoint
    return {variable: value for variable, value in said.items() if value}


# ---- storage: an entry of the Secret storage-config ------------------------------------------------------------


def _storage_secret(wish: Wish, config: Config) -> str:
    return wish.secret or config.storage_secret


def _by_storage(wish: Wish, name: str, secrets: Mapping[str, Object | None]) -> _Found | Invalid:
    parameters = dict(wish.parameters)
    kind = parameters.get("type", "")
    key = wish.storage_key or (f"default_{kind}" if kind else "default")
    entry = _entry(secrets.get(name), name, key, is_named=bool(wish.storage_key))
    if isinstance(entry, Invalid):
        return entry
    said = (entry or {}) | parameters
    there = f"under {shown(key)} of Secret {name}"
    uri = _where(wish, said, there)
    if isinstance(uri, Invalid):
        return uri
    if ("access_key_id" in said) != ("secret_access_key" in said) and said.get("anonymous", "").lower() != "true":
        return _missing(f"{there} stands one of access_key_id and secret_access_key without the other")
    scope = "" if entry is None else f"secret/{name}/{key}"
    digest = _digest({field_name: parameters[field_name] for field_name, _ in FIELDS if parameters.get(field_name)})
    return _Found(uri, scope + digest, {variable: said[field_name] for field_name, variable in FIELDS if said.get(field_name)})


def _where(wish: Wish, said: Mapping[str, str], there: str) -> str | Invalid:
    kind, bucket = said.get("type", ""), said.get("bucket") or said.get("default_bucket")
    if kind != "s3":
        told = "is not s3, and models are read from S3 alone" if kind else "is not told"
        return _missing(f'the type of storage {told}; write "type": "s3" {there} or in storage.parameters')
    if wish.storage_uri:
        return wish.storage_uri
    if not bucket:
        return _missing(f'no bucket is told; write "bucket" {there} or in storage.parameters')
    return location(f"s3://{bucket}/{wish.storage_path}")


def _entry(secret: Object | None, name: str, key: str, *, is_named: bool) -> dict[str, str] | Invalid | None:
    """What a key of storage-config holds; None: nothing, and nobody asked for that very key."""
    contents = _contents(secret or {})
    if key not in contents:
        if not is_named:
            return None
        if secret is None:
            return _missing(f"there is no Secret {name}, which would hold storage.key {shown(key)}: create it")
        return _missing(f"Secret {name} has no key {shown(key)}; it has {', '.join(sorted(contents)) or 'none'}")
    try:
        read = json.loads(contents[key])
    except ValueError:
        read = None
    if not isinstance(read, dict) or not all(isinstance(value, str | bool | int) for value in read.values()):
        return _missing(f"Secret {name}: what stands under {shown(key)} is no JSON object with strings")
    plain = {field_name: str(value).lower() if isinstance(value, bool) else str(value) for field_name, value in read.items()}
    return {field_name: value.strip() for field_name, value in plain.items()}


# ---- both ------------------------------------------------------------------------------------------------------


def _variables(said: Mapping[str, str], config_maps: Mapping[str, Object | None]) -> dict[str, str] | Invalid:
    """As declared.CredentialShard has them: certificates themselves in place of where they lie."""
    if said.get("S3_USE_ACCELERATE", "").lower() not in {"", "0", "false", "no"}:
        return _invalid(
            "S3 transfer acceleration is not supported: remove S3_USE_ACCELERATE or the annotation s3-useaccelerate"
        )
    variables = {variable: value for variable, value in said.items() if variable not in _REPLACED}
    if said.get("S3_VERIFY_SSL", "").lower() in {"0", "false"}:
        return variables
    certificates = _certificates(said, config_maps)
    if isinstance(certificates, Invalid):
        return certificates
    return variables | ({"AWS_CA_BUNDLE_PEM": certificates} if certificates else {})


def _certificates(said: Mapping[str, str], config_maps: Mapping[str, Object | None]) -> str | Invalid:
    """Whose certificates are trusted; "": as the pool does. KServe mounts the ConfigMap where the path's folder says."""
    config_map, path = said.get(CA_CONFIG_MAP, ""), said.get("AWS_CA_BUNDLE", "")
    if not config_map:
        written = said.get("AWS_CA_BUNDLE_PEM") or path
        if not written or _PEM in written:
            return written
        return _invalid(
            "AWS_CA_BUNDLE (s3-cabundle, ca_bundle) is a path, which a pool's pods do not have: name a ConfigMap with the "
            "certificates in s3-cabundle-configmap (or cabundle_configmap)"
        )
    key = path.rpartition("/")[2] or CA_KEY
    found = config_maps.get(config_map)
    if found is None:
        return _missing(f"there is no ConfigMap {config_map}, which would hold the certificates of the S3 server: create it")
    certificates = text(part(found, "data"), key)
    if _PEM not in certificates:
        return _missing(f"ConfigMap {config_map} holds no certificates in PEM format under {shown(key)}")
    return certificates


def _contents(secret: Object) -> dict[str, str]:
    """A Secret's entries, those that are text."""
    found = {}
    for name, encoded in part(secret, "data").items():
        try:
            found[name] = base64.b64decode(str(encoded), validate=True).decode().strip()  # one made with echo ends in a newline
        except ValueError:
            continue
    return found


def _first(contents: Mapping[str, str], configured: str, *shipped: str) -> str | None:
    """What stands under the configured name; where none is, under the first of those that KServe has shipped with."""
    return next((contents[name] for name in ((configured,) if configured else shipped) if contents.get(name)), None)


def _digest(settings: Mapping[str, str]) -> str:
    """Tells scopes apart that read one Secret with different settings, none of which is secret."""
    return f"+{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]}" if settings else ""


def _missing(message: str) -> Invalid:
    """Something outside the InferenceService: it may come, or be put right."""
    return Invalid("InvalidPredictorSpec", message, passing=True)


def _invalid(message: str) -> Invalid:
    return Invalid("InvalidPredictorSpec", message)
