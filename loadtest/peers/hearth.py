"""Hearth as users start it: `hearth serve` on a bucket. The bucket is the demo's S3, on the client's core."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from loadtest.peers import model
from loadtest.peers.peer import PeerFailed, Site, Started, pinned
from loadtest.peers.workloads import INPUT, OUTPUT, Case
from predictor import checksums
from predictor.demo import s3
from predictor.demo.children import Children, free_port
from predictor.demo.server import environment

BATCHING: Final = {"batching": {"max_batch_size": 64}}
"""What Triton's configuration says as well (triton.MAX_BATCH)."""


@dataclass(frozen=True)
class Hearth:
    """``hearth serve`` with nothing set that is not needed to find and trust the model.

    declared  by model, what its hearth.json says beyond files and schema; a model without gets BATCHING
    """

    name: str = "Hearth"
    settings: str = "`hearth serve --trust code`, all else default, max_batch_size 64; front and worker share the core"
    declared: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def missing(self, site: Site) -> str:  # noqa: ARG002 (a Peer)
        """The demo's S3 is an extra."""
        return "" if importlib.util.find_spec("moto") else "pip install 'hearth[demo]' for the embedded S3"

    def start(self, children: Children, site: Site, cases: Sequence[Case]) -> Started:
        """Start an S3, publish the models, start the server."""
        command = [sys.executable, "-m", "predictor.demo.s3"]
        store = children.start("s3", pinned(site.client_core, command), environment(), talks=True)
        store_port = s3.read_port(store)
        if not store_port:
            raise PeerFailed(f"the embedded S3 did not start\n{children.last_words('s3')}")
        bucket = s3.client(store_port)
        for case in cases:
            s3.upload(bucket, case.workload.name, files(case, self.declared.get(case.workload.name, BATCHING)))
        port, admin_port = free_port(0), free_port(0)
        flags = [
            "--models",
            f"s3://{s3.BUCKET}/{s3.PREFIX}",
            "--port",
            str(port),
            "--admin-port",
            str(admin_port),
            "--trust",
            "code",
        ]
        serve = pinned(site.server_core, [sys.executable, "-m", "predictor.boot", "serve", *flags])
        process = children.start("hearth", serve, environment(f"http://127.0.0.1:{store_port}"))
        return Started(process, port, "hearth", admin_port)


def files(case: Case, declared: Mapping[str, Any] = BATCHING) -> dict[str, bytes]:
    """A version's files, the manifest last. ``declared``: fields of the manifest beside what the case says."""
    contents = {"model.safetensors": case.weights, "model.py": Path(model.__file__).read_bytes()}
    manifest = {
        "format": "pytorch",
        "files": [checksums.entry(name, content) for name, content in contents.items()],
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, *case.workload.shape[1:]]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, *case.workload.output[1:]]}],
        "parameters": case.workload.config,
        **declared,
    }
    return {**contents, "hearth.json": json.dumps(manifest).encode()}
