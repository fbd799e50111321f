"""NVIDIA's Triton from the package nvidia-pytriton: its tritonserver with the Python backend, which runs without a GPU.

The Python backend's process is given this environment's packages, so that torch and numpy are the same for all servers.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtest.peers import model
from loadtest.peers.peer import HOST, Site, Started, pinned
from loadtest.peers.workloads import INPUT, OUTPUT, Case
from predictor.demo.children import Children, free_port
from predictor.demo.server import environment

MAX_BATCH: Final = 64
HTTP_THREADS: Final = 1
"""Of 1, 2, 4 and the default of 8, on one core: docs/benchmarks.md has the figures."""


@dataclass(frozen=True)
class Triton:
    """tritonserver, plain or with its dynamic batching."""

    dynamic: bool
    http_threads: int = HTTP_THREADS

    @property
    def name(self) -> str:
        """The table's column, told from others of a sweep by its HTTP threads."""
        return f"Triton{' dynamic' if self.dynamic else ''}, http {self.http_threads}"

    @property
    def settings(self) -> str:
        """What the caption says."""
        batching = f"dynamic_batching {{}} (max_batch_size {MAX_BATCH}, no delay)" if self.dynamic else "no dynamic batching"
        return (
            f"Python backend, one instance, inference_mode, one torch thread, {batching}, "
            f"--http-thread-count {self.http_threads}, no gRPC, no metrics, no log"
        )

    def missing(self, site: Site) -> str:
        """The binary and the Python backend's stub for this interpreter."""
        for needed in (_home(site) / "bin/tritonserver", _stub(site)):
            if not needed.exists():
                return f"no {needed.name} for Python {_python()} in {site.peers_venv}: `make bench-overhead` installs it"
        return ""

    def start(self, children: Children, site: Site, cases: Sequence[Case]) -> Started:
        """Lay out backends and models as tritonserver wants them, then start it."""
        home, port = _home(site), free_port(0)
        backends(site.peers_venv, site.folder / "backends")
        repository = site.folder / "models"
        for case in cases:
            self._publish(repository / case.workload.name, case)
        flags = {
            "model-repository": repository,
            "backend-directory": site.folder / "backends",
            "http-address": HOST,
            "http-port": port,
            "http-thread-count": self.http_threads,
            "allow-grpc": "false",
            "allow-metrics": "false",
            "log-info": "false",
            "log-verbose": 0,
            "backend-config": f"python,shm-region-prefix-name={site.folder.name}",
        }
        command = [str(home / "bin/tritonserver"), *(f"--{flag}={value}" for flag, value in flags.items())]
        known = {
            **environment(),
            "PEERS_PACKAGES": sysconfig.get_path("purelib"),  # the stub ignores PYTHONPATH
            "LD_LIBRARY_PATH": os.pathsep.join((sysconfig.get_config_var("LIBDIR"), *libraries(home))),
            "OMP_NUM_THREADS": "1",
        }
        return Started(children.start("triton", pinned(site.server_core, command), known), port, "triton")

    def _publish(self, folder: Path, case: Case) -> None:
        version = folder / "1"
        version.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("triton_model.py"), version / "model.py")
        shutil.copy(model.__file__, version / "network.py")
        (version / "model.safetensors").write_bytes(case.weights)
        (version / "config.json").write_text(json.dumps(case.workload.config))
        (folder / "config.pbtxt").write_text(config(case, dynamic=self.dynamic))


def config(case: Case, *, dynamic: bool) -> str:
    """A model's config.pbtxt."""
    workload = case.workload
    dims, outgoing = list(workload.shape[1:]), list(workload.output[1:])
    return "\n".join(
        [
            f'name: "{workload.name}"',
            'backend: "python"',
            f"max_batch_size: {MAX_BATCH}",
            f'input [{{ name: "{INPUT}", data_type: TYPE_FP32, dims: {dims} }}]',
            f'output [{{ name: "{OUTPUT}", data_type: TYPE_FP32, dims: {outgoing} }}]',
            "instance_group [{ count: 1, kind: KIND_CPU }]",
            *(["dynamic_batching { }"] if dynamic else []),
            "",
        ]
    )


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _home(site: Site) -> Path:
    found = sorted(site.peers_venv.glob("lib/python3.*/site-packages/pytriton/tritonserver"))
    return found[0] if found else site.peers_venv / "tritonserver"


def backends(peers_venv: Path, folder: Path) -> Path:
    """Lay the Python backend out in ``folder`` with the stub for this Python beside it. Where tritonserver is."""
    site = Site(folder, 0, 0, peers_venv)
    # A copy without the stubs of other Pythons: the backend takes the one beside it.
    shutil.copytree(_home(site) / "backends/python", folder / "python")
    shutil.copy(_stub(site), folder / "python")
    return _home(site)


def libraries(home: Path) -> list[str]:
    """The stub was copied away from the libraries that it looks for beside itself."""
    return [str(home.parent.parent / "nvidia_pytriton.libs")]


def _stub(site: Site) -> Path:
    return _home(site) / "python_backend_stubs" / _python() / "triton_python_backend_stub"
