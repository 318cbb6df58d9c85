"""Who may import what, and what a committed text may not name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import architecture

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "deberta"
SOURCES = sorted(PACKAGE.rglob("*.py"))
STAGES = [path for path in SOURCES if PACKAGE / "stages" in path.parents]
HOST = [path for path in SOURCES if PACKAGE / "host" in path.parents]
VOCABULARY = [path for path in SOURCES if path not in STAGES and path not in HOST]
BOOTSTRAP = [PACKAGE / name for name in ("__init__.py", "core/errors.py", "core/files.py", "core/progress.py")]
PACKAGES = sorted({path.parent for path in SOURCES})
MOST_MODULES, MOST_LINES = 14, 440
HEAVY = {
    "torch",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "transformers",
    "tokenizers",
    "sentencepiece",
    "safetensors",
    "scipy",
    "rfc8785",
    "jsonschema",
    "jinja2",
    "cryptography",
}
FOLDERS = ("deberta", "tests", "docs", "docker", "benchmarks", "requirements", ".ci")
# Put together, so that this file does not hold what it looks for.
REGISTRIES = [".".join(words) for words in (
    ("pypi", "org"), ("pythonhosted", "org"), ("debian", "org"), ("registry", "npmjs"), ("proxy", "golang"),
)]  # fmt: skip


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at any depth; `from a import b` gives both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno}: a relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def roots(path: Path) -> set[str]:
    return {module.partition(".")[0] for module in imports(path)}


def within(path: Path, package: str) -> set[str]:
    return {module for module in imports(path) if module == package or module.startswith(f"{package}.")}


def test_there_is_something_to_look_at() -> None:
    assert len(VOCABULARY) >= 15 and len(HOST) >= 40 and len(STAGES) >= 30
    assert len(list(architecture.imports())) > 300


def test_every_import_is_allowed_by_the_table_of_rooms() -> None:
    assert not architecture.violations()


def test_a_planted_import_is_a_violation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deberta/core").mkdir(parents=True)
    (tmp_path / "deberta/host/run").mkdir(parents=True)
    (tmp_path / "deberta/host/run/runner.py").touch()
    (tmp_path / "tasks.py").touch()
    (tmp_path / "deberta/core/files.py").write_text("def f():\n    from deberta.host.run import runner\n")
    monkeypatch.setattr(architecture, "ROOT", tmp_path)
    assert architecture.violations() == ["deberta/core/files.py:2: core imports host.run"]


def test_rooms_are_listed_bottom_up_so_there_are_no_circles() -> None:
    """Host and stages stand apart: a room may import only rooms that come before it in the table."""
    names = list(architecture.ROOMS)
    for index, (room, (_, allowed)) in enumerate(architecture.ROOMS.items()):
        assert set(allowed) <= set(names[:index]), room
        assert not (room.startswith("host") and any(target.startswith("stages") for target in allowed))
        assert not (room.startswith("stages") and any(target.startswith("host") for target in allowed))
    used = {(room, target) for _, room, target in architecture.imports()}
    assert not [
        (room, target)
        for room, allowed in architecture.ROOMS.items()
        for target in allowed.imports
        if (room, target) not in used
    ]


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = architecture.modules()
    graph = {
        module: {target for target in imports(path) if target in known and target != module}
        for module, path in known.items()
        if path.name != "__init__.py"
    }
    while leaves := [module for module, targets in graph.items() if not targets & set(graph)]:
        for module in leaves:
            del graph[module]
    assert not graph


def test_the_page_of_the_architecture_is_current() -> None:
    again = "run: python -m tests.architecture"
    assert architecture.PAGE.read_text(encoding="utf-8") == architecture.page(), again
    way = list(architecture.WAY)
    assert len(way) <= 8 and all((ROOT / path).is_file() for path, _ in way)


@pytest.mark.parametrize("package", PACKAGES, ids=name)
def test_a_package_is_small_and_its_modules_have_names_of_their_own(package: Path) -> None:
    modules = [path for path in package.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= MOST_MODULES
    assert not {path.stem for path in modules} & set(sys.stdlib_module_names)
    for path in modules:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, name(path)


def test_a_class_name_stands_for_one_thing() -> None:
    names = [
        node.name
        for path in [*SOURCES, *sorted((ROOT / "benchmarks").glob("*.py"))]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert sorted({name for name in names if names.count(name) > 1}) == []


@pytest.mark.parametrize("path", VOCABULARY, ids=name)
def test_the_vocabulary_is_the_standard_library_and_a_schema_library(path: Path) -> None:
    assert roots(path) - set(sys.stdlib_module_names) <= {"deberta", "msgspec"} - (
        {"msgspec"} if path in BOOTSTRAP else set()
    )


@pytest.mark.parametrize("path", STAGES, ids=name)
def test_stages_know_nothing_of_the_host(path: Path) -> None:
    assert not roots(path) & {"docker", "invoke", "requests"}
    assert not within(path, "deberta.host")


@pytest.mark.parametrize("path", [*VOCABULARY, *HOST, ROOT / "tasks.py"], ids=name)
def test_what_runs_on_the_host_is_python_3_9(path: Path) -> None:
    """Syntax, annotations that are not evaluated, and the two newer features that are easily slipped in."""
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    annotated = any(isinstance(node, (ast.AnnAssign, ast.FunctionDef)) for node in ast.walk(tree))
    assert not annotated or "__future__" in imports(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
            assert "strict" not in {keyword.arg for keyword in node.keywords}, f"line {node.lineno}: zip(strict=)"
        if isinstance(node, ast.Call):
            assert "slots" not in {keyword.arg for keyword in node.keywords}, f"line {node.lineno}: dataclass(slots=)"


def test_the_task_list_loads_nothing_heavy() -> None:
    """`invoke -l` must answer at once, so importing tasks.py may pull in none of these."""
    heavy = sorted(HEAVY | {"docker", "requests"})
    code = f"import sys, tasks; print(sorted({{m.partition('.')[0] for m in sys.modules}} & set({heavy})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_no_committed_text_names_a_package_registry() -> None:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    files += [path for path in ROOT.iterdir() if path.name != "LICENSE" and not path.name.startswith(".git")]
    wanted = re.compile("|".join(map(re.escape, REGISTRIES)))
    supplied = {ROOT / "docker" / name for name in ("bin", "cann", "debs", "ais_bench")}  # the user's own files
    texts = [
        path
        for path in files
        if path.is_file() and "__pycache__" not in path.parts and not supplied.intersection(path.parents)
    ]
    named = [name(path) for path in texts if wanted.search(path.read_text(encoding="utf-8", errors="replace"))]
    assert not named
