"""FastAPI and torch in one process, under uvicorn: what a team writes first. The app is fastapi_app.py."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.peers.peer import HOST, Site, Started, pinned
from loadtest.peers.workloads import Case
from predictor.demo.children import Children, free_port
from predictor.demo.server import environment


@dataclass(frozen=True)
class FastApi:
    """One uvicorn worker."""

    name: str = "FastAPI"
    settings: str = (
        "uvicorn, one worker, uvloop, httptools, no access log; async endpoint, orjson, no pydantic, "
        "torch in the process, inference_mode, one torch thread"
    )

    def missing(self, site: Site) -> str:
        """Uvicorn is not among Hearth's own packages."""
        return "" if _packages(site) else f"no uvicorn in {site.peers_venv}: `make bench-overhead` installs it"

    def start(self, children: Children, site: Site, cases: Sequence[Case]) -> Started:
        """Write the models into a folder and start uvicorn."""
        models, port = site.folder / "models", free_port(0)
        for case in cases:
            folder = models / case.workload.name
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_bytes(case.weights)
            (folder / "config.json").write_text(json.dumps(case.workload.config))
        options = ["--host", HOST, "--port", str(port), "--loop", "uvloop", "--http", "httptools", "--no-access-log"]
        command = [sys.executable, "-m", "uvicorn", "loadtest.peers.fastapi_app:app", "--log-level", "warning", *options]
        root = Path(__file__).parent.parent.parent
        # uvicorn, click and h11 alone are installed there: nothing in it hides a package of this environment.
        search = os.pathsep.join(str(folder) for folder in (root, *_packages(site)))
        known = {**environment(), "PYTHONPATH": search, "PEERS_MODELS": str(models), "OMP_NUM_THREADS": "1"}
        return Started(children.start("fastapi", pinned(site.server_core, command), known), port, "fastapi")


def _packages(site: Site) -> list[Path]:
    return [found.parent for found in site.peers_venv.glob("lib/python3.*/site-packages/uvicorn")]
