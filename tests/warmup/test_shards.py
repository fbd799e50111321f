"""From what is declared to the writes that are needed: none too many, nothing forgotten, damage healed."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predictor.declared import (
    MAX_SHARD_BYTES,
    CredentialShard,
    Declared,
    Location,
    ModelShard,
    credential_shard,
    decode,
    model_file,
    model_shard,
)
from tests.warmup.objects import pool_service
from warmup import shards
from warmup.shards import Write, plan_models, plan_scopes, read_models, read_scopes, scopes_in_use
from warmup.view import pools

POOL = pools([pool_service()], [], [], [])["gpu"]
SHARD = model_shard("mnist")
A = Declared(Location("s3://m/a"))
B = Declared(Location("s3://m/b", 2, "secret/x"), A.target)
SCOPE = "secret/x"
SCOPE_SHARD = credential_shard(SCOPE)
SECRET = {"AWS_SECRET_ACCESS_KEY": "hush-hush"}


def stored(write: Write | None) -> dict[str, Any]:
    """As the API server has it afterwards."""
    assert write is not None
    return {**write.body, "metadata": {**write.body["metadata"], "resourceVersion": "7"}}


def with_document(text: str) -> dict[str, Any]:
    held = stored(plan_models(POOL, SHARD, {"mnist": A}, None, now_ms=1).write)
    return {**held, "data": {model_file(SHARD): text}}


def test_a_first_model_creates_its_config_map_which_the_pool_owns() -> None:
    plan = plan_models(POOL, SHARD, {"mnist": A}, None, now_ms=1_000)
    assert plan.write is not None
    assert (plan.write.replaces, plan.write.serial, plan.write.file) == ("", 1_000, f"models-{SHARD:02}.json")
    assert plan.write.body["metadata"] == {
        "name": f"hearth-gpu-models-{SHARD:02}",
        "namespace": "ns",
        "labels": {"app.kubernetes.io/managed-by": "hearth", "hearth.dev/pool": "gpu"},
        "ownerReferences": [POOL.owner.reference()],
    }
    document = plan.write.body["data"][plan.write.file]
    assert decode(document.encode(), ModelShard) == ModelShard(1_000, {"mnist": A})


def test_what_the_cluster_has_already_is_not_written() -> None:
    held = stored(plan_models(POOL, SHARD, {"mnist": A}, None, now_ms=1).write)
    plan = plan_models(POOL, SHARD, {"mnist": A}, held, now_ms=2)
    assert (plan.write, plan.models, plan.left_out) == (None, {"mnist": A}, {})


def test_an_empty_shard_that_never_was_is_not_created() -> None:
    assert plan_models(POOL, 3, {}, None, now_ms=1).write is None
    assert plan_scopes(POOL, 3, (), {}, None, now_ms=1).write is None


def test_a_shard_that_lost_its_last_model_is_written_empty() -> None:
    held = stored(plan_models(POOL, SHARD, {"mnist": A}, None, now_ms=1).write)
    write = plan_models(POOL, SHARD, {}, held, now_ms=2).write
    assert read_models(stored(write), SHARD) == shards.ModelsRead(2, {})


@pytest.mark.parametrize(("now_ms", "serial"), [(1, 1_001), (5_000, 5_000)])
def test_a_serial_grows_also_when_the_clock_went_back(now_ms: int, serial: int) -> None:
    held = stored(plan_models(POOL, SHARD, {"mnist": A}, None, now_ms=1_000).write)
    write = plan_models(POOL, SHARD, {"mnist": B}, held, now_ms=now_ms).write
    assert write is not None
    assert (write.serial, write.replaces, write.body["metadata"]["resourceVersion"]) == (serial, "7", "7")


@pytest.mark.parametrize(
    ("text", "serial", "kept"),
    [
        pytest.param("", 0, {}, id="empty: nothing is left"),
        pytest.param("{", 0, {}, id="cut off: nothing is left"),
        pytest.param("[]", 0, {}, id="no object: nothing is left"),
        pytest.param('{"serial": 9, "models": []}', 9, {}, id="no models: its serial"),
        pytest.param('{"serial": -9, "models": {}}', 0, {}, id="a serial below zero counts as none"),
        pytest.param(
            '{"serial": 9, "format": 2, "models": {"mnist": {"target": {"uri": "s3://m/a"}, "new": 1}}}',
            9,
            {"mnist": A},
            id="of a later release: what is understood",
        ),
        pytest.param(
            '{"serial": 9, "models": {"mnist": {"target": {"uri": "s3://m/a"}}, "bad": {"target": 3}}}',
            9,
            {"mnist": A},
            id="one model is damaged: the others",
        ),
    ],
)
def test_a_damaged_document_gives_what_it_can_and_is_written_anew(text: str, serial: int, kept: dict[str, Declared]) -> None:
    held = with_document(text)
    read = read_models(held, SHARD)
    assert (read.serial, read.models) == (serial, kept)
    assert read.damage.startswith(f"hearth-gpu-models-{SHARD:02}: models-{SHARD:02}.json: ")
    write = plan_models(POOL, SHARD, read.models, held, now_ms=5).write
    assert read_models(stored(write), SHARD) == shards.ModelsRead(max(5, serial + 1), kept)


def test_a_pool_that_was_made_anew_takes_its_documents_over() -> None:
    held = stored(plan_models(POOL, SHARD, {"mnist": A}, None, now_ms=1).write)
    anew = pool_service()
    anew["metadata"]["uid"] = "another"
    write = plan_models(pools([anew], [], [], [])["gpu"], SHARD, {"mnist": A}, held, now_ms=2).write
    assert write is not None
    assert write.body["metadata"]["ownerReferences"][0]["uid"] == "another"


def test_beyond_a_shards_room_newcomers_stay_out_and_changes_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "model_shard", lambda _: SHARD)
    big = Declared(Location("s3://m/" + "x" * (MAX_SHARD_BYTES // 3)))
    held = stored(plan_models(POOL, SHARD, {"z1": big, "z2": big, "a": A}, None, now_ms=1).write)
    plan = plan_models(POOL, SHARD, {"z1": big, "z2": big, "a": big, "b": big, "c": B}, held, now_ms=2)
    assert plan.models == {"z1": big, "z2": big, "a": A, "c": B}
    assert set(plan.left_out) == {"a", "b"}
    assert all(str(MAX_SHARD_BYTES) in invalid.message and invalid.passing for invalid in plan.left_out.values())
    assert plan.write is not None
    assert len(plan.write.body["data"][plan.write.file]) <= MAX_SHARD_BYTES


NAMES = [name for name in (f"m{number}" for number in range(2_000)) if model_shard(name) == SHARD][:5]
CATALOGUES = st.dictionaries(st.sampled_from(NAMES), st.sampled_from([A, B]))


@given(st.lists(st.tuples(CATALOGUES, st.integers(0, 50)), min_size=1, max_size=8))
def test_whatever_is_declared_is_read_back_and_serials_only_grow(steps: list[tuple[dict[str, Declared], int]]) -> None:
    held, serial = None, -1
    for models, now_ms in steps:
        plan = plan_models(POOL, SHARD, models, held, now_ms=now_ms)
        if plan.write is not None:
            assert plan.write.serial > serial
            held, serial = stored(plan.write), plan.write.serial
        assert read_models(held, SHARD).models == plan.models == models
        assert plan_models(POOL, SHARD, models, held, now_ms=now_ms + 1).write is None


# ---- credentials ---------------------------------------------------------------------------------------------


def test_credentials_go_into_a_secret_with_the_scopes_in_use_alone() -> None:
    unused = {"secret/y": {"AWS_ACCESS_KEY_ID": "id"}}
    write = plan_scopes(POOL, SCOPE_SHARD, {SCOPE}, {SCOPE: SECRET, **unused}, None, now_ms=4).write
    held = stored(write)
    assert (held["kind"], held["type"], held["metadata"]["name"]) == (
        "Secret",
        "Opaque",
        f"hearth-gpu-credentials-{SCOPE_SHARD}",
    )
    document = base64.b64decode(held["data"][f"credentials-{SCOPE_SHARD}.json"])
    assert decode(document, CredentialShard) == CredentialShard(4, {SCOPE: SECRET})
    assert "hush-hush" not in repr(write) + repr(read_scopes(held, SCOPE_SHARD))


def test_a_scope_whose_secret_cannot_be_read_now_keeps_what_it_had() -> None:
    held = stored(plan_scopes(POOL, SCOPE_SHARD, {SCOPE}, {SCOPE: SECRET}, None, now_ms=4).write)
    assert plan_scopes(POOL, SCOPE_SHARD, {SCOPE}, {}, held, now_ms=5).write is None


def test_a_scope_that_nobody_uses_any_more_goes() -> None:
    held = stored(plan_scopes(POOL, SCOPE_SHARD, {SCOPE}, {SCOPE: SECRET}, None, now_ms=4).write)
    emptied = plan_scopes(POOL, SCOPE_SHARD, (), {SCOPE: SECRET}, held, now_ms=4).write
    assert read_scopes(stored(emptied), SCOPE_SHARD) == shards.ScopesRead(5, {})


@pytest.mark.parametrize(
    "document", [b"", b"no json hush-hush", b'{"serial": 3, "scopes": {"secret/x": {"KEY": ["hush-hush"]}}}', b'"hush-hush"']
)
def test_a_damaged_secret_is_written_anew_and_what_is_said_of_it_holds_no_secret(document: bytes) -> None:
    held = stored(plan_scopes(POOL, SCOPE_SHARD, {SCOPE}, {SCOPE: SECRET}, None, now_ms=4).write)
    held["data"] = {f"credentials-{SCOPE_SHARD}.json": base64.b64encode(document).decode()}
    read = read_scopes(held, SCOPE_SHARD)
    assert read.damage
    assert "hush" not in read.damage
    written = stored(plan_scopes(POOL, SCOPE_SHARD, {SCOPE}, {SCOPE: SECRET}, held, now_ms=9).write)
    assert read_scopes(written, SCOPE_SHARD) == shards.ScopesRead(9, {SCOPE: SECRET})


def test_a_secret_that_is_not_even_base64_is_written_anew() -> None:
    held = stored(plan_scopes(POOL, SCOPE_SHARD, {SCOPE}, {SCOPE: SECRET}, None, now_ms=4).write)
    held["data"] = {f"credentials-{SCOPE_SHARD}.json": "?hush"}
    assert read_scopes(held, SCOPE_SHARD).scopes == {}
    assert "hush" not in read_scopes(held, SCOPE_SHARD).damage


def test_credentials_beyond_a_secrets_room_stay_out() -> None:
    scopes = [scope for scope in (f"secret/{number}" for number in range(100)) if credential_shard(scope) == 0][:3]
    plan = plan_scopes(POOL, 0, scopes, {scope: {"AWS_CA_BUNDLE_PEM": "x" * 400_000} for scope in scopes}, None, now_ms=1)
    assert len(plan.left_out) == 1
    assert len(read_scopes(stored(plan.write), 0).scopes) == 2


def test_scopes_in_use_are_those_of_targets_and_stables() -> None:
    other = Declared(A.target, Location("s3://m/c", 2, "secret/z"))
    assert scopes_in_use({"a": A, "b": B, "c": other}) == {"secret/x", "secret/z"}
