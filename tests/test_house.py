"""House rules that no linter knows: what is documented, what is dead, what may import what, how long things may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from predictor.flags import SERVE_FLAGS
from predictor.reference import pages
from predictor.settings import Settings
from warmup.settings import ControllerSettings

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "predictor").rglob("*.py")) + sorted((ROOT / "warmup").rglob("*.py"))
MEASURED = SOURCES + sorted((ROOT / "loadtest").rglob("*.py"))
ALL_PYTHON = MEASURED + sorted((ROOT / "tests").rglob("*.py"))
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
ENTRIES = {"predictor.boot", "predictor.engine.__main__", "predictor.reference"}

WRITTEN_BEFORE_THE_END_BYTES = 2 << 30
"""By one worker, between two looks at its folder and until its end."""

MAX_MODULE_LINES = 420
MAX_FUNCTION_LINES = 80


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _definitions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


@pytest.mark.parametrize("name", pages())
def test_the_reference_says_what_the_code_says(name: str) -> None:
    assert (ROOT / "docs/reference" / name).read_text() == pages()[name], "run `make reference`"


def test_every_setting_has_a_flag_and_a_description() -> None:
    assert {flag.setting for flag in SERVE_FLAGS} == set(Settings.model_fields)
    assert all(field.description for field in Settings.model_fields.values())
    assert all(field.description for field in ControllerSettings.model_fields.values())


def test_a_pods_volume_holds_what_all_its_workers_may_write() -> None:
    pod = (ROOT / "manifests/parts/pod/pod.yaml").read_text()
    workers, share_bytes = (
        int(found[1])
        for name in ("MAX_WORKERS", "SCRATCH_BYTES")
        if (found := re.search(rf'- name: HEARTH_{name}\n +value: "(\d+)"', pod))
    )
    found = re.search(r"- name: tmp\n +emptyDir:\n +sizeLimit: (\d+)Gi", pod)
    assert found
    assert int(found[1]) << 30 >= workers * share_bytes + WRITTEN_BEFORE_THE_END_BYTES
    overlays = "\n".join(path.read_text() for path in (ROOT / "manifests/overlays").rglob("*.yaml"))
    assert not re.search("HEARTH_(MAX_WORKERS|SCRATCH_BYTES|DEVICE_COUNT)", overlays), "reckon its volume, too"


@pytest.mark.parametrize("path", MEASURED, ids=_module)
def test_modules_begin_with_what_they_are_for_and_end_in_time(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), f"{path} does not say what it is for"
    assert text.count("\n") <= MAX_MODULE_LINES, f"{path} is too long: split it where its subjects part"
    for function in _definitions(tree):
        lines = (function.end_lineno or 0) - function.lineno
        assert lines <= MAX_FUNCTION_LINES, f"{path}:{function.lineno} {function.name} has {lines} lines"


def test_nothing_is_left_for_later() -> None:
    words = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error", "pragma: no " + "cover")))
    found = [f"{path}:{number}" for path in ALL_PYTHON for number, line in enumerate(path.open(), 1) if words.search(line)]
    assert not found


def test_no_module_is_dead() -> None:
    known = {_module(path): path for path in SOURCES}
    seen: set[str] = set()
    todo = set(ENTRIES)
    while todo:
        name = todo.pop()
        if name in seen or name not in known:
            continue
        seen.add(name)
        text = known[name].read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                todo |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                todo |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        todo |= set(re.findall(r'"(predictor(?:\.\w+)+)"', text))  # processes and late imports are named in strings
    dead = {name for name, path in known.items() if path.name != "__init__.py" and name not in seen}
    assert not dead


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def test_the_front_imports_neither_torch_nor_numpy_nor_fastapi_before_it_listens() -> None:
    loaded = _loaded_by("import predictor.__main__")
    assert "predictor.cache" in loaded
    assert not loaded & {"torch", "numpy", "onnxruntime", "fastapi", "boto3", "botocore"}


def test_the_boot_imports_the_standard_library_only() -> None:
    foreign = {name.partition(".")[0] for name in _loaded_by("import predictor.boot")} - set(sys.stdlib_module_names)
    assert not {name for name in foreign if not name.startswith("_")} - {"predictor", "sitecustomize", "usercustomize"}


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        assert other.exists(), f"{page}: {target}"
        assert not anchor or anchor in _anchors(other), f"{page}: {target}"


def test_the_changelog_knows_the_version() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert f"[{version[1]}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_image_installs_what_is_locked() -> None:
    pin = re.compile(r"^[\w.-]+==[^\s;]+", re.MULTILINE)
    locked = set(pin.findall((ROOT / "requirements/lock.txt").read_text()))
    for name in ("torch.txt", "predictor.txt", "controller.txt", "loadtest.txt"):
        pinned = set(pin.findall((ROOT / "requirements" / name).read_text()))
        assert pinned
        assert pinned <= locked, f"requirements/{name} differs from the lock: run `make lock`"
