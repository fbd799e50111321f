"""Declared documents in mounted folders and from a controller: the newest counts, damage changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest

from predictor import declared
from predictor.declarations import POLL_S, Declarations
from predictor.declared import CredentialShard, Declared, Location, ModelShard

A, B = Declared(Location("s3://b/a")), Declared(Location("s3://b/b"))


class Mounted:
    """A folder as the kubelet keeps it: files are links through ``..data``, which is replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._times = 0
        folder.mkdir()

    def write(self, **documents: bytes) -> None:
        self._times += 1
        version = self.folder / f"..{self._times}"
        version.mkdir()
        for name, document in documents.items():
            (version / f"{name.replace('_', '-')}.json").write_bytes(document)
        link = self.folder / "..data_tmp"
        link.symlink_to(version.name)
        link.rename(self.folder / "..data")
        for entry in self.folder.iterdir():
            if not entry.name.startswith(".."):
                entry.unlink()
        for file in version.iterdir():
            (self.folder / file.name).symlink_to(Path("..data") / file.name)


class Told:
    """What was told."""

    def __init__(self, tmp_path: Path) -> None:
        self.models = Mounted(tmp_path / "models")
        self.credentials = Mounted(tmp_path / "credentials")
        self.changes: list[Mapping[str, Declared | None]] = []
        self.scopes: list[Mapping[str, Mapping[str, str]]] = []
        self.declarations = Declarations(self.models.folder, self.credentials.folder, self.changes.append, self.scopes.append)


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path)


def document(serial: int, **models: Declared) -> bytes:
    return declared.encode(ModelShard(serial, models))


def test_what_is_mounted_is_told_by_differences(told: Told) -> None:
    told.models.write(models_00=document(1, a=A), models_63=document(5, b=B))
    told.declarations.read()
    told.models.write(models_00=document(2, a=B), models_63=document(6))
    told.declarations.read()
    assert told.changes == [{"a": A, "b": B}, {"a": B, "b": None}]
    assert told.declarations.serials == {"models-00.json": 2, "models-63.json": 6}


def test_an_unchanged_folder_is_not_read_again(told: Told) -> None:
    told.models.write(models_00=document(1, a=A))
    told.declarations.read()
    (told.models.folder / "models-00.json").unlink()
    told.declarations.read()
    assert told.changes == [{"a": A}]


def test_what_the_controller_said_is_not_undone_by_a_kubelet_that_lags(told: Told) -> None:
    told.models.write(models_00=document(1, a=A))
    told.declarations.read()
    told.declarations.take({"models-00.json": ModelShard(3, {"a": B})})
    told.models.write(models_00=document(2, a=A))
    told.declarations.read()
    assert told.changes == [{"a": A}, {"a": B}]
    assert told.declarations.serials == {"models-00.json": 3}


@pytest.mark.parametrize("damaged", [b"{", b"", b'{"serial":9,"format":2}', b'{"serial":9,"models":[]}'], ids=repr)
def test_a_damaged_document_leaves_what_was_declared(told: Told, damaged: bytes, caplog: pytest.LogCaptureFixture) -> None:
    told.models.write(models_00=document(1, a=A))
    told.declarations.read()
    told.models.write(models_00=damaged, models_01=document(1, b=B))
    told.declarations.read()
    told.models.write(models_00=damaged, models_01=document(1, b=B))
    told.declarations.read()
    assert told.changes == [{"a": A}, {"b": B}]
    assert caplog.text.count("models-00.json cannot be read") == 1


def test_a_config_map_that_is_gone_takes_no_model_along(told: Told) -> None:
    told.models.write(models_00=document(1, a=A))
    told.declarations.read()
    told.models.write()
    told.declarations.read()
    assert told.changes == [{"a": A}]


def test_folders_that_are_not_there_are_no_trouble(tmp_path: Path) -> None:
    changes: list[Mapping[str, Declared | None]] = []
    Declarations(tmp_path / "nowhere", None, changes.append, lambda _: None).read()
    assert changes == []


def test_credentials_of_all_shards_are_told_together_before_the_models(told: Told) -> None:
    told.credentials.write(
        credentials_0=declared.encode(CredentialShard(1, {"red": {"AWS_ACCESS_KEY_ID": "1"}})),
        credentials_7=declared.encode(CredentialShard(1, {"blue": {}})),
    )
    told.declarations.read()
    told.credentials.write(
        credentials_0=declared.encode(CredentialShard(2)), credentials_7=declared.encode(CredentialShard(1, {"blue": {}}))
    )
    told.declarations.read()
    assert told.scopes == [{"red": {"AWS_ACCESS_KEY_ID": "1"}, "blue": {}}, {"blue": {}}]
    assert told.declarations.scope_serials == {"credentials-0.json": 2, "credentials-7.json": 1}


@pytest.mark.asyncio
@pytest.mark.looptime
async def test_changes_are_noticed_while_the_pod_runs(told: Told) -> None:
    watching = asyncio.create_task(told.declarations.watch())
    told.models.write(models_00=document(1, a=A))
    async with asyncio.timeout(10 * POLL_S):
        while not told.changes:  # noqa: ASYNC110 (virtual time; the files are read in a thread)
            await asyncio.sleep(POLL_S / 4)
    watching.cancel()
    assert told.changes == [{"a": A}]


@pytest.mark.asyncio
@pytest.mark.looptime
async def test_a_mistake_of_ours_does_not_end_the_watch(told: Told, caplog: pytest.LogCaptureFixture) -> None:
    mistakes = [ZeroDivisionError()]
    take = told.declarations._on_models

    def mistaken(changes: Mapping[str, Declared | None]) -> None:
        if mistakes:
            raise mistakes.pop()
        take(changes)

    told.declarations._on_models = mistaken
    watching = asyncio.create_task(told.declarations.watch())
    told.models.write(models_00=document(1, a=A))
    async with asyncio.timeout(60 * POLL_S):
        while mistakes:  # noqa: ASYNC110 (virtual time; the files are read in a thread)
            await asyncio.sleep(POLL_S / 4)
        told.models.write(models_00=document(2, a=A, b=A))
        while not told.changes:  # noqa: ASYNC110 (as above)
            await asyncio.sleep(POLL_S / 4)
    watching.cancel()
    assert "the watch over declarations failed, and goes on" in caplog.text
