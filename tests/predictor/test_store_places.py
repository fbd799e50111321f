"""Where S3 is and who asks: endpoints, regions, TLS, and credentials of every kind, as the environment gives them."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from predictor.errors import StoreRefused, StoreUnavailable
from predictor.tiers import s3_credentials, s3_endpoint
from predictor.tiers.s3_credentials import Chain
from predictor.tiers.scattered import Scattered
from tests.fakes import tls
from tests.fakes.s3 import FakeS3
from tests.fakes.s3_server import VIRTUAL_HOST, Fault
from tests.fakes.stores import BUCKET, as_file, aws_free, opened

KEY = "models/m/1/model.onnx"
DATA = os.urandom(200_000)


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with FakeS3() as fake:
        fake.put(BUCKET, KEY, DATA)
        yield fake


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, "https://bucket.s3.us-east-1.amazonaws.com"),
        ({"AWS_REGION": "eu-central-1"}, "https://bucket.s3.eu-central-1.amazonaws.com"),
        ({"AWS_DEFAULT_REGION": "eu-central-1"}, "https://bucket.s3.eu-central-1.amazonaws.com"),
        ({"AWS_REGION": "cn-north-1"}, "https://bucket.s3.cn-north-1.amazonaws.com.cn"),
        ({"AWS_ENDPOINT_URL": "http://minio:9000"}, "http://minio:9000/bucket"),
        ({"AWS_ENDPOINT_URL": "https://minio/base/"}, "https://minio/base/bucket"),
        ({"AWS_ENDPOINT_URL": "http://[::1]:9000"}, "http://[::1]:9000/bucket"),
        ({"AWS_ENDPOINT_URL_S3": "http://s3:1", "AWS_ENDPOINT_URL": "http://other:2"}, "http://s3:1/bucket"),
        (
            {"AWS_ENDPOINT_URL": "http://minio", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
            "https://bucket.s3.us-east-1.amazonaws.com",
        ),
        (
            {"AWS_ENDPOINT_URL": "https://s3.amazonaws.com", "AWS_REGION": "eu-west-1"},
            "https://bucket.s3.eu-west-1.amazonaws.com",
        ),
    ],
)
def test_the_bucket_is_found_where_boto3_would_look(environment: dict[str, str], url: str) -> None:
    assert s3_endpoint.from_environment("bucket", environment).url == url


@pytest.mark.parametrize("bucket", ["with.dots", "With_Capitals", "ab"])
def test_a_bucket_that_makes_no_host_name_goes_into_the_path(bucket: str) -> None:
    endpoint = s3_endpoint.of_aws(bucket, "eu-west-1")
    assert (endpoint.host, endpoint.target("a b/c")) == ("s3.eu-west-1.amazonaws.com", f"/{bucket}/a%20b/c")


@pytest.mark.parametrize(
    "environment",
    [
        {"AWS_REGION": "evil.example/"},
        {"AWS_ENDPOINT_URL": "minio:9000"},
        {"AWS_ENDPOINT_URL": "ftp://minio"},
        {"AWS_ENDPOINT_URL": "http://minio:port"},
        {"AWS_ENDPOINT_URL": "http://user:hidden@minio"},
    ],
)
def test_nonsense_is_refused_with_the_variable_and_without_what_may_be_secret(environment: dict[str, str]) -> None:
    with pytest.raises(StoreRefused, match=next(iter(environment))) as raised:
        s3_endpoint.from_environment("bucket", environment)
    assert "hidden" not in str(raised.value)


async def test_a_bucket_in_another_region_is_followed_once_with_a_warning(s3: FakeS3, caplog: pytest.LogCaptureFixture) -> None:
    s3.fault(Fault(1, "list", status=301, code="PermanentRedirect", headers={"x-amz-bucket-region": "eu-central-1"}))
    with caplog.at_level(logging.WARNING):
        async with opened(s3.environment()) as store:
            for _ in range(3):
                assert len((await store.listing("models/")).objects) == 1
    assert [record.message for record in caplog.records] == [
        "bucket bucket is in region eu-central-1, not us-east-1: set AWS_REGION=eu-central-1"
    ]
    regions = [received.headers["Authorization"].split("/")[2] for received in s3.received]
    assert regions == ["us-east-1", "eu-central-1", "eu-central-1", "eu-central-1"]


async def test_a_wrong_region_that_only_the_error_names_is_followed(s3: FakeS3) -> None:
    body = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-3</Region></Error>"
    s3.fault(Fault(1, "list", status=400, body=body))
    async with opened(s3.environment()) as store:
        assert len((await store.listing("models/")).objects) == 1
    assert "/eu-west-3/s3/" in s3.received[-1].headers["Authorization"]


@pytest.mark.parametrize("region", ["eu-central-1", "evil.example/", "us-east-1"])
async def test_redirects_without_end_or_to_no_region_are_refused(s3: FakeS3, region: str) -> None:
    s3.fault(Fault(1, "list", status=301, headers={"x-amz-bucket-region": region}))
    s3.fault(Fault(None, "list", status=301, headers={"x-amz-bucket-region": "us-west-2"}))
    async with opened(s3.environment()) as store:
        with pytest.raises(StoreRefused, match="redirects elsewhere: set AWS_REGION"):
            await store.listing("models/")
    assert len(s3.received) <= 2


def test_a_redirect_at_aws_changes_the_host() -> None:
    moved = s3_endpoint.of_aws("bucket", "us-east-1").in_region("eu-west-1")
    assert moved is not None
    assert moved.host == "bucket.s3.eu-west-1.amazonaws.com"


async def test_over_tls_the_bundle_named_is_trusted_and_nothing_else(tmp_path: Path) -> None:
    context, trusted = tls.context(tmp_path)
    with FakeS3(tls=context) as s3:
        s3.put(BUCKET, KEY, DATA)
        for word, verified in (("0", False), ("false", False), ("1", True), ("", True)):
            async with opened(s3.environment() | {"S3_VERIFY_SSL": word}) as store:
                if verified:
                    with pytest.raises(StoreRefused, match=r"not trusted.*AWS_CA_BUNDLE"):
                        await store.listing("models/")
                else:
                    assert len((await store.listing("models/")).objects) == 1
    with FakeS3(tls=context) as s3:
        s3.put(BUCKET, KEY, DATA)
        async with opened(s3.environment() | {"AWS_CA_BUNDLE": str(trusted)}, fetch_timeout_s=0.5) as store:
            (entry,) = (await store.listing(KEY)).objects
            for then, after_bytes in (("", 0), ("close", 999), ("stall", 9_999)):
                s3.fault(Fault(1, "get", then=then, after_bytes=after_bytes))
                memory = bytearray(len(DATA))
                await store.fetch([(as_file(entry), Scattered([memoryview(memory)]))], background=lambda: False)
                assert memory == DATA
        async with opened(s3.environment()) as store:
            with pytest.raises(StoreRefused, match=r"not trusted.*AWS_CA_BUNDLE"):
                await store.listing("models/")
        async with opened(s3.environment() | {"AWS_CA_BUNDLE": str(tmp_path / "nowhere")}) as store:
            with pytest.raises(StoreRefused, match="AWS_CA_BUNDLE"):
                await store.listing("models/")


class Tunnels:
    """A proxy that joins connections as CONNECT asks it to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                inside, _ = self._server.accept()
                self._open.append(inside)
                head = b""
                while b"\r\n\r\n" not in head:
                    head += inside.recv(4096)
                self.heads.append(head)
                host, _, port = head.split()[1].decode().partition(":")
                outside = socket.create_connection((host, int(port)))
                self._open.append(outside)
                inside.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                for one, other in ((inside, outside), (outside, inside)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while chunk := one.recv(1 << 16):
                other.sendall(chunk)
            other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for connection in (self._server, *self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


async def test_an_https_endpoint_is_asked_through_the_proxy_unless_it_is_excepted(tmp_path: Path) -> None:
    context, trusted = tls.context(tmp_path)
    tunnels = Tunnels()
    with FakeS3(tls=context) as s3:
        s3.put(BUCKET, KEY, DATA)
        environment = s3.environment() | {
            "AWS_CA_BUNDLE": str(trusted),
            "HTTPS_PROXY": f"http://us%40er:hidden@{tunnels.address}",
        }
        async with opened(environment) as store:
            (entry,) = (await store.listing(KEY)).objects
            memory = bytearray(len(DATA))
            await store.fetch([(as_file(entry), Scattered([memoryview(memory)]))], background=lambda: False)
        assert memory == DATA
        asked = len(tunnels.heads)
        assert asked == s3.connections
        assert tunnels.heads[0].startswith(f"CONNECT 127.0.0.1:{s3.port} ".encode())
        assert b64encode(b"us@er:hidden") in tunnels.heads[0]
        async with opened(environment | {"NO_PROXY": "localhost,127.0.0.1"}) as store:
            await store.listing(KEY)
        assert len(tunnels.heads) == asked
    tunnels.close()


@pytest.mark.parametrize("url", ["https://proxy:1", "http://", "http://us:hidden@proxy:port"])
def test_a_proxy_that_makes_no_sense_is_refused_without_what_may_be_secret(url: str) -> None:
    endpoint = s3_endpoint.of_aws("bucket", "eu-west-1")
    with pytest.raises(StoreRefused, match="HTTPS_PROXY must be") as raised:
        s3_endpoint.proxy_to(endpoint, {"https_proxy": url})
    assert "hidden" not in str(raised.value)
    assert s3_endpoint.proxy_to(endpoint, {"https_proxy": url, "no_proxy": ".amazonaws.com"}) is None
    assert s3_endpoint.proxy_to(endpoint._replace(secure=False), {"https_proxy": url}) is None


def test_a_proxy_may_be_named_without_a_scheme() -> None:
    proxy = s3_endpoint.proxy_to(s3_endpoint.of_aws("bucket", "eu-west-1"), {"HTTPS_PROXY": "proxy:3128"})
    assert proxy == ("proxy", 3128, {})


@pytest.mark.parametrize(
    "environment",
    [
        {"awsAnonymousCredential": "True", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"},
        {"AWS_NO_SIGN_REQUEST": "YES"},
    ],
)
async def test_a_public_bucket_is_asked_without_a_signature(s3: FakeS3, environment: dict[str, str]) -> None:
    async with opened({"AWS_ENDPOINT_URL": s3.endpoint, **environment}) as store:
        await store.listing("models/")
    assert "Authorization" not in s3.received[0].headers


async def test_static_credentials_sign_with_their_token_and_without_the_newline_of_their_secret(s3: FakeS3) -> None:
    environment = s3.environment() | {"AWS_ACCESS_KEY_ID": "AKID\n", "AWS_SESSION_TOKEN": "session-token"}
    async with opened(environment) as store:
        await store.listing("models/")
    assert s3.received[0].headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKID/")
    assert s3.received[0].headers["x-amz-security-token"] == "session-token"


def test_static_credentials_need_neither_botocore_nor_anything_else_to_ask_for_the_first_byte() -> None:
    code = (
        "import sys; from predictor.tiers.store import S3Store; from predictor.tiers import s3_credentials as c;"
        "assert c.from_environment({'AWS_ACCESS_KEY_ID': 'a', 'AWS_SECRET_ACCESS_KEY': 'b'}).credentials();"
        "print({'boto3', 'botocore', 'pydantic', 'msgspec', 'numpy', 'uvloop', 'xxhash'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment in which botocore finds nothing but what a test writes into its folder."""
    environment = {
        "HOME": str(tmp_path),
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name in set(os.environ) - set(aws_free({})):
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


async def test_a_profile_of_the_credentials_file_is_found(s3: FakeS3, aws: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text("[team]\naws_access_key_id = TEAMKEY\naws_secret_access_key = hidden\n")
    async with opened({**aws, "AWS_PROFILE": "team", "AWS_ENDPOINT_URL": s3.endpoint}) as store:
        await store.listing("models/")
    assert "Credential=TEAMKEY/" in s3.received[0].headers["Authorization"]


async def test_credentials_that_expire_are_renewed_between_requests(s3: FakeS3, aws: dict[str, str], tmp_path: Path) -> None:
    counter = tmp_path / "count"
    counter.write_text("0")
    script = tmp_path / "issue.py"
    script.write_text(
        "import json, pathlib, datetime\n"
        f"counter = pathlib.Path({str(counter)!r})\n"
        "count = int(counter.read_text()) + 1\n"
        "counter.write_text(str(count))\n"
        "expires = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=60)\n"  # always about to expire
        "print(json.dumps({'Version': 1, 'AccessKeyId': f'KEY{count}', 'SecretAccessKey': 's', 'SessionToken': 't',\n"
        "                  'Expiration': expires.isoformat()}))\n"
    )
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {sys.executable} {script}\n")
    async with opened({**aws, "AWS_ENDPOINT_URL": s3.endpoint}) as store:
        for _ in range(2):
            await store.listing("models/")
    first, second = (
        received.headers["Authorization"].partition("Credential=")[2].partition("/")[0] for received in s3.received
    )
    assert first.startswith("KEY")
    assert first != second


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId"])
async def test_credentials_replaced_in_the_middle_of_a_transfer_are_found(
    s3: FakeS3, aws: dict[str, str], tmp_path: Path, code: str
) -> None:
    """By whoever writes the credentials file, while the old ones are refused from one request to the next."""

    def replaced(number: int) -> None:
        (tmp_path / "new").write_text(f"[default]\naws_access_key_id = KEY{number}\naws_secret_access_key = hidden\n")
        (tmp_path / "new").rename(tmp_path / "credentials")
        s3.fault(Fault(None, status=403, code=code, asker=f"KEY{number - 1}"))

    replaced(1)
    async with opened({**aws, "AWS_ENDPOINT_URL": s3.endpoint}, fetch_retries=1) as store:
        (entry,) = (await store.listing(KEY)).objects
        s3.fault(Fault(1, "get", before=partial(replaced, 2)))
        memory = bytearray(len(DATA))
        await store.fetch([(as_file(entry), Scattered([memoryview(memory)]))], background=lambda: False)
        assert memory == DATA
        await store.listing(KEY)
        assert "Credential=KEY2/" in s3.received[-1].headers["Authorization"]
        s3.fault(Fault(None, status=403, code=code, asker="KEY2"))
        with pytest.raises(StoreRefused, match="have expired"):
            await store.fetch([(as_file(entry), Scattered([memoryview(memory)]))], background=lambda: False)


async def test_a_bucket_in_the_host_name_is_asked_there(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **named: resolve("127.0.0.1", *rest, **named))
    environment = {"AWS_ENDPOINT_URL": f"http://{VIRTUAL_HOST[1:]}:{s3.port}", "S3_USER_VIRTUAL_BUCKET": "True"}
    async with opened({**s3.environment(), **environment}) as store:
        (entry,) = (await store.listing("models/")).objects
        memory = bytearray(len(DATA))
        await store.fetch([(as_file(entry), Scattered([memoryview(memory)]))], background=lambda: False)
    assert memory == DATA
    assert s3.received[0].headers["Host"] == f"{BUCKET}{VIRTUAL_HOST}:{s3.port}"
    assert [entry.target.partition("?")[0] for entry in s3.received[:2]] == ["/", f"/{KEY}"]


def test_a_bucket_that_makes_no_host_name_cannot_be_asked_there() -> None:
    with pytest.raises(StoreRefused, match="S3_USER_VIRTUAL_BUCKET"):
        s3_endpoint.from_environment("with.dots", {"AWS_ENDPOINT_URL": "http://s3", "S3_USER_VIRTUAL_BUCKET": "true"})


async def test_no_credentials_at_all_are_told_with_what_to_set(s3: FakeS3, aws: dict[str, str]) -> None:
    async with opened({**aws, "AWS_ENDPOINT_URL": s3.endpoint}) as store:
        with pytest.raises(StoreRefused, match="no AWS credentials found: set AWS_ACCESS_KEY_ID"):
            await store.listing("models/")


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (f"[default]\ncredential_process = {sys.executable} -c 'raise SystemExit(1)'\n", StoreUnavailable),
        ("[default]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = missing\n", StoreRefused),
    ],
)
def test_credentials_that_cannot_be_had_are_told_without_what_was_said(
    aws: dict[str, str], tmp_path: Path, config: str, kind: type[Exception]
) -> None:
    (tmp_path / "config").write_text(config)
    with pytest.raises(kind, match="AWS credentials") as raised:
        Chain().credentials()
    assert json.dumps(config) not in str(raised.value)
    assert raised.value.__cause__ is None


def test_where_the_system_has_no_certificates_botocores_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_endpoint, "_system_has_certificates", lambda: False)
    assert s3_endpoint.trusted({}).cert_store_stats()["x509_ca"] > 50
    assert s3_credentials.from_environment({"AWS_ACCESS_KEY_ID": "only half"}).__class__ is Chain
