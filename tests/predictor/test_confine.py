"""Model code tries to reach what is not its own. Real workers, forked and started; every attempt is made by a model."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from predictor.boundary import SCRATCH_BYTES, Boundary
from predictor.engine import confine, landlock, seccomp
from predictor.engine.landlock import outside
from predictor.errors import ModelFailed
from predictor.workers.spawn import environment
from predictor.workers.zygote import Zygote, starter
from tests.fakes.zoo import affine_onnx, affine_pytorch
from tests.predictor.test_workers import Bench, X, values

pytestmark = pytest.mark.asyncio(loop_scope="module")

needs_files = pytest.mark.skipif(not landlock.version(), reason="no Landlock here")
needs_calls = pytest.mark.skipif(platform.machine() not in seccomp.MACHINES, reason="no seccomp filter for this machine")

PROBE = """
        import ctypes, json, os, socket, subprocess, sys, tempfile, threading
        libc = ctypes.CDLL(None, use_errno=True)
        def call(*values):
            if libc.syscall(*map(ctypes.c_long, values)) < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        told = {}
        for name, attempt in {ATTEMPTS}.items():
            try:
                told[name] = str(eval(attempt))
            except Exception as error:
                told[name] = type(error).__name__
        raise RuntimeError("told " + json.dumps(told))
""".strip()


async def attempts(bench: Bench, **tried: str) -> dict[str, str]:
    """What became of each expression, evaluated by a model: its value, or the name of the exception."""
    files = affine_pytorch(scale=1.0)
    code = files["model.py"].replace(b"time.sleep(self.sleep_s)", PROBE.replace("{ATTEMPTS}", repr(tried)).encode())
    ref = await bench.load("prober", {**files, "model.py": code})
    with pytest.raises(ModelFailed) as failure:
        await bench.ask(ref, *X)
    await bench.worker.unload(ref)
    told: dict[str, str] = json.loads(str(failure.value).partition("told ")[2])
    return told


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file of credentials, in the one folder where a front is told that some lie."""
    folder = tmp_path_factory.mktemp("readable")
    (folder / "open").write_text("open")
    (folder / "credentials").mkdir()
    (folder / "credentials/key").write_text("secret")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEARTH_CREDENTIALS_PATH", str(folder / "credentials"))
        patch.setenv("HEARTH_WORKER_READS", str(folder))
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("KUBERNETES_SERVICE_HOST", "secret")
        yield folder / "credentials/key"


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["forked", "started"])
async def bench(request: pytest.FixtureRequest, secret: Path) -> AsyncIterator[Bench]:
    zygote = Zygote(1) if request.param == "forked" else None
    bench = Bench(starter(zygote))
    await bench.worker.start()
    yield bench
    await bench.worker.stop(5.0)
    bench.close()
    if zygote is not None:
        zygote.close()


async def test_honest_models_of_both_formats_compute_inside_the_boundary(bench: Bench) -> None:
    torch_model = await bench.load("t", affine_pytorch(scale=2.0))
    onnx_model = await bench.load("o", affine_onnx(scale=3.0))
    assert values(await bench.ask(torch_model, *X)) == [3.0, 5.0, 7.0, 9.0]
    assert values(await bench.ask(onnx_model, *X)) == [4.0, 7.0, 10.0, 13.0]


async def test_what_models_may_do_they_can(bench: Bench) -> None:
    told = await attempts(
        bench,
        temporary="tempfile.NamedTemporaryFile().write(b'12')",
        home="open(os.path.expanduser('~/cache'), 'w').write('123')",
        own="'VmRSS' in open('/proc/self/status').read()",
        machine="'processor' in open('/proc/cpuinfo').read()",
        library="__import__('wave').__name__",
        null="open('/dev/null', 'w').write('1')",
        pair="(lambda both: both[0].send(b'1234'))(socket.socketpair())",
        program="subprocess.run(['/bin/sh', '-c', 'exit 5']).returncode",
        memory="os.write(os.memfd_create('mine'), b'12345')",
    )
    assert told == {
        "temporary": "2",
        "home": "3",
        "own": "True",
        "machine": "True",
        "library": "wave",
        "null": "1",
        "pair": "4",
        "program": "5",
        "memory": "5",
    }


