"""What is declared to this pod: read from the mounted documents, read again when they change, and taken from a controller.

Of two documents of one shard the one with the higher serial counts, wherever it came from: a kubelet may refresh a volume a
minute after the controller has told the pod the same. What stays out: what a declaration leads to (rollout.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from predictor import declared
from predictor.declared import CREDENTIAL_SHARDS, MODEL_SHARDS, CredentialShard, Declared, ModelShard, Shard
from predictor.health import go_on

log = logging.getLogger(__name__)

POLL_S: Final = 2.0
"""How often the mounted folders are looked at: one readlink each."""

MAX_DOCUMENT_BYTES: Final = 4 << 20

MODEL_FILES: Final = tuple(map(declared.model_file, range(MODEL_SHARDS)))
CREDENTIAL_FILES: Final = tuple(map(declared.credential_file, range(CREDENTIAL_SHARDS)))


class Declarations:
    """The newest documents. Belongs to one event loop.

    models       folder with the shards of models; None: a controller may tell them all the same
    credentials  folder with the shards of credentials; None: there are none
    on_models    told of every model whose declaration changed; None for one that is not declared any more
    on_scopes    told of the credentials of all scopes, whenever some of them changed
    """

    def __init__(
        self,
        models: Path | None,
        credentials: Path | None,
        on_models: Callable[[Mapping[str, Declared | None]], None],
        on_scopes: Callable[[Mapping[str, Mapping[str, str]]], None],
    ) -> None:
        self._models_folder = models
        self._credentials_folder = credentials
        self._on_models = on_models
        self._on_scopes = on_scopes
        self._models: dict[str, ModelShard] = {}
        self._credentials: dict[str, CredentialShard] = {}
        self._stamps: dict[Path, object] = {}
        self._damaged: dict[str, str] = {}

    @property
    def serials(self) -> dict[str, int]:
        """File name of a shard of models → serial of what counts."""
        return {file: shard.serial for file, shard in self._models.items()}

    @property
    def scope_serials(self) -> dict[str, int]:
        """File name of a shard of credentials → serial of what counts."""
        return {file: shard.serial for file, shard in self._credentials.items()}

    def read(self) -> None:
        """Take what is mounted now. Blocks for some milliseconds: 10,000 models are 4 MB of JSON."""
        self._take_credentials(self._changed(self._credentials_folder, CREDENTIAL_FILES, CredentialShard))
        self.take(self._changed(self._models_folder, MODEL_FILES, ModelShard))

    async def watch(self) -> None:
        """Read again whenever a mounted folder changed, for ever."""
        await go_on("declarations", self._follow)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            scopes = await asyncio.to_thread(self._changed, self._credentials_folder, CREDENTIAL_FILES, CredentialShard)
            models = await asyncio.to_thread(self._changed, self._models_folder, MODEL_FILES, ModelShard)
            self._take_credentials(scopes)
            self.take(models)

    def take(self, shards: Mapping[str, ModelShard]) -> None:
        """Go by these from now on, where they are newer than what is known. Unknown file names are ignored."""
        changes: dict[str, Declared | None] = {}
        for file, shard in shards.items():
            known = self._models.get(file)
            if file not in MODEL_FILES or (known is not None and shard.serial <= known.serial):
                continue
            before = known.models if known is not None else {}
            self._models[file] = shard
            changes |= dict.fromkeys(before.keys() - shard.models.keys())
            changes |= {name: entry for name, entry in shard.models.items() if before.get(name) != entry}
        if changes:
            log.info("declared anew: %d models, not declared any more: %d", *_counts(changes))
            self._on_models(changes)

    def _take_credentials(self, shards: Mapping[str, CredentialShard]) -> None:
        news = {
            file: shard
            for file, shard in shards.items()
            if (known := self._credentials.get(file)) is None or shard.serial > known.serial
        }
        if news:
            self._credentials |= news
            self._on_scopes({scope: told for shard in self._credentials.values() for scope, told in shard.scopes.items()})

    def _changed(self, folder: Path | None, files: tuple[str, ...], kind: type[Shard]) -> dict[str, Shard]:
        """Every document in the folder, if anything in it changed since the last look; in whatever thread."""
        if folder is None:
            return {}
        stamp = _stamp(folder)
        if stamp == self._stamps.get(folder):
            return {}
        self._stamps[folder] = stamp
        found: dict[str, Shard] = {}
        for file in files:
            try:
                with (folder / file).open("rb") as document:
                    found[file] = declared.decode(document.read(MAX_DOCUMENT_BYTES), kind)
            except FileNotFoundError:  # never there, or gone: what is known stays, until somebody says otherwise
                continue
            except (OSError, ValueError) as error:
                self._complain(file, str(error))
        return found

    def _complain(self, file: str, trouble: str) -> None:
        if self._damaged.get(file) != trouble:
            self._damaged[file] = trouble
            log.warning("%s cannot be read, what was declared before stays: %s", file, trouble)


def _stamp(folder: Path) -> object:
    """Changes when the folder's contents do. Kubernetes replaces the link ``..data``; elsewhere files change."""
    try:
        return (folder / "..data").readlink()
    except OSError:
        pass
    try:
        return sorted((entry.name, entry.stat().st_mtime_ns) for entry in folder.iterdir())
    except OSError:
        return None


def _counts(changes: Mapping[str, Declared | None]) -> tuple[int, int]:
    gone = sum(entry is None for entry in changes.values())
    return len(changes) - gone, gone
