"""Where a wish leads and with which credentials, as KServe would have it; and that nothing tells a secret."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.warmup.objects import Made, metadata
from warmup.credentials import Config, Needed, Resolved, needed, resolve, service_account
from warmup.view import Invalid, Wish

URI = "s3://models/a"
HUSH = "hush-hush"
PLAIN = Config()
PEM = "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----"


def secret(annotations: dict[str, str] | None = None, **contents: str) -> Made:
    told = {f"serving.kserve.io/{name}": value for name, value in (annotations or {}).items()}
    encoded = {name: base64.b64encode(value.encode()).decode() for name, value in contents.items()}
    return {"metadata": metadata("s", annotations=told), "data": encoded}


def keys(annotations: dict[str, str] | None = None, key_id: str = "id", **more: str) -> Made:
    return secret(annotations, AWS_ACCESS_KEY_ID=key_id, AWS_SECRET_ACCESS_KEY=f"{HUSH}-{key_id}", **more)


def account(*secrets: str, **annotations: str) -> Made:
    told = {"role": "eks.amazonaws.com/role-arn", "google": "iam.gke.io/gcp-service-account"}
    named = {told.get(name, f"serving.kserve.io/{name.replace('_', '-')}"): value for name, value in annotations.items()}
    return {"metadata": metadata("sa", annotations=named), "secrets": [{"name": name} for name in secrets]}


def resolved(
    wish: Wish,
    *,
    of: Made | None = None,
    config: Config = PLAIN,
    secrets: dict[str, Made | None] | None = None,
    config_maps: dict[str, Made | None] | None = None,
    pool_account: str = "pool",
) -> Resolved | Invalid:
    found = resolve(wish, config, of, secrets or {}, config_maps or {}, pool_account=pool_account)
    assert HUSH not in repr(found)
    return found


def variables(wish: Wish, **more: Any) -> dict[str, str]:
    found = resolved(wish, **more)
    assert isinstance(found, Resolved), found
    return dict(found.variables)


def refusal(wish: Wish, **more: Any) -> Invalid:
    found = resolved(wish, **more)
    assert isinstance(found, Invalid), found
    return found


BARE = Wish(storage_uri=URI)
NAMED = Wish(storage_uri=URI, service_account="sa")
ANNOTATED = Wish(storage_uri=URI, secret="mine")
KEYS = {"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": f"{HUSH}-id"}


# ---- storageUri ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "of", "secrets", "scope"),
    [
        pytest.param(BARE, account(), {}, "", id="nothing found: the pool's own"),
        pytest.param(BARE, None, {}, "", id="no ServiceAccount at all: the pool's own"),
        pytest.param(BARE, account("a"), {"a": keys()}, "secret/a", id="the default ServiceAccount's Secret"),
        pytest.param(NAMED, account("a"), {"a": keys()}, "secret/a", id="a named ServiceAccount's Secret"),
        pytest.param(
            NAMED,
            account("token", "a"),
            {"token": secret(token="x"), "a": keys()},
            "secret/a",
            id="a token among them is passed over",
        ),
        pytest.param(NAMED, account("token"), {"token": secret(token="x")}, "", id="only a token: the pool's own"),
        pytest.param(
            Wish(storage_uri=URI, service_account="sa", secret="mine"),
            account("a"),
            {"a": keys(), "mine": keys()},
            "secret/mine",
            id="an annotation goes before the ServiceAccount",
        ),
        pytest.param(NAMED, account("a", "b"), {"a": keys(), "b": keys()}, "secret/a,b", id="several Secrets count together"),
        pytest.param(NAMED, account("a", role="arn"), {"a": keys()}, "secret/a", id="keys go before a role"),
        pytest.param(BARE, account(role="arn"), {}, "", id="a role of `default` that nobody asked for: the pool's own"),
        pytest.param(
            Wish(storage_uri=URI, service_account="pool"),
            account(role="arn"),
            {},
            "",
            id="the pool's ServiceAccount with its role",
        ),
    ],
)
def test_whose_credentials_count(wish: Wish, of: Made | None, secrets: dict[str, Made | None], scope: str) -> None:
    found = resolved(wish, of=of, secrets=secrets)
    assert isinstance(found, Resolved)
    assert (found.uri, found.scope) == (URI, scope)
    assert dict(found.variables) == (KEYS if scope else {})


@pytest.mark.parametrize(
    ("contents", "config", "key_id"),
    [
        pytest.param({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, PLAIN, "a", id="as KServe ships it"),
        pytest.param({"awsAccessKeyID": "a", "awsSecretAccessKey": "b"}, PLAIN, "a", id="as KServe once shipped it"),
        pytest.param(
            {"my-id": "a", "my-key": "b", "AWS_ACCESS_KEY_ID": "c", "AWS_SECRET_ACCESS_KEY": "d"},
            Config(access_key_id="my-id", secret_access_key="my-key"),
            "a",
            id="as this cluster's KServe is configured",
        ),
        pytest.param({"AWS_ACCESS_KEY_ID": "a\n", "AWS_SECRET_ACCESS_KEY": "b\n"}, PLAIN, "a", id="made with echo"),
    ],
)
def test_the_names_of_the_keys(contents: dict[str, str], config: Config, key_id: str) -> None:
    found = variables(ANNOTATED, config=config, secrets={"mine": secret(None, **contents)})
    assert found == {"AWS_ACCESS_KEY_ID": key_id, "AWS_SECRET_ACCESS_KEY": "b"}


@pytest.mark.parametrize(
    ("annotations", "contents", "config", "expected"),
    [
        pytest.param({"s3-endpoint": "s3.local:9000"}, {}, {}, "https://s3.local:9000", id="https unless told"),
        pytest.param({"s3-endpoint": "s3.local", "s3-usehttps": "0"}, {}, {}, "http://s3.local", id="http when told"),
        pytest.param({"s3-endpoint": "s3.local", "s3-usehttps": "1"}, {}, {}, "https://s3.local", id="https when told"),
        pytest.param(
            {"s3-endpoint": " http://s3.local ", "s3-usehttps": "1"}, {}, {}, "http://s3.local", id="a scheme goes first"
        ),
        pytest.param({"s3-endpoint": "HTTPS://s3.local", "s3-usehttps": "0"}, {}, {}, "HTTPS://s3.local", id="in capitals too"),
        pytest.param({}, {"S3_ENDPOINT": "in.secret"}, {}, "https://in.secret", id="in the Secret itself"),
        pytest.param(
            {"s3-endpoint": "noted"},
            {"S3_ENDPOINT": "in.secret"},
            {"s3Endpoint": "x"},
            "https://noted",
            id="annotations go first",
        ),
        pytest.param(
            {}, {}, {"s3Endpoint": "cluster", "s3UseHttps": "0"}, "http://cluster", id="KServe's configuration goes last"
        ),
        pytest.param({"s3-endpoint": ""}, {"S3_ENDPOINT": "x"}, {"s3Endpoint": "x"}, None, id="an empty annotation unsets it"),
    ],
)
def test_the_endpoint(
    annotations: dict[str, str], contents: dict[str, str], config: dict[str, str], expected: str | None
) -> None:
    found = variables(ANNOTATED, config=Config(s3=config), secrets={"mine": keys(annotations, **contents)})
    assert found.get("AWS_ENDPOINT_URL") == expected


def test_every_annotation_has_its_variable() -> None:
    annotations = {
        "s3-endpoint": "s3.local",
        "s3-usehttps": "0",
        "s3-region": "eu-1",
        "s3-verifyssl": "1",
        "s3-usevirtualbucket": "true",
        "s3-useaccelerate": "false",
        "s3-useanoncredential": "false",
        "s3-cabundle-configmap": "cas",
        "s3-cabundle": "/certs/own.pem",
    }
    found = variables(
        ANNOTATED, secrets={"mine": keys(annotations)}, config_maps={"cas": {"data": {"own.pem": PEM, "cabundle.crt": "x"}}}
    )
    assert found == {
        **KEYS,
        "AWS_ENDPOINT_URL": "http://s3.local",
        "AWS_DEFAULT_REGION": "eu-1",
        "S3_VERIFY_SSL": "1",
        "S3_USER_VIRTUAL_BUCKET": "true",
        "awsAnonymousCredential": "false",
        "AWS_CA_BUNDLE_PEM": PEM,
    }


def test_of_several_secrets_the_firsts_keys_and_the_lasts_settings_count() -> None:
    first = keys({"s3-region": "eu-1", "s3-endpoint": "one"}, key_id="1")
    last = keys({"s3-region": "eu-2"}, key_id="2")
    assert variables(NAMED, of=account("a", "b"), secrets={"a": first, "b": last}) == {
        "AWS_ACCESS_KEY_ID": "1",
        "AWS_SECRET_ACCESS_KEY": f"{HUSH}-1",
        "AWS_DEFAULT_REGION": "eu-2",
        "AWS_ENDPOINT_URL": "https://one",
    }


def test_an_accounts_own_annotations_count_beside_its_role_for_less_than_a_secrets_and_make_a_scope_of_their_own() -> None:
    of = account("a", role="arn", s3_region="eu-1", s3_endpoint="one")
    found = resolved(NAMED, of=of, secrets={"a": keys({"s3-region": "eu-2"})})
    assert isinstance(found, Resolved)
    assert dict(found.variables) == {**KEYS, "AWS_DEFAULT_REGION": "eu-2", "AWS_ENDPOINT_URL": "https://one"}
    assert found.scope.startswith("secret/a+")
    without = resolved(NAMED, of=account("a", s3_region="eu-1"), secrets={"a": keys()})
    assert isinstance(without, Resolved)
    assert (without.scope, dict(without.variables)) == ("secret/a", KEYS)


def test_what_the_pools_own_account_says_beside_its_role_is_laid_over_the_pools_variables() -> None:
    of = account(role="arn", s3_region="eu-1")
    found = resolved(Wish(storage_uri=URI, service_account="pool"), of=of)
    assert isinstance(found, Resolved)
    assert found.scope.startswith("+")
    assert dict(found.variables) == {"AWS_DEFAULT_REGION": "eu-1"}
    assert resolved(BARE, of=of) == Resolved(URI, "")
    assert resolved(BARE, of=of, pool_account="default") == found


def test_a_secret_that_rotates_keeps_its_scope() -> None:
    before, after = (resolved(ANNOTATED, secrets={"mine": keys(key_id=key_id)}) for key_id in ("old", "new"))
    assert isinstance(before, Resolved)
    assert isinstance(after, Resolved)
    assert before.scope == after.scope
    assert before.variables != after.variables


@pytest.mark.parametrize(
    ("wish", "of", "secrets", "config_maps", "says", "passing"),
    [
        pytest.param(NAMED, None, {}, {}, "no ServiceAccount sa", True, id="a ServiceAccount that is not there"),
        pytest.param(ANNOTATED, None, {"mine": None}, {}, "annotation names", True, id="an annotated Secret that is not there"),
        pytest.param(
            NAMED, account("a"), {}, {}, "ServiceAccount sa names", True, id="a ServiceAccount's Secret that is not there"
        ),
        pytest.param(ANNOTATED, None, {"mine": secret(x="y")}, {}, "no S3 credentials", True, id="a Secret without keys"),
        pytest.param(
            ANNOTATED,
            None,
            {"mine": secret(AWS_SECRET_ACCESS_KEY=HUSH)},
            {},
            "without its id",
            True,
            id="a Secret with half a key",
        ),
        pytest.param(NAMED, account(role="arn"), {}, {}, "role of its own (eks", False, id="a role on AWS"),
        pytest.param(NAMED, account(google="x"), {}, {}, "pool's ServiceAccount (pool)", False, id="a role on another cloud"),
        pytest.param(
            ANNOTATED,
            None,
            {"mine": keys({"s3-cabundle": "/etc/ca.pem"})},
            {},
            "a path",
            False,
            id="certificates at a path alone",
        ),
        pytest.param(
            ANNOTATED,
            None,
            {"mine": keys({"s3-cabundle-configmap": "cas"})},
            {},
            "no ConfigMap cas",
            True,
            id="no certificates",
        ),
        pytest.param(
            ANNOTATED,
            None,
            {"mine": keys({"s3-cabundle-configmap": "cas"})},
            {"cas": {"data": {"cabundle.crt": "x"}}},
            "PEM",
            True,
            id="what is no certificate",
        ),
        pytest.param(
            ANNOTATED, None, {"mine": keys({"s3-useaccelerate": "true"})}, {}, "acceleration", False, id="acceleration"
        ),
    ],
)
def test_what_cannot_be_says_why_and_what_to_do(
    *,
    wish: Wish,
    of: Made | None,
    secrets: dict[str, Made | None],
    config_maps: dict[str, Made | None],
    says: str,
    passing: bool,
) -> None:
    found = refusal(wish, of=of, secrets=secrets, config_maps=config_maps)
    assert (found.reason, found.passing) == ("InvalidPredictorSpec", passing)
    assert says in found.message


def test_entries_that_are_no_text_are_passed_over() -> None:
    held = keys()
    held["data"] |= {"binary": base64.b64encode(b"\xff").decode(), "broken": "?"}
    assert variables(ANNOTATED, secrets={"mine": held}) == KEYS


def test_whoever_verifies_nothing_needs_no_certificates() -> None:
    told = {"s3-verifyssl": "0", "s3-cabundle": "/x.pem", "s3-cabundle-configmap": "gone"}
    assert variables(ANNOTATED, secrets={"mine": keys(told)}) == {**KEYS, "S3_VERIFY_SSL": "0"}


# ---- storage ---------------------------------------------------------------------------------------------------


def entry(**fields: Any) -> str:
    return json.dumps({"type": "s3", "bucket": "b", "access_key_id": "id", "secret_access_key": f"{HUSH}-id"} | fields)


def stored(key: str = "minio", **parameters: str) -> Wish:
    return Wish(storage_path="m/a", storage_key=key, parameters=tuple(sorted(parameters.items())), by_storage=True)


CONFIGURED: dict[str, Made | None] = {"storage-config": secret(minio=entry(endpoint_url="http://s3", region="eu-1"))}


def test_a_key_of_storage_config_says_where_and_who() -> None:
    found = resolved(stored(), secrets=CONFIGURED)
    assert isinstance(found, Resolved)
    assert (found.uri, found.scope) == ("s3://b/m/a", "secret/storage-config/minio")
    assert dict(found.variables) == {**KEYS, "AWS_ENDPOINT_URL": "http://s3", "AWS_DEFAULT_REGION": "eu-1"}


def test_parameters_go_before_the_secret_and_make_a_scope_of_their_own() -> None:
    found = resolved(stored(region="eu-2", bucket="c"), secrets=CONFIGURED)
    assert isinstance(found, Resolved)
    assert found.uri == "s3://c/m/a"
    assert found.scope.startswith("secret/storage-config/minio+")
    assert found.variables["AWS_DEFAULT_REGION"] == "eu-2"


def test_a_parameter_that_only_says_where_makes_no_scope_of_its_own() -> None:
    found = resolved(stored(type="s3", bucket="c", unheard="of"), secrets=CONFIGURED)
    assert isinstance(found, Resolved)
    assert (found.uri, found.scope) == ("s3://c/m/a", "secret/storage-config/minio")


@pytest.mark.parametrize(
    ("wish", "config", "secrets", "scope"),
    [
        pytest.param(
            stored(""), PLAIN, {"storage-config": secret(default=entry())}, "secret/storage-config/default", id="no key"
        ),
        pytest.param(
            stored("", type="s3"),
            PLAIN,
            {"storage-config": secret(default_s3=entry())},
            "secret/storage-config/default_s3",
            id="a type",
        ),
        pytest.param(stored("", type="s3", bucket="b"), PLAIN, {}, "", id="no key and no Secret: the pool's own"),
        pytest.param(
            stored(),
            Config(storage_secret="other"),
            {"other": secret(minio=entry())},
            "secret/other/minio",
            id="KServe's configuration",
        ),
        pytest.param(
            Wish(storage_path="m/a", storage_key="minio", by_storage=True, secret="mine"),
            Config(storage_secret="other"),
            {"mine": secret(minio=entry())},
            "secret/mine/minio",
            id="an annotation goes before it",
        ),
    ],
)
def test_which_secret_and_which_key(wish: Wish, config: Config, secrets: dict[str, Made | None], scope: str) -> None:
    found = resolved(wish, config=config, secrets=secrets)
    assert isinstance(found, Resolved)
    assert (found.uri, found.scope) == ("s3://b/m/a", scope)


def test_parameters_alone_are_laid_over_the_pools_own() -> None:
    found = resolved(stored("", type="s3", bucket="b", region="eu-1"))
    assert isinstance(found, Resolved)
    assert found.scope.startswith("+")
    assert dict(found.variables) == {"AWS_DEFAULT_REGION": "eu-1"}


def test_a_uri_with_a_key_of_storage_is_read_with_that_key() -> None:
    found = resolved(Wish(storage_uri=URI, storage_key="minio", by_storage=True), secrets=CONFIGURED)
    assert isinstance(found, Resolved)
    assert (found.uri, found.scope) == (URI, "secret/storage-config/minio")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({"verify_ssl": "0"}, {"S3_VERIFY_SSL": "0"}, id="verify_ssl"),
        pytest.param({"anonymous": True}, {"awsAnonymousCredential": "true"}, id="anonymous, as a boolean"),
        pytest.param({"certificate": PEM}, {"AWS_CA_BUNDLE_PEM": PEM}, id="ModelMesh's certificate"),
        pytest.param({"ca_bundle": PEM}, {"AWS_CA_BUNDLE_PEM": PEM}, id="certificates in place of a path"),
        pytest.param({"cabundle_configmap": "cas"}, {"AWS_CA_BUNDLE_PEM": PEM}, id="certificates in a ConfigMap"),
        pytest.param({"bucket": "", "default_bucket": "b"}, {}, id="ModelMesh's default_bucket"),
    ],
)
def test_the_fields_of_an_entry(fields: dict[str, Any], expected: dict[str, str]) -> None:
    secrets: dict[str, Made | None] = {"storage-config": secret(minio=entry(**fields))}
    config_maps: dict[str, Made | None] = {"cas": {"data": {"cabundle.crt": PEM}}}
    assert variables(stored(), secrets=secrets, config_maps=config_maps) == {**KEYS, **expected}


@pytest.mark.parametrize(
    ("wish", "secrets", "says"),
    [
        pytest.param(stored(), {}, "no Secret storage-config", id="no Secret"),
        pytest.param(stored("x"), CONFIGURED, "no key 'x'; it has minio", id="no such key"),
        pytest.param(stored("", type="s3"), {}, "no bucket", id="no bucket"),
        pytest.param(stored(""), {}, "type of storage is not told", id="no type"),
        pytest.param(stored(type="hdfs"), CONFIGURED, "is not s3", id="another type"),
        pytest.param(stored(), {"storage-config": secret(minio=HUSH)}, "no JSON object", id="no JSON"),
        pytest.param(stored(), {"storage-config": secret(minio=f'["{HUSH}"]')}, "no JSON object", id="no object"),
        pytest.param(
            stored(), {"storage-config": secret(minio=entry(access_key_id=[HUSH]))}, "no JSON object", id="no strings"
        ),
        pytest.param(
            stored(),
            {"storage-config": secret(minio=json.dumps({"type": "s3", "bucket": "b", "access_key_id": HUSH}))},
            "other",
            id="half",
        ),
        pytest.param(stored(ca_bundle="/x.pem"), CONFIGURED, "a path", id="certificates at a path alone"),
        pytest.param(stored(bucket="a b"), CONFIGURED, "no bucket's name", id="no bucket's name"),
    ],
)
def test_storage_that_cannot_be_says_why(wish: Wish, secrets: dict[str, Made | None], says: str) -> None:
    assert says in refusal(wish, secrets=secrets).message


# ---- what has to be read ---------------------------------------------------------------------------------------


def test_only_what_is_needed_is_read_first_secrets_then_what_they_name() -> None:
    assert [service_account(wish) for wish in (BARE, NAMED, ANNOTATED, stored())] == ["default", "sa", "default", ""]
    assert needed(NAMED, PLAIN, account("a", "b", "a")) == Needed(("a", "b"))
    assert needed(ANNOTATED, PLAIN, account("a")) == Needed(("mine",))
    assert needed(stored(), PLAIN, None) == Needed(("storage-config",))
    assert needed(BARE, PLAIN, None) == Needed()
    certain = {"mine": keys({"s3-cabundle-configmap": "cas"})}
    assert needed(ANNOTATED, PLAIN, None, certain) == Needed(("mine",), ("cas",))
    assert needed(stored(cabundle_configmap="cas"), PLAIN, None, CONFIGURED) == Needed(("storage-config",), ("cas",))


def test_kserves_configuration_is_read_as_it_stands_in_its_config_map() -> None:
    read = Config.from_json(
        '{"storageSpecSecretName": "sc", "storageSecretNameAnnotation": "x/y", "gcs": {}, "s3": {"s3AccessKeyIDName": "I", '
        '"s3SecretAccessKeyName": "K", "s3Region": "eu-1"}}'
    )
    assert read == Config("sc", "x/y", "I", "K", {"s3Region": "eu-1"})
    assert Config.from_json("{}") == PLAIN
    for broken in ("[]", "{", '{"s3": 3}'):
        with pytest.raises(ValueError, match=r"s3|Expecting"):
            Config.from_json(broken)