@needs_files
async def test_no_file_is_read_or_written_but_the_systems_and_its_own(bench: Bench, secret: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("another pod's")
    told = await attempts(
        bench,
        allowed=f"open({str(secret.parent.parent / 'open')!r}).read()",
        secret=f"open({str(secret)!r}).read()",
        secrets=f"os.listdir({str(secret.parent)!r})",
        other=f"open({str(tmp_path / 'other')!r}).read()",
        homes="os.listdir('/root' if os.getuid() == 0 else '/home')",
        temporary="os.listdir('/tmp')",
        shadow="open('/etc/shadow').read()",
        write="open('/etc/hearth-was-here', 'w')",
        package="open(sys.modules['torch'].__file__, 'a')",
        shared="open('/dev/shm/hearth-was-here', 'w')",
        beside="open('/tmp/hearth-was-here', 'w')",
        remove=f"os.unlink({str(tmp_path / 'other')!r})",
    )
    assert told.pop("allowed") == "open"
    assert set(told.values()) == {"PermissionError"}, told


@needs_files
@needs_calls
async def test_no_other_process_is_looked_into_or_signalled(bench: Bench) -> None:
    front = os.getpid()
    other = subprocess.Popen(["sleep", "60"])  # noqa: ASYNC220 (the loop may wait)
    try:
        told = await attempts(
            bench,
            environment=f"open('/proc/{front}/environ', 'rb').read()",
            memory=f"open('/proc/{front}/mem', 'rb').read(1)",
            parent="open(f'/proc/{os.getppid()}/maps').read()",
            sibling=f"open('/proc/{other.pid}/environ', 'rb').read()",
            descriptors=f"os.listdir('/proc/{front}/fd')",
            signal=f"os.kill({front}, 0)",
            kill=f"os.kill({other.pid}, 9)",
            trace=f"call({101 if platform.machine() == 'x86_64' else 117}, 16, {front}, 0, 0)",
            limits=f"__import__('resource').prlimit({front}, 0, (1, 1))",
            priority=f"os.setpriority(os.PRIO_PROCESS, {front}, 19)",
            orphan="call(157 if os.uname().machine == 'x86_64' else 167, 1, 0, 0, 0, 0)",
            session="os.setsid()",
            outlives="call(29 if os.uname().machine == 'x86_64' else 194, 0x68656172, 4096, 0o1600)",
            namespace="call(56 if os.uname().machine == 'x86_64' else 220, 0x10000000 | 17, 0, 0, 0, 0)",
        )
        assert set(told.values()) == {"PermissionError"}, told
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


@needs_calls
async def test_no_socket_leads_out(bench: Bench) -> None:
    with socket.create_server(("127.0.0.1", 0)) as store:
        port = store.getsockname()[1]
        told = await attempts(
            bench,
            tcp=f"socket.create_connection(('127.0.0.1', {port}), 1)",
            udp="socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
            local="socket.socket(socket.AF_UNIX)",
            listen="socket.create_server(('127.0.0.1', 0))",
        )
    assert set(told.values()) == {"PermissionError"}, told


async def test_the_environment_holds_no_secret_and_says_where_to_write(bench: Bench) -> None:
    told = await attempts(
        bench,
        secrets="[name for name in os.environ if name.startswith(('AWS_', 'HEARTH_', 'KUBERNETES_'))]",
        first="[name for name in open('/proc/self/environ').read().split(chr(0)) if name.startswith(('AWS_', 'HEARTH_'))]",
        telemetry="os.environ['ORT_DISABLE_TELEMETRY']",
        home="os.environ['HOME'] == os.environ['TMPDIR'] == tempfile.gettempdir() == os.getcwd()",
    )
    assert told.pop("first") in {"[]", "PermissionError"}  # not dumpable: for others than root it is not even readable
    assert told == {"secrets": "[]", "telemetry": "1", "home": "True"}


async def test_no_file_is_larger_than_the_share(bench: Bench) -> None:
    told = await attempts(
        bench,
        limit="__import__('resource').getrlimit(__import__('resource').RLIMIT_FSIZE)[0]",
        large="open('large', 'wb').truncate((128 << 20) + 1)",
        fits="open('fits', 'wb').truncate(128 << 20)",
    )
    assert told == {"limit": str(SCRATCH_BYTES), "large": "OSError", "fits": str(128 << 20)}


async def test_what_a_model_wrote_goes_with_its_worker(bench: Bench) -> None:
    told = await attempts(
        bench,
        folder="os.getcwd()",
        deep="os.makedirs('a/b/c')",
        shut="os.chmod('a/b', 0)",
        left="subprocess.Popen(['sleep', '1000']).pid",
    )
    folder, left = Path(told["folder"]), int(told["left"])
    assert (folder / "a").exists()
    deaths = len(bench.deaths)
    os.kill(bench.pid, 9)
    async with asyncio.timeout(30):
        while folder.exists() or Path(f"/proc/{left}").exists() or len(bench.deaths) == deaths:  # noqa: ASYNC110 (no events)
            await asyncio.sleep(0.01)
        await bench.load("after", affine_onnx(scale=1.0))


async def test_without_the_boundary_the_same_attempts_succeed(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARTH_CONFINE", "off")
    bench = Bench(starter(None))
    await bench.worker.start()
    told = await attempts(
        bench,
        secret=f"open({str(secret)!r}).read()",
        signal=f"os.kill({os.getpid()}, 0)",
        local="socket.socket(socket.AF_UNIX).close()",
        home="os.environ['HOME'] == os.environ['TMPDIR']",
    )
    await bench.worker.stop(5.0)
    bench.close()
    assert told == {"secret": "secret", "signal": "None", "local": "None", "home": "True"}


async def test_a_model_may_use_the_network_where_the_operator_lets_it(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEARTH_WORKER_NETWORK", "allow")
    bench = Bench(starter(None))
    await bench.worker.start()
    with socket.create_server(("127.0.0.1", 0)) as store:
        port = store.getsockname()[1]
        told = await attempts(
            bench,
            tcp=f"socket.create_connection(('127.0.0.1', {port}), 1).close()",
            local="socket.socket(socket.AF_UNIX).close()",
        )
    await bench.worker.stop(5.0)
    bench.close()
    assert told == {"tcp": "None", "local": "None"}


OUTSIDER = """
import os, resource
from predictor.passage import Passage, window
from predictor.tiers.slabs import SlabPool
from predictor.workers.spawn import shut
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
shut()
pool, passage = SlabPool(1 << 20), Passage(1 << 20, "requests")
view = passage.take(5)
view[:] = b"12345"
assert bytes(window(passage.reader, passage.find(view))[1]) == b"12345"
try:
    open("/proc/self/environ").read()
except PermissionError:
    print("shut", resource.getrlimit(resource.RLIMIT_CORE))
"""


async def test_a_front_that_is_shut_and_no_root_still_makes_shared_memory() -> None:
    done = subprocess.run([sys.executable, "-c", OUTSIDER], capture_output=True, text=True, check=False)  # noqa: ASYNC221 (as above)
    assert done.stdout == "shut (0, 0)\n", done.stderr


OLD_KERNEL = """
import os, socket
from predictor.boundary import Boundary
from predictor.engine import confine, landlock
from predictor.workers.spawn import shut
shut()
front = os.getpid()
if not os.fork():
    landlock.version = lambda: 0
    confine.confine(Boundary(), "")
    for attempt in (
        lambda: open(f"/proc/{front}/environ").read(),
        lambda: open(f"/proc/{front}/mem").read(1),
        lambda: os.kill(front, 0),
        lambda: os.setsid(),
        lambda: socket.socket(),
    ):
        try:
            attempt()
        except PermissionError:
            print("denied", end=" ", flush=True)
    os.kill(os.getpid(), 0)
    open("/proc/self/status").close()
    os._exit(0)
assert os.wait()[1] == 0
"""


@needs_calls
async def test_where_there_is_no_landlock_the_front_is_still_out_of_reach() -> None:
    done = subprocess.run([sys.executable, "-c", OLD_KERNEL], capture_output=True, text=True, check=False)  # noqa: ASYNC221 (as above)
    assert done.stdout == "denied " * 5, done.stderr


ZYGOTE = """
import ctypes
from predictor.engine import confine
from predictor.workers.zygote import Zygote
libc = ctypes.CDLL(None)
libc.prctl(confine.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
confine._drop_capabilities(libc)  # as a pod that is not root has none
zygote = Zygote(1)
worker = zygote.fork(0, 1, name="a")
assert worker.stream.recv(1) and worker.process.poll() is None
for pid in (zygote.pid, worker.process.pid):
    try:
        open(f"/proc/{pid}/mem", "wb")
    except PermissionError:
        print("shut", end=" ", flush=True)
worker.stream.close()
zygote.close()
"""


async def test_where_there_is_no_landlock_nobody_writes_into_zygote_or_workers() -> None:
    done = subprocess.run([sys.executable, "-c", ZYGOTE], capture_output=True, text=True, check=False)  # noqa: ASYNC221 (as above)
    assert done.stdout == "shut shut ", done.stderr


async def test_a_strict_worker_does_not_start_where_the_kernel_lacks_something(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 0)
    with pytest.raises(SystemExit) as end:
        confine.complain(Boundary("strict"))
    assert end.value.code == confine.STRICT_STATUS
    assert "HEARTH_CONFINE=strict" in capsys.readouterr().err
    confine.complain(Boundary("auto"))
    assert capsys.readouterr().err.count("\n") == 1
    confine.complain(Boundary("off"))
    assert capsys.readouterr().err == ""


# ---- the pure parts


async def test_an_environment_is_kept_only_where_it_is_known_to_be_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "HEARTH_MODELS", "KUBERNETES_PORT", "MY_TOKEN"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("LC_ALL", "C")
    assert not {"AWS_SECRET_ACCESS_KEY", "HEARTH_MODELS", "KUBERNETES_PORT", "MY_TOKEN"} & set(environment(1))
    assert environment(3)["LC_ALL"] == "C"
    assert environment(3)["OMP_NUM_THREADS"] == "3"


async def test_a_boundary_is_told_as_it_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    said = {
        "HEARTH_CONFINE": "strict",
        "HEARTH_WORKER_NETWORK": "allow",
        "HEARTH_WORKER_READS": "/a, /b c",
        "KUBECONFIG": "/k:/l",
    }
    boundary = Boundary.from_environment(said)
    assert Boundary.heard(boundary.told()) == boundary
    assert (boundary.mode, boundary.network, boundary.readable) == ("strict", True, ("/a", "/b c"))
    assert {"/k", "/l", "/home/me/.aws", "/run/secrets"} <= set(boundary.hidden)
    assert Boundary.heard(Boundary.from_environment({}).told()).mode == "auto"


async def test_a_folder_with_something_hidden_in_it_is_told_entry_by_entry(tmp_path: Path) -> None:
    for name in ("a/secret/deep", "a/open/deep", "b"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a/link").symlink_to(tmp_path / "a/secret")
    assert set(outside([tmp_path], [tmp_path / "a/secret"])) == {tmp_path / "a/open", tmp_path / "b"}
    assert set(outside([tmp_path / "a/secret/deep"], [tmp_path / "a/secret"])) == set()
    assert set(outside([tmp_path / "a/link"], [tmp_path / "a/secret"])) == set()
    assert set(outside([tmp_path], [Path("/elsewhere")])) == {tmp_path}


async def test_every_jump_of_a_filter_lands_inside_it() -> None:
    for machine in seccomp.MACHINES:
        for filter_ in (
            seccomp.Filter(network=False, local=False, signals=False),
            seccomp.Filter(network=True, local=True, signals=True),
        ):
            program = filter_.program(1234, machine)
            count = len(program) // 8
            assert count <= 4096, "the kernel takes no more"
            for at in range(count):
                code, yes, no = program[8 * at], program[8 * at + 2], program[8 * at + 3]
                assert code == 0x06 or at + 1 < count
                if code & 0x07 == 0x05:
                    assert at + 1 + max(yes, no) < count
