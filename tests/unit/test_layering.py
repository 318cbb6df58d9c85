"""Who may import what, and what a committed text may not name."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "deberta"
SOURCES = sorted(PACKAGE.rglob("*.py"))
STAGES = [path for path in SOURCES if PACKAGE / "stages" in path.parents]
HOST = [path for path in SOURCES if PACKAGE / "host" in path.parents]
VOCABULARY = [path for path in SOURCES if path not in STAGES and path not in HOST]
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
    assert len(VOCABULARY) >= 5 and len(HOST) >= 3 and len(STAGES) >= 3


@pytest.mark.parametrize("path", VOCABULARY, ids=name)
def test_the_vocabulary_is_standard_library_only(path: Path) -> None:
    assert roots(path) - set(sys.stdlib_module_names) <= {"deberta", "msgspec"}
    assert not within(path, "deberta.host") | within(path, "deberta.stages")


@pytest.mark.parametrize("path", HOST, ids=name)
def test_the_host_never_imports_what_stages_need(path: Path) -> None:
    assert not roots(path) & HEAVY
    assert not within(path, "deberta.stages")


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
