"""Servers with healthy models and evil ones: Hearth in each isolation domain, and Triton.

Each server is started with limits of its own for the machine's sake, in a session that ends with it. What stays out: what is
asked of them (scene.py).
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from loadtest.isolation.evil import EVILS, Evil, evil_files, healthy_files
from loadtest.peers.hearth import Hearth
from loadtest.peers.peer import HOST, PeerFailed, Site
from loadtest.peers.triton import Triton, backends, libraries
from predictor.demo import s3
from predictor.demo.children import Children, free_port
from predictor.demo.server import environment

EXECUTE_TIMEOUT_S: Final = 2.0
BUILD_TIMEOUT_S: Final = 5.0
SCRATCH_BYTES: Final = 8 << 20
TRITON: Final = "Triton"
START_TIMEOUT_S: Final = 180.0
DATA_LIMIT_BYTES: Final = 8 << 30
"""Of each of Triton's processes, as `ulimit -d`: it knows no limit of its own."""


def healthy(count: int) -> dict[str, float]:
    """Models, and what each answers to load.ASKED."""
    return {f"healthy-{number}": 3.0 * number + 1 for number in range(1, count + 1)}


@contextmanager
def hearth(isolation: str, count: int) -> Iterator[int]:
    """``hearth serve`` with all models; its port."""
    why = Hearth().missing(Site(Path(), 0, 0, Path()))
    if why:
        raise PeerFailed(why)
    with TemporaryDirectory() as folder, Children(Path(folder)) as children:
        store = children.start("s3", [sys.executable, "-m", "predictor.demo.s3"], environment(), talks=True)
        store_port = s3.read_port(store)
        if not store_port:
            raise PeerFailed(f"the embedded S3 did not start\n{children.last_words('s3')}")
        bucket = s3.client(store_port)
        for number in range(1, count + 1):
            s3.upload(bucket, f"healthy-{number}", healthy_files(float(number), tenant="good"))
        for evil in EVILS.values():
            s3.upload(bucket, evil.name, evil_files(evil, tenant="bad"))
        port = free_port(0)
        settings = {
            "HEARTH_MODELS": f"s3://{s3.BUCKET}/{s3.PREFIX}",
            "HEARTH_TRUST": "code",
            "HEARTH_PORT": str(port),
            "HEARTH_ADMIN_PORT": str(free_port(0)),
            "HEARTH_ISOLATION": isolation,
            "HEARTH_EXECUTE_TIMEOUT_S": str(EXECUTE_TIMEOUT_S),
            "HEARTH_BUILD_TIMEOUT_S": str(BUILD_TIMEOUT_S),
            "HEARTH_DEVICE_BUDGET_BYTES": str(1 << 30),
            "HEARTH_SCRATCH_BYTES": str(SCRATCH_BYTES),
            "TMPDIR": folder,
        }
        known = environment(f"http://127.0.0.1:{store_port}") | settings
        process = children.start("hearth", [sys.executable, "-m", "predictor.boot", "serve"], known)
        _wait(port, process.poll, lambda: children.last_words("hearth"), "/readyz")
        yield port


@contextmanager
def triton(count: int, evil: Evil, peers_venv: Path) -> Iterator[int]:
    """Tritonserver with the healthy models and one evil one, each in a process of its own; its HTTP port."""
    peer, site = Triton(dynamic=False), Site(Path(), 0, 0, peers_venv)
    why = peer.missing(site)
    if why:
        raise PeerFailed(why)
    with TemporaryDirectory() as name, Children(Path(name)) as children:
        folder, port = Path(name), free_port(0)
        home = backends(peers_venv, folder / "backends")
        for number in range(1, count + 1):
            _publish(folder / "models" / f"healthy-{number}", healthy_files(float(number)))
        _publish(folder / "models" / evil.name, evil_files(evil))
        flags = {
            "model-repository": folder / "models",
            "backend-directory": folder / "backends",
            "http-address": HOST,
            "http-port": port,
            "allow-grpc": "false",
            "allow-metrics": "false",
            "log-info": "false",
            # Else it listens only when every model is built, and one that hangs there keeps all others from being served.
            "model-control-mode": "explicit",
            "exit-on-error": "false",
            "strict-readiness": "false",
            "backend-config": f"python,shm-region-prefix-name={folder.name}",
        }
        known = {
            **environment(),
            "TMPDIR": name,
            "PEERS_PACKAGES": sysconfig.get_path("purelib"),
            "LD_LIBRARY_PATH": os.pathsep.join((sysconfig.get_config_var("LIBDIR"), *libraries(home))),
            "OMP_NUM_THREADS": "1",
        }
        serve = [str(home / "bin/tritonserver"), *(f"--{flag}={value}" for flag, value in flags.items())]
        names = [f"healthy-{number}" for number in range(1, count + 1)] + ([evil.name] if evil.when == "asked" else [])
        serve += [f"--load-model={name}" for name in names]
        limited = ["prlimit", f"--data={DATA_LIMIT_BYTES}", "--core=0", *serve]
        process = children.start("triton", limited, known)
        _wait(port, process.poll, lambda: children.last_words("triton"), "/v2/models/healthy-1/ready")
        yield port


def _publish(folder: Path, files: Mapping[str, bytes]) -> None:
    version = folder / "1"
    version.mkdir(parents=True)
    manifest = json.loads(files["hearth.json"])
    shutil.copy(Path(__file__).parents[1] / "peers" / "triton_model.py", version / "model.py")
    (version / "network.py").write_bytes(files["model.py"])
    (version / "model.safetensors").write_bytes(files["model.safetensors"])
    (version / "config.json").write_text(json.dumps(manifest["parameters"]))
    tensors = [
        f'{way} [{{ name: "{field["name"]}", data_type: TYPE_FP32, dims: {field["shape"][1:]} }}]'
        for way, fields in (("input", manifest["inputs"]), ("output", manifest["outputs"]))
        for field in fields
    ]
    lines = [f'name: "{folder.name}"', 'backend: "python"', "max_batch_size: 64", *tensors]
    (folder / "config.pbtxt").write_text("\n".join([*lines, "instance_group [{ count: 1, kind: KIND_CPU }]", ""]))


def _wait(port: int, ended: Callable[[], int | None], words: Callable[[], str], path: str) -> None:
    """Until the server says that it is ready. PeerFailed."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and ended() is None:
        with suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(HOST, port, timeout=5)
            connection.request("GET", path)
            if connection.getresponse().status == http.client.OK:
                return
        time.sleep(0.1)
    raise PeerFailed(f"the server did not start\n{words()}")
