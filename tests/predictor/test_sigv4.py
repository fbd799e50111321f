"""The signer against botocore's, on keys and queries that Hypothesis invents, and on requests as they really went out."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials
from botocore.utils import percent_encode
from hypothesis import example, given
from hypothesis import strategies as st

from predictor.tiers.sigv4 import NO_BODY_SHA256, Credentials, encoded_path, encoded_query, signed

NOW = datetime.now(UTC).replace(microsecond=0)
# Every character that UTF-8 can encode; odd ones are what this is about.
text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
headers = st.dictionaries(
    st.sampled_from(["Range", "If-Match", "x-amz-meta-a"]),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
)


def by_botocore(
    target: str, sent: dict[str, str], *, credentials: Credentials, region: str, method: str = "GET", body: bytes = b""
) -> str:
    """The Authorization header that botocore gives the same request."""
    path, _, query = target.partition("?")
    request = AWSRequest(method, f"http://{sent['Host']}{path}" + (f"?{query}" if query else ""), headers=sent, data=body)
    request.context["payload_signing_enabled"] = True  # over plain HTTP it is signed anyway
    request.context["timestamp"] = NOW.strftime("%Y%m%dT%H%M%SZ")
    signer: Any = S3SigV4Auth(
        BotocoreCredentials(credentials.access_key, credentials.secret_key, credentials.token or None), "s3", region
    )
    # What add_auth does once it has taken the time from the clock.
    signer._modify_request_before_signing(request)
    canonical = signer.canonical_request(request)
    signer._inject_signature_to_request(request, signer.signature(signer.string_to_sign(request, canonical), request))
    return str(request.headers["Authorization"])


@pytest.mark.parametrize("token", ["", "session/token+with=odd"])
@given(key=text, query=st.dictionaries(text, st.text(st.characters(codec="utf-8"), max_size=40), max_size=4), added=headers)
@example(key="a b+c~d//e/../f", query={"prefix": "a b+c~d//", "list-type": "2"}, added={"Range": "bytes=0-1"})
@example(key="/leading/and trailing/", query={"a": "", "a-": "1", "A": "2"}, added={})
@example(key="%2F%zz*'()!", query={"%": "&=?#"}, added={"If-Match": '"abc"  "def" '})
@example(key="ключ/模型/🔥", query={"prefix": "é"}, added={})
def test_every_signature_is_the_one_that_botocore_makes(
    token: str, key: str, query: dict[str, str], added: dict[str, str]
) -> None:
    credentials = Credentials("AKIDEXAMPLE", "secret/with+odd=signs", token)
    target = f"/bucket/{encoded_path(key)}" + (f"?{encoded_query(query)}" if query else "")
    given_headers = {"Host": "s3.example.com:9000", **added}
    made = signed(target, given_headers, credentials=credentials, region="eu-central-1", at=NOW)
    assert made["Authorization"] == by_botocore(target, given_headers, credentials=credentials, region="eu-central-1")
    assert made["x-amz-content-sha256"] == NO_BODY_SHA256
    assert made.get("x-amz-security-token", "") == token


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@given(key=text, body=st.binary(max_size=100))
def test_what_is_written_or_removed_is_signed_as_botocore_does(method: str, key: str, body: bytes) -> None:
    credentials = Credentials("AKIDEXAMPLE", "secret")
    target, sent = f"/bucket/{encoded_path(key)}", {"Host": "s3.example.com", "Content-Type": "application/json"}
    body = body if method == "PUT" else b""
    made = signed(target, sent, credentials=credentials, region="eu-central-1", at=NOW, method=method, body=body)
    theirs = by_botocore(target, sent, credentials=credentials, region="eu-central-1", method=method, body=body)
    assert made["Authorization"] == theirs
    assert made["x-amz-content-sha256"] == hashlib.sha256(body).hexdigest()


@given(key=text)
def test_keys_are_encoded_as_botocore_encodes_them(key: str) -> None:
    assert encoded_path(key) == percent_encode(key, safe="/~")


def test_the_example_of_the_s3_documentation_comes_out() -> None:
    made = signed(
        "/test.txt",
        {"Host": "examplebucket.s3.amazonaws.com", "Range": "bytes=0-9"},
        credentials=Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"),
        region="us-east-1",
        at=datetime(2013, 5, 24, tzinfo=UTC),
    )
    assert made["Authorization"].endswith("Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41")


def test_secrets_stay_out_of_what_is_printed() -> None:
    assert repr(Credentials("AKID", "hidden", "hidden-too")) == "Credentials(access_key='AKID')"
