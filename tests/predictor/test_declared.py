"""The documents that controller and pods share: stable, tolerant of a neighbour one release apart, silent about secrets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor import declared
from predictor.declared import CredentialShard, Declared, Location, ModelShard


def test_a_document_reads_back_as_it_was_written() -> None:
    entry = Declared(Location("s3://b/m/2", 2, "secret/s3", "onnx"), Location("s3://b/m/1"), 10, "red", "batch")
    shard = ModelShard(7, {"m": entry})
    assert declared.decode(declared.encode(shard), ModelShard) == shard


def test_the_order_of_models_makes_no_other_document() -> None:
    one, two = Declared(Location("s3://b/1")), Declared(Location("s3://b/2"))
    assert declared.encode(ModelShard(1, {"a": one, "b": two})) == declared.encode(ModelShard(1, {"b": two, "a": one}))


def test_fields_of_a_later_release_are_skipped() -> None:
    document = b'{"serial":1,"format":1,"new":1,"models":{"m":{"target":{"uri":"s3://b/m","new":{}},"new":[]}}}'
    assert declared.decode(document, ModelShard).models["m"].target == Location("s3://b/m")


def test_a_format_of_a_later_release_is_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match="upgrade"):
        declared.decode(b'{"serial":1,"format":2}', ModelShard)


def test_an_error_does_not_quote_a_credential() -> None:
    with pytest.raises(ValueError, match="scopes") as raised:
        declared.decode(b'{"serial":1,"scopes":{"s":{"AWS_SECRET_ACCESS_KEY":["hush-hush"]}}}', CredentialShard)
    assert "hush" not in str(raised.value)


@given(st.text(min_size=1, max_size=253))
def test_every_name_has_a_shard(name: str) -> None:
    assert 0 <= declared.model_shard(name) < declared.MODEL_SHARDS
    assert 0 <= declared.credential_shard(name) < declared.CREDENTIAL_SHARDS


def test_names_are_spread_over_all_shards() -> None:
    shards = [declared.model_shard(f"resnet-{number}") for number in range(10_000)]
    assert max(shards.count(shard) for shard in range(declared.MODEL_SHARDS)) < 2 * 10_000 / declared.MODEL_SHARDS
